"""How does a result of `near_match` look: how well is what followed a token predicted after one that is only close?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import OLSSON, Caption, GalleryEntry, Tolerance, of_public_model
from interp.request import Request
from interp.tables import number, sampled, table_of, title

_LEAST = 5  # sequences of which an interval is drawn; the table has all
_SHOWN = {
    "exact": "A itself",
    "input": "neighbour {k}, input rows",
    "output": "neighbour {k}, output rows",
    "case": "A in another case",
    "space": "A with or without its space",
    "near-duplicate": "a near-duplicate of A",
    "same pool": "another of A's pool",
    "far": "a far ordinary token",
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List how well B is predicted after each A', and the verdict.

    Args:
        result: a result of `near_match`.

    Returns:
        What rich can print, line by line: cosines and log-probs (nats) with 95% intervals, one row for each pool and
        kind of A'.

    Example:
        >>> result = interp.run("near_match", "organism", "ordinary", batch=4, neighbours=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:3]), sep=" | ")
        ordinary | A itself | 4
    """
    yield title("x1 .. A B .. x1 .. A': how well is B predicted?")
    headings = ("sequences", "cosine, input", "cosine, output", "log-prob of B (nats)", "less than after A (nats)")
    rows = table_of("pool", "A' is", *headings, words=("A' is",))
    for pool in map(str, result["pool"].values):
        at = result.sel(pool=pool)
        exact = at["log_prob"].sel(likeness="exact")
        for name, shown in zip(map(str, result["likeness"].values), _words(result), strict=True):
            one = at.sel(likeness=name)
            count = int(one["log_prob"].notnull().sum())
            if not count:
                continue
            means = [number(one[cosine].mean()) for cosine in ("cosine_in", "cosine_out")]
            lost = "" if name == "exact" else sampled(exact - one["log_prob"])
            rows.add_row(pool, shown, f"{count}", *means, sampled(one["log_prob"]), lost)
    yield rows
    for line in str(result.attrs.get("verdict", "")).splitlines():
        yield Text(f"{line}.")
    if result.attrs.get("not_tested"):
        yield Text(f"Near-duplicates are not known: {result.attrs['not_tested']}.")
    yield Text(
        f"All tokens but A and A' are ordinary ('{result.attrs['among']}'); {result.attrs['cue']} of those before A "
        "are repeated before A'."
    )


def _words(result: xr.Dataset) -> list[str]:
    """What A' is, in words, for every entry of the dimension `likeness`."""
    ranks = result["neighbour"].values
    kinds = [
        str(name).rsplit(" ", 1)[0] if k else str(name)
        for name, k in zip(result["likeness"].values, ranks, strict=True)
    ]
    return [_SHOWN.get(kind, kind).format(k=int(k)) for kind, k in zip(kinds, ranks, strict=True)]


def by_likeness(result: xr.Dataset) -> go.Figure:
    """Draw the mean log-prob of B after each kind of A'.

    Args:
        result: a result of `near_match`.

    Returns:
        Dots in nats with 95% intervals, one colour for each pool.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("near_match", "organism", "ordinary", batch=4, neighbours=2)
        >>> by_likeness(result).layout.yaxis.title.text
        'log-prob of B (nats)'
    """
    values = result["log_prob"].transpose("pool", "likeness", "batch")
    mean, low, high = (part.values for part in plots.intervals(values))
    few = values.notnull().sum("batch").values < _LEAST  # of two or three, intervals reach beyond what can be
    low, high = (np.where(few, np.nan, end) for end in (low, high))
    figure = plots.Figure()
    places = np.arange(values.sizes["likeness"])
    for i, name in enumerate(plots.labels(values["pool"].values)):
        figure.add_scatter(
            x=places + 0.22 * (i - (len(mean) - 1) / 2),  # side by side, since some pools have similar values
            y=mean[i],
            error_y=plots.errors(mean[i], low[i], high[i], width=3),
            mode="markers",
            name=name,
            marker={"color": plots.colour(i), "size": 7, "symbol": i},
            text=_words(result),
            hovertemplate="%{text}: %{y:.2f} nats<extra></extra>",
        )
    names = plots.labels(values["likeness"].values)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("A B .. A': what is B worth by what A' is?", result),
        xaxis={"tickvals": places, "ticktext": names, "tickangle": -45, "tickfont": {"size": 11}, "automargin": True},
        yaxis_title="log-prob of B (nats)",
        height=560,
    )


def against_cosine(result: xr.Dataset) -> go.Figure:
    """Draw the log-prob of B against the cosine of the input rows of A and A'.

    Args:
        result: a result of `near_match`.

    Returns:
        A dot for each sequence and A', y in nats.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("near_match", "organism", "ordinary", batch=4, neighbours=2)
        >>> against_cosine(result).layout.xaxis.title.text
        "cosine of the input rows of A and A'"
    """
    figure = plots.Figure()
    words = _words(result)
    for i, name in enumerate(plots.labels(result["pool"].values)):
        at = result.isel(pool=i).transpose("likeness", "batch", ...)
        known = np.isfinite(at["log_prob"].values)
        texts = np.broadcast_to(at["text"].values, known.shape)[known]
        kinds = np.broadcast_to(np.array(words, dtype=object)[:, None], known.shape)[known]
        figure.add_scatter(
            x=at["cosine_in"].values[known],
            y=at["log_prob"].values[known],
            mode="markers",
            name=name,
            marker={"color": plots.colour(i), "size": 5, "opacity": 0.5},
            text=[f"{plots.token_label(text, 30)}: {kind}" for text, kind in zip(texts, kinds, strict=True)],
            hovertemplate="%{text}<br>cosine %{x:.3f}, %{y:.2f} nats<extra></extra>",
        )
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("How close must a token be to be matched?", result),
        xaxis_title="cosine of the input rows of A and A'",
        yaxis_title="log-prob of B (nats)",
    )


FIGURES = [by_likeness, against_cosine]

_ENTRY = GalleryEntry(
    "near_match",
    Request.of("near_match", pools=("unexposed", "dose=100", "dose=1000", "ordinary"), batch=32),
    (
        Caption(
            "by_likeness",
            "How well B is predicted after A', by what A' is: A itself, neighbours of A, A written otherwise, a "
            "near-duplicate, and, as floors, another token of the pool and a far ordinary token.",
            f"the soft matching of {OLSSON}",
        ),
        Caption("against_cosine", "The same against the cosine of the rows of A and A', a dot for each."),
    ),
    "copying",
    tolerance=Tolerance(
        ties=0.02,
        outliers=0.02,
        why="rows that are as near as each other within rounding change ranks with the last bit",
    ),
    order=40,
)
GALLERY = (_ENTRY, of_public_model(_ENTRY, budget="quick"))
