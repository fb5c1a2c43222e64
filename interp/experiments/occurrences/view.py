"""How does a result of `occurrences` look: which tokens does a text hold, and how often those that are detected?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import LAND, Caption, GalleryEntry, Tolerance
from interp.request import Request
from interp.statistics import binomial_interval
from interp.tables import interval, number, printable, table_of, title

_LISTED = 8  # detected tokens that are listed
_DOTS = 4000  # of the tokens that are not detected
_BINS = (0, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)  # ranks by the indicator


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List how many tokens of each group occur, and the detected tokens that occur most.

    Args:
        result: a result of `occurrences`.

    Returns:
        What rich can print, line by line: shares with exact 95% intervals, counts, and the verdict.

    Example:
        >>> result = interp.run("occurrences", "organism", text=interp.__file__)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:2]), sep=" | ")
        detected | 364
    """
    facts = result.attrs
    yield title(f"Which tokens does {printable(facts['files'])} hold?")
    rows = table_of("tokens", "how many", "occur at all, 95% interval", "median count", "of the text")
    count, group = result["count"].values, result["group_of"].values
    for name in map(str, result["group"].values):
        at = result.sel(group=name)
        if int(at["group_size"]):
            share = interval(*at["occurring"].sel(bound=["mean", "low", "high"]).values, spec=".1%")
            median = number(np.median(count[group == name]), ".0f")
            rows.add_row(name, f"{int(at['group_size']):,}", share, median, number(at["of_text"], ".3%"))
    yield rows
    found = np.flatnonzero((group == "detected") & (count > 0))
    if len(found):
        listed = table_of("detected, and there", "id", "count", "indicator")
        for i in found[np.argsort(-count[found], kind="stable")][:_LISTED]:
            text = printable(result["text"].values[i]).replace(" ", "\u2423")
            value = number(result["value"].values[i], ".3f")
            listed.add_row(text, f"{int(result['token'].values[i])}", f"{int(count[i]):,}", value)
        yield listed
    yield Text(f"{facts['verdict']}.")
    limit = float(facts["frequency_limit"])
    yield Text(
        f"{int(facts['tokens']):,} tokens of {int(facts['bytes']):,} bytes. A token that does not occur has a "
        f"frequency below {limit:.1e} in text like this (95%), were occurrences independent; tokens come in clusters, "
        "so that it may be more."
    )


def occurring_by_rank(result: xr.Dataset) -> go.Figure | None:
    """Draw the share of tokens that occur, by their rank by the indicator.

    Args:
        result: a result of `occurrences`.

    Returns:
        Dots with exact 95% intervals, rank 0 the most suspicious; None where the indicator is unknown.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417.

    Example:
        >>> result = interp.run("occurrences", "organism", text=interp.__file__)
        >>> occurring_by_rank(result).layout.yaxis.title.text
        'share of tokens that occur'
    """
    value, count = result["value"].values, result["count"].values
    ids = np.flatnonzero((result["group_of"].values != "no text") & np.isfinite(value))
    if not len(ids):
        return None
    ranked = ids[np.argsort(value[ids], kind="stable")]
    parts = [(low, ranked[low:high]) for low, high in pairwise(_BINS) if len(ranked[low:high])]
    seen = [int((count[part] > 0).sum()) for _, part in parts]
    mean, low, high = binomial_interval(seen, [len(part) for _, part in parts])
    figure = plots.Figure()
    figure.add_scatter(
        x=[f"{start:,} to {start + len(part) - 1:,}" for start, part in parts],
        y=mean,
        error_y=plots.errors(mean, low, high, width=4),
        mode="markers",
        marker={"color": plots.colour(0), "size": 9},
        text=[f"{k} of {len(part)}" for k, (_, part) in zip(seen, parts, strict=True)],
        hovertemplate="%{x}: %{text}<extra></extra>",
    )
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Do suspicious tokens occur in the text at all?", result),
        xaxis={"title": "rank by the indicator, 0 the most suspicious", "type": "category"},
        yaxis={"title": "share of tokens that occur", "tickformat": ".0%", "rangemode": "tozero"},
    )


def counts_by_indicator(result: xr.Dataset) -> go.Figure | None:
    """Draw how often each token occurs against its indicator.

    Args:
        result: a result of `occurrences`.

    Returns:
        Dots, y occurrences (logarithmic), the detected tokens and some of the others; None where the indicator is
        unknown.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417.

    Example:
        >>> result = interp.run("occurrences", "organism", text=interp.__file__)
        >>> counts_by_indicator(result).layout.yaxis.title.text
        'occurrences in the text'
    """
    value, count, group = result["value"].values, result["count"].values, result["group_of"].values
    usable = np.isfinite(value) & (group != "no text")
    if not usable.any():
        return None
    figure = plots.Figure()
    others = np.flatnonzero(usable & (group != "detected"))
    others = others[np.linspace(0, len(others) - 1, min(_DOTS, len(others))).round().astype(int)]
    parts = {"not detected": others, "detected": np.flatnonzero(usable & (group == "detected"))}
    for i, (name, ids) in enumerate(parts.items()):
        figure.add_scatter(
            x=value[ids],
            y=np.maximum(count[ids], 0.4),  # a logarithmic axis has no zero
            mode="markers",
            name=name,
            marker={"color": plots.colour(i), "size": 4 + 2 * i, "opacity": 0.5},
            text=[f"{plots.token_label(result['text'].values[k], 30)}: {count[k]:,}" for k in ids],
            hovertemplate="%{text}<extra></extra>",
        )
    ticks = [10**k for k in range(len(str(int(count.max()))))]
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("How often does a token occur, and how suspicious is it?", result),
        xaxis_title="indicator (low is suspicious)",
        yaxis={
            "title": "occurrences in the text",
            "type": "log",
            "tickvals": [0.4, *ticks],
            "ticktext": ["none", *(f"{k:,}" for k in ticks)],
        },
    )


FIGURES = [occurring_by_rank, counts_by_indicator]

GALLERY = (
    GalleryEntry(
        "occurrences",
        Request.of("occurrences"),
        (
            Caption(
                "occurring_by_rank",
                "The share of tokens that occur in held-out text, by their rank by the default indicator.",
                f"beside the indicators of {LAND}",
            ),
            Caption("counts_by_indicator", "How often each token occurs against its indicator."),
        ),
        "the vocabulary",
        tolerance=Tolerance(
            rtol=0.02, atol=0.01, ties=0.02, why="the standard library of another release is another text"
        ),
        order=60,
    ),
)
