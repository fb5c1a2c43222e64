"""Figures of the output layer: how widely tokens can lead, by pool; in two or three dimensions, the hull itself."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp import plots
from interp.figures.common import has, titled

_COLOUR = dict(argmaxable=plots.COLOURS[0], tied=plots.COLOURS[4], unargmaxable=plots.COLOURS[1], undecided=plots.GREY)


def is_argmax(result: xr.Dataset) -> bool:
    """Does a result say of every token whether it can be the arg-max?"""
    return has(result, "verdict", "question", "token") and has(result, "margin", "question", "token")


def is_hull(result: xr.Dataset) -> bool:
    """Can its classes be drawn?"""
    return is_argmax(result) and has(result, "rows", "token", "axis") and result.sizes["axis"] in (2, 3)


def margin_by_kind(result: xr.Dataset) -> go.Figure:
    """By how much each token can lead at most behind the last norm (or at its witness, where there is none), a dot per token."""
    behind = (
        "behind the norm" in result["question"].values
        and np.isfinite(result["margin"].sel(question="behind the norm")).any()
    )
    question = "behind the norm" if behind else "any state"
    margin, codes = (result[n].sel(question=question).values for n in ("margin", "verdict"))
    names = list(map(str, result["verdicts"].values))
    if "member" in result:
        groups = {plots.escaped(p): result["member"].sel(pool=p).values.astype(bool) for p in result["pool"].values}
    else:
        groups = {"all": np.ones(len(margin), bool)}
    figure = go.Figure()
    for code, verdict in enumerate(names):
        for i, (group, of) in enumerate(groups.items()):
            here = of & (codes == code) & np.isfinite(margin)
            if here.any():
                figure.add_box(
                    y=margin[here], x=[group] * int(here.sum()), boxpoints="all", jitter=0.7, pointpos=0, name=verdict, legendgroup=verdict,
                    showlegend=not any(t.name == verdict and t.showlegend for t in figure.data), hoveron="points",
                    customdata=result["token"].values[here], hovertemplate="token %{customdata}: %{y:.3g} logits<extra></extra>",
                    fillcolor="rgba(0,0,0,0)", line={"color": "rgba(0,0,0,0)"}, marker={"color": _COLOUR[verdict], "size": 4, "opacity": 0.5},
                )  # fmt: skip
            if code == 0 and "pool_margin" in result:
                at = result.isel(pool=i)
                mean, low, high = (float(at[n]) for n in ("pool_margin", "pool_margin_low", "pool_margin_high"))
                figure.add_scatter(
                    x=[group], y=[mean], mode="markers", showlegend=i == 0, legendgroup="mean", name="mean, 95% interval",
                    marker={"color": "black", "size": 9, "symbol": "diamond"},
                    error_y={"array": [high - mean], "arrayminus": [mean - low], "width": 6, "color": "black"},
                    hovertemplate=f"mean of {group}: %{{y:.3g}}<extra></extra>",
                )  # fmt: skip
    log = bool(np.nanmin(margin[np.isfinite(margin)], initial=1.0) > 0)
    if behind and "spacing" in result:
        coarse = float(np.nanmedian(result["spacing"].sel(dtype="bfloat16")))
        figure.add_hline(y=coarse, line={"dash": "dot", "color": plots.GREY})
        figure.add_annotation(
            x=1, xref="paper", xanchor="right", y=np.log10(coarse) if log else coarse, yanchor="bottom", showarrow=False,
            text="what bfloat16 tells apart (median)",
        )  # fmt: skip
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    where = "the widest lead behind the last norm, logits" if behind else "lead at the witness, logits"
    return figure.update_layout(
        template=plots.TEMPLATE, yaxis_title=where, legend_y=1.1, **({"yaxis_type": "log", "yaxis_tickvals": ticks, "yaxis_ticktext": [f"{t:g}" for t in ticks]} if log else {}),
        title=titled("How surely can a token be first?", result),
    )  # fmt: skip


def hull(result: xr.Dataset) -> go.Figure:
    """The rows of an output layer of two or three dimensions: corners of their hull can be first, what lies inside never."""
    rows, codes = result["rows"].values, result["verdict"].sel(question="any state").values
    figure = go.Figure()
    flat = rows.shape[1] == 2
    for code, verdict in enumerate(map(str, result["verdicts"].values)):
        here = rows[codes == code]
        if len(here):
            ids = result["token"].values[codes == code]
            kind = go.Scatter if flat else go.Scatter3d
            figure.add_trace(
                kind(
                    **dict(zip("xyz", here.T, strict=False)),
                    mode="markers",
                    name=f"{verdict} ({len(here)})",
                    customdata=ids,
                    marker={"color": _COLOUR[verdict], "size": 7 if flat else 4},
                    hovertemplate="class %{customdata}<extra></extra>",
                )
            )
    if flat:
        figure.update_yaxes(scaleanchor="x")
    return figure.update_layout(
        template=plots.TEMPLATE, title=titled("Which classes are corners of the hull?", result), legend_y=1.1
    )
