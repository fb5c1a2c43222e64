"""The figure of several models side by side."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp import plots
from interp.figures.common import has


def is_comparison(result: xr.Dataset) -> bool:
    """Does a result hold several models side by side?"""
    return has(result, "copied", "model", "pool")


def side_by_side(result: xr.Dataset) -> go.Figure:
    """What is copied, by pool, and why the rest is not, in nats, per model."""
    models = [plots.escaped(m) for m in result["model"].values]
    figure = make_subplots(
        1,
        2,
        subplot_titles=["log-prob in the second copy", "what single tokens lack, by cause"],
        column_widths=[0.4, 0.6],
    )
    for i, pool in enumerate(map(str, result["pool"].values)):
        figure.add_bar(
            x=models,
            y=result["copied"].sel(pool=pool).values,
            name=plots.escaped(pool),
            marker_color=plots.COLOURS[i % 6],
            legend="legend",
        )
    worst = str(result["deficit"].mean("model").idxmax("pool").values)
    for i, stage in enumerate(map(str, result["stage"].values)):
        colour = plots.GREY if stage == "unexplained" else plots.COLOURS[i % 6]
        shares = result["share"].sel(pool=worst, stage=stage).values
        figure.add_bar(x=models, y=shares, name=stage, marker_color=colour, row=1, col=2, legend="legend2")
    figure.update_yaxes(title_text="nats", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE, barmode="group", title="Models side by side", margin={"t": 130},
        legend={"x": 0, "y": 1.22}, legend2={"x": 0.44, "y": 1.22, "orientation": "h"},
    )  # fmt: skip
