"""How does a result of `massive_activations` look: which are massive by each rule, where, and what are they worth?"""

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
from interp.exhibits import SUN, Caption, GalleryEntry, ReportSection, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables import number, sampled, table_of, title

_CHANGES = (("massive", "zero"), ("control", "zero"), ("massive", "mean"), ("control", "mean"))


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """The largest activations of each group by both rules, and what is lost without the chosen ones; the verdict."""
    model = provenance(result)["model"]["name"]
    yield title(f"Massive activations in the residual stream of '{model}'")
    names = (
        "largest",
        "times the median",
        "dimension",
        "after layer",
        "position",
        "published",
        "scale-free",
        "place p",
    )
    rows = table_of("sequences", *names)
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        layer, sequence, position = _largest(at)
        most = at["largest"].isel(layer=layer, batch=sequence, position=position)
        times = most / at["median"].isel(layer=layer, batch=sequence)
        dimension = int(at["dimension"].isel(layer=layer, batch=sequence, position=position))
        counts = [number(at["massive"].sel(rule=rule).mean("batch").max(), ".3g") for rule in result["rule"].values]
        p = number(at["place_p"].isel(layer=layer), ".3g")
        places = [number(n, "d") for n in (dimension, layer, position)]
        rows.add_row(str(pool), number(most, ".3g"), number(times, ".3g"), *places, *counts, p)
    yield rows
    yield Text(
        "Published: how many are above 100 and a thousand times the median of the sequence; scale-free: above what "
        f"any of {result.sizes['rotation']} rotations of the stream reaches (false alarms: "
        f"{result.attrs['false_alarms']:.1%}); the most in a sequence, after any layer, eight a state looked at. "
        "Place p: positions shuffled, in that layer."
    )
    if result.attrs["dimensions"]:
        yield from _effects(result)
    if result.attrs["no_text"]:
        yield Text(f"No text: {result.attrs['no_text']}.")
    for line in str(result.attrs["verdict"]).splitlines():
        yield Text(line)


def _largest(at: xr.Dataset) -> tuple[int, int, int]:
    values = np.nan_to_num(at["largest"].transpose("layer", "batch", "position").values)
    layer, sequence, position = np.unravel_index(int(values.argmax()), values.shape)
    return int(layer), int(sequence), int(position)


def _effects(result: xr.Dataset) -> Iterator[RenderableType]:
    said = f"dimensions {result.attrs['dimensions']}, massive by the {result.attrs['rule']} rule"
    yield title(f"Nats lost without them (95% interval over sequences): {said}")
    columns = [f"{which}, {to}" for which, to in _CHANGES]
    rows = table_of("sequences", "log-prob", "where", *columns, words=("where",))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for i, place in enumerate(map(str, result["place_changed"].values)):
            of = at["effect"].sel(place_changed=place)
            cells = [_sampled(of.sel(chosen=which, replacement=to)) for which, to in _CHANGES]
            rows.add_row(
                str(pool) if i == 0 else "", number(at["level"].mean("batch")) if i == 0 else "", place, *cells
            )
    yield rows
    yield Text(
        "Control: size-matched other dimensions. Mean: what they are in other sequences, at sinks "
        "(where one is massive) "
        f"and elsewhere apart. Changed after every layer from {result.attrs['from_layer']} on."
    )


def _sampled(values: xr.DataArray) -> Any:
    kept = values.dropna("batch")
    return sampled(kept) if kept.size else number(np.nan)


def magnitudes_by_layer(result: xr.Dataset) -> go.Figure:
    """The largest magnitude behind each layer, at the first position and elsewhere, and the median; 95% intervals."""
    pools = plots.labels(result["pool"].values)
    figure = make_subplots(
        1, len(pools), column_titles=pools, shared_yaxes=True, horizontal_spacing=0.03, figure=plots.Figure()
    )
    layers = result["layer"].values
    for col in range(len(pools)):
        at = result.isel(pool=col)
        largest = at["largest"].transpose("batch", "layer", "position")
        series = {
            "first position": largest.isel(position=0),
            "largest of the others": largest.isel(position=slice(1, None)).max("position"),
            "median": at["median"].transpose("batch", "layer"),
        }
        for i, (name, values) in enumerate(series.items()):
            mean, low, high = mean_interval(values.dropna("batch").values)
            figure.add_scatter(
                x=layers,
                y=mean,
                name=name,
                legendgroup=name,
                showlegend=col == 0,
                mode="lines+markers",
                line={"color": plots.colour(i), "width": 2},
                marker={"size": 5, "symbol": i},
                error_y=plots.errors(mean, low, high, width=3, thickness=1),
                row=1,
                col=col + 1,
            )
        thousand = 1000 * at["median"].mean("batch").values
        published = np.maximum(thousand, 100.0)
        figure.add_scatter(
            x=layers,
            y=published,
            name="massive, by the published rule",
            legendgroup="rule",
            showlegend=col == 0,
            mode="lines",
            line={"color": plots.GREY, "dash": "dot", "width": 1},
            row=1,
            col=col + 1,
        )
    figure.update_xaxes(title="layer", dtick=1 if len(layers) < 12 else 5)
    figure.update_yaxes(type="log", dtick=1)
    figure.update_yaxes(title="magnitude", col=1)
    title = plots.titled("How large is the largest activation?", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title, height=500, legend_y=1.1)


def magnitudes_by_position(result: xr.Dataset) -> go.Figure:
    """The largest magnitude of a state over its median, by layer and position, as a power of ten (mean)."""
    ratio = (result["largest"] / result["state_median"]).mean("batch", skipna=True)
    ratio = ratio.copy(data=np.log10(ratio.values))
    return plots.heatmaps(
        ratio.transpose("pool", "layer", "position").rename("ratio"),
        column="pool",
        title=plots.titled("Where is the largest activation? Times the median", result),
        low=0,
        high=max(1.0, float(np.nanmax(ratio.values))),
        x="position",
        unit="log10",
    ).update_layout(height=420)


def worth(result: xr.Dataset) -> go.Figure | None:
    """Nats lost where the chosen dimensions, or size-matched others, are set to zero or to their "
    "mean; 95% intervals."""
    if not bool(result["effect"].notnull().any()):
        return None
    pools = plots.labels(result["pool"].values)
    places = list(map(str, result["place_changed"].values))
    figure = make_subplots(
        1, len(places), column_titles=places, shared_yaxes=True, horizontal_spacing=0.03, figure=plots.Figure()
    )
    for col, place in enumerate(places, start=1):
        for which, to in _CHANGES:
            of = result["effect"].sel(place_changed=place, chosen=which, replacement=to)
            ends = [
                mean_interval(of.isel(pool=j).dropna("batch").values)
                for j in range(len(pools))
                if of[j].notnull().any()
            ]
            kept = [name for j, name in enumerate(pools) if of[j].notnull().any()]
            if not kept:
                continue
            mean, low, high = np.stack(ends, 1)
            figure.add_bar(
                x=kept,
                y=mean,
                name=f"{which}, {to}",
                legendgroup=f"{which}, {to}",
                showlegend=col == 1,
                marker={
                    "color": plots.GREY if which == "control" else plots.colour(0),
                    "opacity": 1 if to == "zero" else 0.5,
                    "pattern": {"shape": "" if to == "zero" else "/"},
                },
                error_y=plots.errors(mean, low, high, width=4),
                row=1,
                col=col,
            )
    figure.update_yaxes(title="nats lost", col=1)
    title = plots.titled("What is lost without them?", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title, barmode="group", height=500, legend_y=1.1)


FIGURES = [magnitudes_by_layer, magnitudes_by_position, worth]

_ENTRY = GalleryEntry(
    "massive_activations",
    Request.of("massive_activations", batch=16),
    (
        Caption(
            "magnitudes_by_layer",
            "The largest activation after each layer, at the first position and elsewhere, beside the median.",
            f"the magnitudes by layer of {SUN}",
        ),
        Caption(
            "magnitudes_by_position", "The largest activation over the median of its state, by layer and position."
        ),
        Caption(
            "worth",
            "Nats lost where they, or size-matched others, are set to zero or to their mean.",
            f"the interventions of {SUN}",
        ),
    ),
    "the copying circuit",
    order=90,
)
GALLERY = (_ENTRY, of_public_model(_ENTRY, batch=4))

SECTION = ReportSection(
    "massive",
    "Massive activations",
    "A few activations may be a thousand times as large as others, at fixed dimensions and at the first position. By a "
    "published rule and by one without a scale, whose false alarms are known; and what is lost where they are set to "
    "zero or to their mean, beside size-matched controls.",
    Request.of("massive_activations", batch=16),
    figures=("magnitudes_by_layer", "worth"),
    order=47,
    quick=Request.of("massive_activations", batch=3, length=10, rotations=19),
)
