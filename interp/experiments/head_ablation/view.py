"""How does a result of `head_ablation` look: what is each head worth, alone and with others of its kind?"""

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
from interp.exhibits import OLSSON, Caption, GalleryEntry, ReportSection, metric_of, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables import Cell, largest_head, sampled, strongest_heads, table_of, title

_KIND = {
    "induction": "induction heads",
    "previous": "previous-token heads",
    "duplicate": "duplicate-token heads",
    "current": "current-token heads",
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List what ablating heads costs, alone and together, beside control heads.

    Args:
        result: a result of `head_ablation`.

    Returns:
        What rich can print, line by line: nats with 95% intervals (of prompts, by the metric), and the names of the
        heads.

    Example:
        >>> result = interp.run("head_ablation", "wired", "1:33", batch=2, length=6, draws=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:2]), sep=" | ")
        1:33 | 4.17
    """
    if "metric" in result.attrs:
        yield from _table_of_prompts(result)
        return
    where = provenance(result)
    kind = where["parameters"].get("kind", "mean")
    yield title(f"Nats lost on '{where['model']['name']}' with heads ablated ({kind}), 95% interval over sequences")
    names = {k: [name for name in map(str, result["ranked"].sel(kind=k).values) if name] for k in _kinds(result)}
    columns = [f"{kind} [{len(heads)}]" for kind, heads in names.items()]
    rows = table_of("pool", "gain of the repeat", *columns, "matched controls", "largest single loss")
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        cells = [sampled(at["curve"].sel(kind=kind, ablated=len(heads))) for kind, heads in names.items()]
        random = at["random"].mean("draw", skipna=False)
        most = int(np.flatnonzero(np.isfinite(random.mean("batch").values)).max())
        others = sampled(random.sel(ablated=most))
        others = Cell(f"{others} [{most}]", {**others.values, "heads": most})
        rows.add_row(str(pool), sampled(at["gain"]), *cells, others, largest_head(at["lost"].mean("batch")))
    yield rows
    for kind, heads in names.items():
        yield Text(f"Classified as {kind}, [{len(heads)}] ablated together: {', '.join(heads)}.")
    if "induction" not in names:
        yield Text("No head is classified as an induction head.")
    yield Text(
        "Matched controls: the mean over draws of [n] heads of neither kind. Gain of the repeat: "
        "log-prob in the second copy minus the first."
    )


def _table_of_prompts(result: xr.Dataset) -> Iterator[RenderableType]:
    """What heads are worth on prompts, alone and together, beside size-matched controls."""
    kind = result.attrs["kind"] + (", later attention frozen" if result.attrs.get("frozen") else "")
    yield title(f"Lost with heads ablated ({kind}): {metric_of(result)}, 95% interval over prompts")
    most = int(result["ablated"].values[-1])
    columns = ("without ablation", f"the {most} worst", f"{most} others", "largest single loss")
    rows = table_of("prompts", *columns, words=(columns[-1],))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        random = at["random"].mean("draw", skipna=False).sel(ablated=most)
        worst = strongest_heads(at["lost"].mean("batch"), 5)
        rows.add_row(str(pool), sampled(at["clean"]), sampled(at["curve"].sel(ablated=most)), sampled(random), worst)
    yield rows
    for pool in result["pool"].values:
        halves = [", ".join(filter(None, map(str, row))) for row in result["ranked"].sel(pool=pool).values]
        if all(halves):
            yield Text(f"{pool}: chosen on either half of the prompts and ablated on the other: {'; '.join(halves)}.")
    if result.attrs.get("mean_over") == "prompts":
        yield Text("Prompts differ in length: a head's mean is over all positions of the other prompts but the first.")


def ablated_together(result: xr.Dataset) -> go.Figure | None:
    """Draw what is lost on prompts without the heads that were chosen on the other half of them.

    Args:
        result: a result of `head_ablation`.

    Returns:
        Lines, x number of heads, y the metric lost with 95% intervals, beside size-matched controls; None for repeated
        blocks.

    Example:
        >>> result = interp.run("head_ablation", "wired", prompts="blocks:4", draws=2)
        >>> ablated_together(result).layout.yaxis.title.text
        'lost: log-prob of the answer (nats)'
    """
    if "metric" not in result.attrs:
        return None
    figure = go.Figure()
    for i, pool in enumerate(plots.labels(result["pool"].values)):
        at = result.isel(pool=i)
        for values, words, dash in (
            (at["curve"], "chosen on the other half", "solid"),
            (at["random"].mean("draw", skipna=False), "size-matched heads", "dash"),
        ):
            mean, low, high = mean_interval(values.transpose("batch", "ablated").values)
            figure.add_scatter(
                x=result["ablated"].values,
                y=mean,
                name=f"{pool}, {words}",
                mode="lines+markers",
                line={"color": plots.colour(i), "dash": dash},
                marker={"size": 8, "symbol": i},
                error_y=plots.errors(mean, low, high, width=3),
            )
    figure.update_xaxes(title="heads ablated together", dtick=1)
    figure.update_yaxes(title=f"lost: {metric_of(result)}")
    title = plots.titled("Ablating heads one after another", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title)


def _kinds(result: xr.Dataset) -> list[str]:
    """The kinds of which this model has heads."""
    return [kind for kind in map(str, result["kind"].values) if bool(result["classified"].sel(kind=kind).any())]


def head_losses(result: xr.Dataset) -> go.Figure:
    """Draw what ablating each head costs, layer by head.

    Args:
        result: a result of `head_ablation`.

    Returns:
        Heatmaps in nats (of prompts, in the metric), positive where the head helped, a panel for each pool.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("head_ablation", "wired", "1:33", batch=2, length=6, draws=2)
        >>> (head_losses(result).data[0].z > 1).tolist()
        [[True, False], [True, False]]
    """
    mean = result["lost"].mean("batch").expand_dims(row=[""])
    words = "Lost when one head is ablated" if "metric" in result.attrs else "Nats lost when one head is ablated"
    return plots.diverging_heatmaps(
        mean,
        row="row",
        column="pool",
        title=plots.titled(words, result),
        unit=str(result.attrs.get("unit", "nats")),
    ).update_layout(height=360)


def ablation_curve(result: xr.Dataset) -> go.Figure | None:
    """Draw what is lost as the heads of each kind are ablated together, beside control heads.

    Args:
        result: a result of `head_ablation`.

    Returns:
        Lines, x number of heads, y nats with 95% intervals, a panel for each pool; None for prompts.

    Example:
        >>> result = interp.run("head_ablation", "wired", "1:33", batch=2, length=6, draws=2)
        >>> [line.name for line in ablation_curve(result).data]
        ['induction heads', 'previous-token heads', 'size-matched control heads']
    """
    if "metric" in result.attrs:
        return None
    figure = make_subplots(
        1,
        result.sizes["pool"],
        shared_yaxes=True,
        column_titles=plots.labels(result["pool"].values),
        horizontal_spacing=0.03,
        x_title="heads ablated together",
    )
    for column in range(1, result.sizes["pool"] + 1):
        at = result.isel(pool=column - 1)
        for i, kind in enumerate([*_kinds(result), "random"]):
            random = kind == "random"
            curve = at["random"].mean("draw", skipna=False) if random else at["curve"].sel(kind=kind)
            mean, low, high = mean_interval(curve.transpose("batch", "ablated").values)
            mean[0] = low[0] = high[0] = 0.0  # nothing is ablated
            words = "size-matched control heads" if random else _KIND[kind]
            figure.add_scatter(
                x=result["ablated"].values,
                y=mean,
                name=words,
                legendgroup=kind,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": plots.GREY if random else plots.COLOURS[i], "dash": "dash" if random else "solid"},
                marker={"size": 8, "symbol": i},
                text=[""] * len(mean) if random else ["", *result["ranked"].sel(kind=kind).values],
                error_y=plots.errors(mean, low, high, width=3),
                hovertemplate=f"%{{x}} {words}, the last %{{text}}<br>%{{y:.2f}} nats<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_hline(
            y=float(at["gain"].mean()),
            line={"color": "black", "dash": "dot", "width": 1.5},
            row=1,
            col=column,
            annotation_text="gain of the repeat" if column == 1 else " ",
            annotation_position="bottom right",
            annotation_font={"color": "black", "size": 11},
        )
    figure.update_xaxes(dtick=1 if result.sizes["ablated"] <= 12 else 5)
    figure.update_yaxes(title="nats lost", col=1)
    title = plots.titled("Ablating the heads one after another", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title, legend_y=1.1)


FIGURES = [head_losses, ablation_curve, ablated_together]


def _head_ablation(folder: str, who: str, **options: Any) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("head_ablation", **options),
        (
            Caption(
                "head_losses",
                f"What each head alone is worth to the repeat of {who}, in nats.",
                f"the ablations of single heads of {OLSSON}",
            ),
            Caption(
                "ablation_curve",
                f"The heads of each kind ablated one after another, beside size-matched control heads, on {who}.",
            ),
        ),
        "the copying circuit",
        order=30,
    )


GALLERY = (
    _head_ablation("head_ablation", "blocks, on `organism`"),
    _head_ablation("head_ablation_untied", "blocks, on `organism-untied`", model="organism-untied"),
    _head_ablation("head_ablation_llama", "blocks, on `organism-llama`", model="organism-llama"),
    _head_ablation(
        "head_ablation_mixed",
        "single tokens among ordinary ones, on `organism`",
        pools=("unexposed", "ordinary"),
        mixed=True,
    ),
    of_public_model(_head_ablation("", "blocks, on `smollm2`")),
    GalleryEntry(
        "prompts_head_ablation",
        Request.of("head_ablation", prompts="blocks:ordinary:32", metric="logit_difference"),
        (
            Caption(
                "head_losses", "What each head alone gives to the lead of the answer over its rival, on `organism`."
            ),
            Caption(
                "ablated_together",
                "The worst heads of one half of the prompts ablated together on the other half, "
                "beside size-matched controls.",
            ),
        ),
        "the copying circuit",
        order=31,
    ),
)
PROMPTS_SECTION = ReportSection(
    "needed",
    "Which heads are needed?",
    "What is lost when a head's output is replaced by its mean over the other prompts, alone and together with those "
    "that were chosen on the other half of the prompts, beside size-matched controls.",
    Request.of("head_ablation"),
    order=30,
)
