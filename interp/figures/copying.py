"""Figures of copying: what the halves of a repeated block, its heads and its training look like."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp import plots
from interp.errors import InterpError
from interp.figures.common import has, like, titled
from interp.statistics import mean_interval


def log_prob_by_position(result: xr.Dataset) -> go.Figure:
    """Mean log-prob of every position with its 95% interval, one colour per pool, the copies marked."""
    values = result["log_prob"].isel(position=slice(1, None))
    intervals = np.stack([mean_interval(values.sel(pool=p).transpose("batch", ...)) for p in values["pool"].values])
    mean, low, high = (like(intervals[:, i], values, "pool position") for i in range(3))
    figure = plots.lines(
        mean, low, high, over="pool", x="position",
        title=titled("Log-prob of each token of a random block and its repeat", result),
        x_title="position in the sequence", y_title="log-prob of the right token (nats)",
    )  # fmt: skip
    half = values["half"].values
    position = values["position"].values
    for copy in np.unique(half):
        start, end = position[half == copy][[0, -1]]
        name = {1: "first half: cannot be known", 2: "second half: a repeat"}.get(int(copy), f"copy {copy}")
        figure.add_annotation(x=(start + end) / 2, y=1, yref="paper", text=name, showarrow=False, yanchor="bottom")
        if copy > 1:
            figure.add_vline(x=start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1})
    return figure.update_layout(legend_y=1.09)


def halves(result: xr.Dataset) -> go.Figure:
    """The article's comparison: mean log-prob of each sequence in its first and in its second half, by pool."""
    values = result["log_prob"].where(result["offset"] >= 0)
    parts = [values.where(result["half"] == 1).mean("position"), values.where(result["half"] >= 2).mean("position")]
    both = xr.concat(parts, dim=xr.DataArray(["first half", "second half"], dims="part", name="part"))
    return plots.strip(
        both, over="pool", group="part", title=titled("The two halves, one dot per sequence", result),
        y_title="mean log-prob of the half (nats)",
    )  # fmt: skip


def head_scores(result: xr.Dataset) -> go.Figure:
    """A layer x head heatmap of each attention score, one row of panels per pool."""
    mean = result["score"].mean("batch", skipna=True)
    title = titled("Where each head looks, over the inducible queries", result)
    return plots.heatmaps(mean, row="pool", column="stripe", title=title, low=0, high=1)


def dose_response(result: xr.Dataset) -> go.Figure:
    """Log-prob of canaries at their second occurrence against the number of times they were trained on.

    Pools that are no doses follow as controls. Raises `InterpError` where there is no dose.
    """
    doses = _doses(result)
    if not doses:
        raise InterpError("this result has no pools dose=N: run repeated_tokens with --pool doses")
    pools = list(map(str, result["pool"].values))
    order = [f"dose={d}" for d in doses] + [p for p in pools if not p.startswith("dose=")]
    names = {"single": "one among ordinary tokens", "inducible": "a block of them"}
    kept = [d for d in names if d in result["definition"].values]
    second = result["summary"].sel(measure="log_prob", part="second", definition=kept, pool=order)
    second = second.assign_coords(pool=[p.removeprefix("dose=") for p in order], definition=[names[d] for d in kept])
    mean, low, high = (second.sel(bound=b) for b in ("mean", "low", "high"))
    return plots.points(
        mean, low, high, over="definition", x="pool", title=titled("How often must a token be seen to be copied?", result),
        x_title="times trained on (dose), and controls", y_title="log-prob, second occurrence (nats)",
    )  # fmt: skip


def training_curve(curve: xr.Dataset) -> go.Figure:
    """Second-half log-prob and the best heads' scores over training: the phase change of induction."""
    figure = go.Figure()
    for i, pool in enumerate(curve["pool"].values):
        series = curve["second_half"].sel(pool=pool)
        figure.add_scatter(x=series["checkpoint"], y=series, name=f"{pool}: second half", line_color=plots.COLOURS[i])
    for i, stripe in enumerate(("induction", "previous"), start=2):
        best = curve["score"].sel(pool="ordinary", stripe=stripe).max(["layer", "head"])
        figure.add_scatter(
            x=best["checkpoint"], y=best, name=f"best {stripe} score", yaxis="y2",
            line={"dash": "dash", "color": plots.COLOURS[i]},
        )  # fmt: skip
    return figure.update_layout(
        template=plots.TEMPLATE, title="How copying appears in training", xaxis_title="optimiser step",
        yaxis_title="log-prob, second half (nats)",
        yaxis2={
            "title": "attention score", "overlaying": "y", "side": "right", "range": [0, 1.05], "showgrid": False,
            "tickmode": "linear", "dtick": 0.2,
        },
        margin={"r": 70},
    )  # fmt: skip


def is_repeated(result: xr.Dataset) -> bool:
    """Is it about repeated sequences, position by position?"""
    return has(result, "log_prob", "pool", "batch", "position") and {"half", "offset"} <= set(result.coords)


def has_doses(result: xr.Dataset) -> bool:
    """Are there pools of at least two doses?"""
    return has(result, "summary", "pool", "measure", "definition", "part", "bound") and len(_doses(result)) > 1


def _doses(result: xr.Dataset) -> list[int]:
    """The doses among the pools, in rising order."""
    if "pool" not in result.coords:
        return []
    names = [str(name) for name in result["pool"].values]
    return sorted(
        int(n.removeprefix("dose=")) for n in names if n.removeprefix("dose=").isdigit() and n.startswith("dose=")
    )
