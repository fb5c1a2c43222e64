"""The figures of several models side by side, and of the checkpoints of one training run."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp import plots
from interp.figures.common import has
from interp.statistics import BOUNDS


def is_comparison(result: xr.Dataset) -> bool:
    """Does a result hold several models side by side?"""
    return "missing" in result and has(result, "copied", "model", "pool", "bound")


def is_training(result: xr.Dataset) -> bool:
    """Are these checkpoints of one model, each with its step?"""
    if not is_comparison(result):
        return False
    steps = result["step"].values
    return len(set(result["of"].values)) == 1 and bool(np.isfinite(steps).all()) and len(set(steps)) == len(steps)


def side_by_side(result: xr.Dataset) -> go.Figure:
    """What is copied, by pool, and why the rest is not, in nats, per model."""
    with_causes = "share" in result and bool(result["deficit"].notnull().any())
    worst = str(result["deficit"].sel(bound="mean").mean("model").idxmax("pool").values) if with_causes else ""
    titles = ["log-prob in the second copy", f"what a single token of {plots.escaped(worst)} lacks, by cause"]
    figure = make_subplots(
        2 if with_causes else 1, 1, subplot_titles=titles if with_causes else titles[:1], vertical_spacing=0.22
    )
    models = [plots.escaped(m) for m in result["model"].values]
    for i, pool in enumerate(map(str, result["pool"].values)):
        if not result["copied"].sel(pool=pool).notnull().any():
            continue
        bar = _bar(models, result["copied"].sel(pool=pool), plots.escaped(pool), plots.COLOURS[i % 6])
        figure.add_trace(bar.update(legend="legend"), row=1, col=1)
    if with_causes:
        for i, stage in enumerate(map(str, result["stage"].values)):
            colour = plots.GREY if stage == "unexplained" else plots.COLOURS[i % 6]
            bar = _bar(models, result["share"].sel(pool=worst, stage=stage), stage, colour)
            figure.add_trace(bar.update(legend="legend2"), row=2, col=1)
    figure.update_yaxes(title_text="nats")
    return figure.update_layout(
        template=plots.TEMPLATE, barmode="group", title="Models side by side", margin={"t": 90, "r": 150},
        height=700 if with_causes else plots.HEIGHT,
        legend={"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"},
        legend2={"orientation": "v", "x": 1.01, "y": 0.39, "yanchor": "top"},
    )  # fmt: skip


def over_training(result: xr.Dataset) -> go.Figure:
    """Over checkpoints: what is copied, the best heads beside the same without a repeat, and how many tokens look under-trained."""
    result = result.sortby("step")
    steps = [f"{step:g}" for step in result["step"].values]
    rows = [("copied", "nats"), ("score", "attention"), ("under_trained", "tokens")]
    rows = [(name, unit) for name, unit in rows if name in result]
    titles = {
        "copied": "log-prob in the second copy", "score": "score of the best head (dotted: without a repeat)",
        "under_trained": "tokens called under-trained",
    }  # fmt: skip
    figure = make_subplots(
        len(rows), 1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=[titles[name] for name, _ in rows]
    )
    colours = cycle(plots.COLOURS)
    for at, (name, unit) in enumerate(rows, start=1):
        figure.update_yaxes(title_text=unit, row=at, col=1)
        over = {"copied": "pool", "score": "kind", "under_trained": "set"}[name]
        shown = ("induction", "previous") if over == "kind" else result[over].values
        for entry in shown:
            values = result[name].sel({over: entry})
            if not values.notnull().any():
                continue
            colour = next(colours)
            line = _line(steps, values, plots.escaped(entry), colour)
            figure.add_trace(line.update(legend=f"legend{at if at > 1 else ''}"), row=at, col=1)
            if over == "kind":
                null = result["without_repeat"].sel(kind=entry).values
                figure.add_scatter(
                    x=steps, y=null, mode="lines", line={"color": colour, "dash": "dot"}, showlegend=False,
                    name=f"{entry}, without a repeat", row=at, col=1,
                )  # fmt: skip
    figure.update_xaxes(type="category", showticklabels=True)
    figure.update_xaxes(title_text="training step", row=len(rows), col=1)
    name = plots.escaped(result["of"].values[0])
    tops = [figure.get_subplot(at, 1).yaxis.domain[1] for at in range(1, len(rows) + 1)]
    legends = {
        f"legend{i + 1 if i else ''}": {"orientation": "v", "x": 1.01, "y": top, "yanchor": "top"}
        for i, top in enumerate(tops)
    }
    return figure.update_layout(
        template=plots.TEMPLATE, title=f"Copying and glitch tokens over the training of {name}",
        height=160 + 220 * len(rows), margin={"t": 90, "r": 150}, **legends,
    )  # fmt: skip


def _bounds(values: xr.DataArray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The means, and how far the interval reaches up and down."""
    if "bound" not in values.dims:
        return values.values, None, None
    mean, low, high = (values.sel(bound=b).values for b in BOUNDS)
    return mean, high - mean, mean - low


def _bar(x: list[str], values: xr.DataArray, name: str, colour: str) -> go.Bar:
    mean, up, down = _bounds(values)
    return go.Bar(
        x=x,
        y=mean,
        name=name,
        marker_color=colour,
        error_y={"array": up, "arrayminus": down, "width": 3, "color": plots.GREY},
    )


def _line(x: list[str], values: xr.DataArray, name: str, colour: str) -> go.Scatter:
    mean, up, down = _bounds(values)
    return go.Scatter(
        x=x, y=mean, name=name, mode="lines+markers", line={"color": colour, "width": 2},
        error_y={"array": up, "arrayminus": down, "width": 4} if up is not None else None,
    )  # fmt: skip
