"""Figures of why copying fails: shares of the deficit, identity, retrieval by layer, and repairs against damage."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from interp import plots
from interp.figures.common import has, titled
from interp.statistics import BOUNDS, mean_interval

_COLOUR = dict(
    zip(("identity", "matching", "content", "readout", "suppression"), plots.COLOURS, strict=False), unexplained=plots.GREY
)  # fmt: skip
_SOME = ("none", "matching", "content", "readout", "suppression", "matching + content + readout + suppression")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")
_NAMES = {"none": "as it is", _SOME[-1]: "all four"}


def deficit_shares(result: xr.Dataset) -> go.Figure:
    """Each stage's share of the deficit, by pool, with 95% intervals over sequences; the line is the whole deficit."""
    figure = go.Figure()
    pools = [plots.escaped(p) for p in result["pool"].values]
    for stage in map(str, result["stage"].values):
        share, low, high = (result[n].sel(stage=stage).values for n in ("share", "share_low", "share_high"))
        figure.add_bar(
            x=pools, y=share, name=stage, marker_color=_COLOUR.get(stage, plots.GREY),
            error_y={"array": high - share, "arrayminus": share - low, "width": 3, "thickness": 1.2, "color": "#444444"},
            hovertemplate=f"%{{x}}, {stage}: %{{y:.2f}} nats<extra></extra>",
        )  # fmt: skip
    deficit = result["deficit"].values
    figure.add_scatter(
        x=pools, y=deficit, mode="markers", name="the whole deficit",
        marker={"symbol": "line-ew", "size": 38, "line": {"width": 2, "color": "black"}},
        error_y={"array": result["deficit_high"].values - deficit, "arrayminus": deficit - result["deficit_low"].values, "width": 5, "color": "black"},
        hovertemplate="%{x}: %{y:.2f} nats in all<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(type="category")
    return figure.update_layout(
        template=plots.TEMPLATE, barmode="group", bargap=0.25, yaxis_title="nats lacking of ordinary tokens", legend_y=1.1,
        title=titled("Why are these tokens not copied?", result),
    )  # fmt: skip


def identity_decomposition(result: xr.Dataset) -> go.Figure:
    """-log p(t) as -log p(one of its near-duplicates) and -log p(t | one of them), with repairs; paired: ordinary tokens."""
    pools = result["pool"].values
    wide = min(3, len(pools))
    high = -(-len(pools) // wide)
    size = 260 * high + 110 * (high - 1)  # pixels from the first row's top to the last one's axis
    figure = make_subplots(
        high, wide, subplot_titles=[plots.escaped(p) for p in pools], shared_yaxes="all", horizontal_spacing=0.03,
        vertical_spacing=110 / size,
    )  # fmt: skip
    names = [*_SOME, "paired"]
    for i, pool in enumerate(pools):
        value = result["value"].sel(pool=pool)
        together = -value.sel(quantity="cluster", combination=names).values
        rest = -value.sel(quantity="log_prob", combination=names).values - together
        for part, words, colour in (
            (together, "that one of its near-duplicates comes", plots.COLOURS[0]), (rest, "which of them", plots.COLOURS[1]),
        ):  # fmt: skip
            figure.add_bar(
                x=[_NAMES.get(n, n) for n in names], y=part, name=words, legendgroup=words, showlegend=i == 0, marker_color=colour,
                row=i // wide + 1, col=i % wide + 1, hovertemplate=f"%{{x}}: %{{y:.2f}} nats, {words}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(title="surprise (nats)", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE, barmode="stack", legend_y=1 + 30 / size, height=size + 220, margin={"t": 110, "b": 110},
        title=titled("What does the model not know, with which repair?", result),
    )  # fmt: skip


def retrieval_by_layer(result: xr.Dataset) -> go.Figure:
    """How often the residual stream says which token it is about, by depth: at its source, and where it is predicted."""
    places = list(map(str, result["place"].values))
    words = {"source": "at the token itself", "prediction": "where it is predicted"}
    figure = make_subplots(
        1, len(places), shared_yaxes=True, horizontal_spacing=0.06, column_titles=[words.get(p, p) for p in places]
    )
    pools = list(map(str, result["pool"].values))
    many = len(pools) > 3
    colours = plots.COLOURS if len(pools) <= len(plots.COLOURS) else sample_colorscale("Viridis", len(pools))
    for column, place in enumerate(places, start=1):
        for i, pool in enumerate(pools):
            for role, dash in (("ordinary", "dot"), ("pool", "solid")):
                whose = f"{plots.escaped(pool)}: as many ordinary tokens"
                # one name for the controls of many pools
                name = plots.escaped(pool) if role == "pool" else "as many ordinary tokens" if many else whose
                colour = plots.GREY if many and role != "pool" else colours[i]
                figure.add_scatter(
                    x=result["depth"].values, y=result["retrieval"].sel(pool=pool, role=role, place=place, way="fitted").values,
                    mode="lines+markers", name=name, legendgroup=name, showlegend=column == 1 and (role == "pool" or not many or i == 0),
                    line={"color": colour, "dash": dash}, marker={"size": 8, "symbol": i}, row=1, col=column,
                    hovertemplate=f"{name if role == 'pool' else whose}, %{{x}}: %{{y:.0%}}<extra></extra>",
                )  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(title="tokens told apart", col=1)
    beside = {"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"}
    return figure.update_layout(
        template=plots.TEMPLATE, legend=beside if many else {"y": 1.12},
        title=titled("Where is it known which token it is?", result),
    )  # fmt: skip


def repair_damage(result: xr.Dataset) -> go.Figure:
    """Copying recovered by rewriting rows, against what it does to predictions on ordinary text."""
    figure = go.Figure()
    several = len(result["pool"]) > 1
    for i, pool in enumerate(result["pool"].values):
        at = result.sel(pool=pool)
        damage, low, high = mean_interval(at["damage"].transpose("window", "repair").values)
        for k, repair in enumerate(map(str, at["repair"].values)):
            mean, least, most = (float(at["recovered"].sel(repair=repair, bound=b)) for b in BOUNDS)
            name = f"{repair}, {plots.escaped(pool)}" if several else repair
            colour = plots.GREY if repair == "none" else plots.COLOURS[(k - 1) % len(plots.COLOURS)]
            figure.add_scatter(
                x=[damage[k]], y=[mean], mode="markers", name=name, marker={"size": 11, "symbol": _SYMBOLS[(k + i) % len(_SYMBOLS)], "color": colour},
                error_x={"array": [high[k] - damage[k]], "arrayminus": [damage[k] - low[k]], "width": 3, "thickness": 1},
                error_y={"array": [most - mean], "arrayminus": [mean - least], "width": 3, "thickness": 1},
                hovertemplate=f"{name}: %{{y:.0%}} recovered, %{{x:.4f}} nats<extra></extra>",
            )  # fmt: skip
    for y, words in ((0, "as it was"), (1, "as ordinary tokens")):
        figure.add_hline(
            y=y, line={"color": plots.GREY, "dash": "dot"}, annotation_text=words, annotation_position="bottom right",
            annotation_font={"color": plots.GREY, "size": 11},
        )  # fmt: skip
    figure.update_yaxes(tickformat=".0%")
    return figure.update_layout(
        template=plots.TEMPLATE, xaxis_title="damage: KL divergence on ordinary text (nats per token)", yaxis_title="copying recovered",
        title=titled("Rewriting the rows: copying recovered against damage", result),
    )  # fmt: skip


def is_attributed(result: xr.Dataset) -> bool:
    """Does it hold shares of a deficit?"""
    return has(result, "share", "pool", "stage") and has(result, "value", "pool", "combination", "quantity")


def is_repaired(result: xr.Dataset) -> bool:
    """Does it hold what repairs of rows recover and damage?"""
    return has(result, "recovered", "pool", "repair") and has(result, "damage", "pool", "repair", "window")
