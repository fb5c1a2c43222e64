"""How does a result of `repeated_token` look: what is predicted after n of a token, and what are the repeats?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import YONA, Caption, GalleryEntry, ReportSection, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables import number, sampled, table_of, title

_NORMS = ("none", "lone first layer", "repeated first layer", "ordinary first layer")
_TO = ("massive dimensions", "control dimensions")
_CHANGES = {
    "none": "as it is",
    "lone first layer": "first layer:<br>lone",
    "repeated first layer": "first layer:<br>other repeated",
    "ordinary first layer": "first layer:<br>ordinary",
    "massive dimensions": "massive<br>removed",
    "control dimensions": "control<br>removed",
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List log-probs by number of repeats, what the repeats look like, and what each change does.

    Args:
        result: a result of `repeated_token`.

    Returns:
        What rich can print, line by line: nats and ratios of norms with 95% intervals, and the verdict.

    Example:
        >>> result = interp.run("repeated_token", "wired", "1:65", members=2, longest=8)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:65 | nothing | -4.17 | -4.17 | 1 | -4.17 | 0.00 | -4.17
    """
    model, last = provenance(result)["model"]["name"], int(result["repeats"].values[-1])
    yield title(f"One token again and again on '{model}': log-prob of one more (nats) after n of it")
    rows = table_of(
        "pool", "after", "n = 1", "peak", "at n", f"n = {last}", "fall from the peak", "block", words=("after",)
    )
    for pool, front, at in _each(result):
        curve = at["log_prob"].sel(change="none").mean("member")
        peak = int(curve.values.argmax())
        ends = [number(curve.isel(repeats=i)) for i in (0, peak, -1)]
        most = number(int(result["repeats"].values[peak]), "d")
        block = number(at["block_log_prob"].isel(repeats=-1).mean("member"))
        rows.add_row(pool, front, ends[0], ends[1], most, ends[2], sampled(at["fall"]), block)
    yield rows
    yield Text(
        f"Fall: from the n where other tokens of the pool have their peak, to n = {last}; block: the same of "
        f"{result.attrs['block']} distinct tokens, repeated to as many."
    )
    yield title(f"Is repeat {last} like a first position, and does that matter?")
    norms = ("norm", "lone", "other repeated", "ordinary")
    others = ("cosine", "among others", "massive removed", "control removed")
    rows = table_of("pool", "after", *norms, *others, words=("after",))
    for pool, front, at in _each(result):
        share = at["share"].mean("member")
        shares = [number(share.sel(change=c)) for c in _NORMS]
        alike = [number(at["cosine"].isel(repeats=-1).mean("member")), number(at["other_cosine"].mean("member"))]
        gained = [number(gain, "+.2f") for gain in _gained(at)]
        rows.add_row(pool, front, *shares, *alike, *gained)
    yield rows
    yield Text(
        "Norm: of the last repeat over that of the first position, after the layer where first positions are most "
        "special; then with the first layer's output at the repeats that of the token alone, of another repeated "
        "token, of ordinary ones. Cosine: of the first layer's output with that of the token alone, and where it "
        "stands after ordinary tokens. Removed: nats that the log-prob gains where dimensions are set to ordinary "
        "means at the repeats."
    )
    if result.attrs["massive_dimensions"]:
        yield Text(f"Massive dimensions of the first position: {result.attrs['massive_dimensions']}.")
    for line in str(result.attrs["verdict"]).splitlines():
        yield Text(line)


def _each(result: xr.Dataset) -> Iterator[tuple[str, str, xr.Dataset]]:
    for pool in result["pool"].values:
        for i, front in enumerate(result["front"].values):
            yield str(pool) if i == 0 else "", str(front), result.sel(pool=pool, front=front)


def _gained(at: xr.Dataset) -> list[float]:
    """Nats that the log-prob at the last n gains by each removal, mean over tokens."""
    last = at["log_prob"].isel(repeats=-1).mean("member")
    return [float(last.sel(change=change) - last.sel(change="none")) for change in _TO]


def log_prob_by_repeats(result: xr.Dataset) -> go.Figure:
    """Draw the log-prob of the same token after n of it, beside repeated blocks of the same length.

    Args:
        result: a result of `repeated_token`.

    Returns:
        Lines in nats with 95% intervals over tokens, a panel for each front; dotted: blocks.

    Example:
        >>> result = interp.run("repeated_token", "wired", "1:65", members=2, longest=8)
        >>> log_prob_by_repeats(result).layout.yaxis.title.text
        'log-prob (nats)'
    """
    fronts = list(map(str, result["front"].values))
    figure = _panels([f"after {front}" for front in fronts])
    counts = result["repeats"].values
    for col, front in enumerate(fronts, start=1):
        for i, pool in enumerate(plots.labels(result["pool"].values)):
            at = result.isel(pool=i).sel(front=front)
            own = at["log_prob"].sel(change="none").transpose("member", "repeats").values
            blocks = at["block_log_prob"].transpose("member", "repeats").values
            for values, name, dash in ((own, pool, "solid"), (blocks, f"blocks of {pool}", "dot")):
                mean, low, high = mean_interval(values)
                figure.add_scatter(
                    x=counts,
                    y=mean,
                    name=name,
                    legendgroup=name,
                    showlegend=col == 1,
                    mode="lines+markers",
                    line={"color": plots.colour(i), "width": 2, "dash": dash},
                    marker={"size": 5, "symbol": i},
                    error_y=plots.errors(mean, low, high, width=3, thickness=1),
                    row=1,
                    col=col,
                )
    lowest = min(float(result[name].min()) for name in ("log_prob", "block_log_prob"))
    figure.update_yaxes(range=[lowest - 1, 1])  # the ends of intervals of few tokens may be no log-probs
    figure.update_yaxes(title="log-prob (nats)", col=1)
    return _finished(figure, "Is the token expected once more?", result)


def norm_by_repeats(result: xr.Dataset) -> go.Figure:
    """Draw the norm of the residual stream at each repeat over that of the first position.

    Args:
        result: a result of `repeated_token`.

    Returns:
        Heatmaps of the ratio, layer by n, cut at 2, a panel for each pool and front.

    Source:
        Yona et al. 2025, Interpreting the Repeated Token Phenomenon, arXiv 2503.08908.

    Example:
        >>> result = interp.run("repeated_token", "wired", "1:65", members=2, longest=8)
        >>> list(norm_by_repeats(result).data[0].x)
        ['1', '2', '3', '4', '6', '8']
    """
    share = (result["norm"] / result["first_norm"]).mean("member").transpose("front", "pool", "layer", "repeats")
    share = share.assign_coords(front=[f"after {front}" for front in result["front"].values])
    columns = share.assign_coords(repeats=[str(n) for n in result["repeats"].values], layer=share["layer"].values)
    figure = plots.heatmaps(
        columns,
        row="front",
        column="pool",
        title=plots.titled("Is a repeat as long as a first position?", result),
        low=0,
        high=min(2.0, max(1.0, float(np.nanmax(columns.values)))),
        x="repeats",
        unit="of first",
    )
    return figure.update_xaxes(type="category", tickangle=0, dtick=2 if len(columns["repeats"]) > 12 else 1)


def changes_at_repeats(result: xr.Dataset) -> go.Figure | None:
    """Draw the norm of the last repeat over that of the first position, with each change.

    Args:
        result: a result of `repeated_token`.

    Returns:
        A dot for each token, y a ratio (1: like a first position); None where the first position is not special.

    Source:
        Yona et al. 2025, Interpreting the Repeated Token Phenomenon, arXiv 2503.08908.

    Example:
        >>> result = interp.run("repeated_token", "wired", "1:65", members=2, longest=8)
        >>> changes_at_repeats(result) is None  # on this model the first position is not special
        True
    """
    share = result["share"]
    fronts = [str(f) for f in result["front"].values if bool(share.sel(front=f).notnull().any())]
    if not fronts:
        return None
    figure = _panels([f"after {front}" for front in fronts])
    for col, front in enumerate(fronts, start=1):
        for i, pool in enumerate(plots.labels(result["pool"].values)):
            for change, words in _CHANGES.items():
                values = share.sel(front=front, change=change).isel(pool=i).values
                figure.add_box(
                    y=values,
                    x=[words] * len(values),
                    name=pool,
                    legendgroup=pool,
                    offsetgroup=pool,
                    showlegend=col == 1 and change == "none",
                    **plots.scattered(jitter=0.5),
                    marker={"color": plots.colour(i), "size": 6, "opacity": 0.7},
                    row=1,
                    col=col,
                )
    figure.add_hline(y=1, line={"dash": "dot", "color": plots.GREY, "width": 1})
    figure.update_yaxes(title="norm of the last repeat / first position", rangemode="tozero", col=1)
    figure.update_layout(boxmode="group")
    figure.update_xaxes(tickangle=0, tickfont={"size": 10 if len(fronts) > 1 else 12})
    return _finished(figure, "What makes a repeat like a first position?", result, counts=False)


def _panels(names: list[str]) -> go.Figure:
    return make_subplots(
        1, len(names), column_titles=names, shared_yaxes=True, horizontal_spacing=0.04, figure=plots.Figure()
    )


def _finished(figure: go.Figure, words: str, result: xr.Dataset, *, counts: bool = True) -> go.Figure:
    figure.update_layout(template=plots.TEMPLATE, title=plots.titled(words, result), height=520, legend_y=1.1)
    if counts:
        shown = [n for n in result["repeats"].values if n & (n - 1) == 0]
        figure.update_xaxes(title="n", type="log", tickvals=shown, ticktext=[str(n) for n in shown])
    return figure


FIGURES = [log_prob_by_repeats, norm_by_repeats, changes_at_repeats]


def _repeated_token(folder: str, positions: str, **options: Any) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("repeated_token", **options),
        (
            Caption("log_prob_by_repeats", f"What a model {positions} expects after n of the same token."),
            Caption(
                "norm_by_repeats",
                "The norm of the residual stream at the n-th repeat, over that of the first position.",
                f"the norms of repeated tokens of {YONA}",
            ),
            Caption(
                "changes_at_repeats",
                "The same of the last repeat, where the first layer's output, or dimensions, are changed there.",
            ),
        ),
        "copying",
        order=40,
    )


_ENTRY = _repeated_token("repeated_token", "with learned positions")
GALLERY = (
    _ENTRY,
    _repeated_token("repeated_token_llama", "that knows positions by rotation alone", model="organism-llama"),
    of_public_model(_repeated_token("", "that knows positions by rotation alone"), longest=64),
)

SECTION = ReportSection(
    "repeated_token",
    "One token again and again",
    "After n of the same token, is it expected once more? Where positions are known by rotation alone and nothing "
    "stands first, every repeat is the first token to the model, and it cannot count; after a first token, repeats "
    "may come to look like it. Blocks of distinct tokens, repeated to the same length, stand beside.",
    Request.of("repeated_token", members=4, longest=128),
    figures=("log_prob_by_repeats", "norm_by_repeats"),
    order=46,
    quick=Request.of("repeated_token", members=2, longest=48),
)
