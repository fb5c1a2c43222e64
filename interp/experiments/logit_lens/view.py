"""How does a result of `logit_lens` look: after which layer is the repeated token known?"""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType

from interp import plots
from interp.exhibits import LOGIT_LENS, RANKED, Caption, GalleryEntry, ReportSection, metric_of, of_public_model
from interp.request import Request
from interp.tables import Cell, sampled, table_of, title

_PANELS = {"log_prob_after": "log-prob of the right token (nats)", "rank_after": "rank of the right token (0: arg-max)"}
_WIDEST = 8  # depths shown side by side; more are shown below each other


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the log-prob and rank of the right token after each layer (of prompts, the metric).

    Args:
        result: a result of `logit_lens`.

    Returns:
        What rich can print, line by line: means over what context determines, log-probs in nats.

    Example:
        >>> result = interp.run("logit_lens", "wired", "1:65", batch=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:65 | -4.17 (0) | -4.17 (0) | 0.00 (0)
    """
    if "score_after" in result:
        yield title(f"Read from the residual stream: {metric_of(result)}, mean and 95% interval")
        rows = table_of("read after", *map(str, result["pool"].values))
        for depth in result["after"].values:
            at = result["score_after"].sel(after=depth)
            rows.add_row(str(depth), *(sampled(at.sel(pool=pool)) for pool in result["pool"].values))
        yield rows
        return
    yield title("The repeated token, read from the residual stream (mean log-prob in nats, mean rank)")
    lines, columns = ("pool", "after") if result.sizes["after"] <= _WIDEST else ("after", "pool")
    rows = table_of("pool" if lines == "pool" else "read after", *map(str, result[columns].values))
    log_prob, rank = (
        _inducible(result, name).mean(["batch", "position"]).transpose(lines, columns) for name in _PANELS
    )
    for name, nats, ranks in zip(result[lines].values, log_prob.values, rank.values, strict=True):
        rows.add_row(str(name), *map(_nats_and_rank, nats, ranks))
    yield rows


def _nats_and_rank(nats: float, rank: float) -> Cell:
    """A mean log-prob and, in brackets, a mean rank."""
    return Cell(f"{nats:.2f} ({rank:.0f})", {"": nats, "rank": rank})


def _inducible(result: xr.Dataset, name: str) -> xr.DataArray:
    """A variable where context can tell the token."""
    return result[name].where((result["half"] >= 2) & (result["offset"] > 0) & result["tested"])


def score_by_layer(result: xr.Dataset) -> go.Figure | None:
    """Draw the metric of prompts, read after each layer.

    Args:
        result: a result of `logit_lens`.

    Returns:
        Lines with 95% intervals over prompts; None for repeated blocks.

    Source:
        nostalgebraist 2020, interpreting GPT: the logit lens.

    Example:
        >>> result = interp.run("logit_lens", "wired", prompts="blocks:4", metric="probability")
        >>> score_by_layer(result).layout.yaxis.title.text
        'probability of the answer'
    """
    if "score_after" not in result:
        return None
    figure = plots.points(
        *plots.intervals(result["score_after"]),
        over="pool",
        x="after",
        title=plots.titled("When does the model know the answer?", result),
        x_title="residual stream read after",
        y_title=metric_of(result),
    )
    return figure.update_layout(legend_y=1.05)


def lens_by_layer(result: xr.Dataset) -> go.Figure | None:
    """Draw the log-prob and rank of the right token, read after each layer.

    Args:
        result: a result of `logit_lens`.

    Returns:
        Two panels of lines with 95% intervals, over the inducible positions; None for prompts.

    Source:
        nostalgebraist 2020, interpreting GPT: the logit lens.

    Example:
        >>> result = interp.run("logit_lens", "wired", "1:65", batch=2)
        >>> list(lens_by_layer(result).data[0].x)
        ['embed', 'layer 0', 'layer 1']
    """
    if "score_after" in result:
        return None
    figure = make_subplots(1, 2, horizontal_spacing=0.09)
    for column, (name, words) in enumerate(_PANELS.items(), start=1):
        bounds = plots.intervals(_inducible(result, name).mean("position", skipna=True))
        for i, pool in enumerate(plots.labels(result["pool"].values)):
            mean, low, high = (bound.isel(pool=i).values for bound in bounds)
            figure.add_scatter(
                x=result["after"].values,
                y=mean,
                name=pool,
                legendgroup=pool,
                showlegend=column == 1,
                error_y=plots.errors(mean, low, high, width=4),
                mode="lines+markers",
                line={"color": plots.colour(i), "width": 2},
                marker={"size": 8, "symbol": i},
                row=1,
                col=column,
            )
        figure.update_yaxes(title=words, row=1, col=column)
    figure.update_xaxes(type="category", title="residual stream read after")
    if (count := result.sizes["after"]) > _WIDEST:  # of many layers, the number of some
        shown = [0, *range(6, count, 5)]
        names = [str(result["after"].values[i]).removeprefix("layer ") for i in shown]
        figure.update_xaxes(tickvals=shown, ticktext=names, tickangle=0, title="")
        figure.update_xaxes(title="residual stream read after layer", col=1)
    title = plots.titled("When does the model know the repeated token?", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title)


FIGURES = [lens_by_layer, score_by_layer]


_ENTRY = GalleryEntry(
    "logit_lens",
    Request.of("logit_lens"),
    (
        Caption(
            "lens_by_layer",
            "After which layer the model knows the repeated token.",
            f"the logit lens of {LOGIT_LENS}",
        ),
    ),
    "the copying circuit",
    tolerance=RANKED,
    order=80,
)
GALLERY = (_ENTRY, of_public_model(_ENTRY))
PROMPTS_SECTION = ReportSection(
    "lens",
    "When is the answer known?",
    "The answer, read from the residual stream after each layer; the last is the model's own prediction.",
    Request.of("logit_lens"),
    order=10,
)
