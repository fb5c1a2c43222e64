"""How does a labelled array become a figure? DataArray in, `go.Figure` out; no model, no torch.

One template for all: colours that colour-blind readers tell apart (Okabe and Ito 2008), text and grid in
greys that read on a light and on a dark page, no background of its own.
"""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"
DIVERGING = "RdBu_r"
HEIGHT = 480
_GRID = "rgba(128,128,128,0.25)"

TEMPLATE = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"color": GREY, "size": 13, "family": "system-ui, sans-serif"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY},
        "yaxis": {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": _GRID, "activecolor": GREY},
        "hoverlabel": {"font": {"family": "ui-monospace, monospace"}},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        "title": {"x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 17}},
        "margin": {"l": 70, "r": 30, "t": 110, "b": 60},
        "height": HEIGHT,
    }
)


def lines(
    mean: xr.DataArray,
    low: xr.DataArray,
    high: xr.DataArray,
    *,
    over: str,
    x: str,
    title: str,
    x_title: str,
    y_title: str,
) -> go.Figure:
    """One line per entry of dimension `over` along `x`, its interval shaded, one colour each."""
    figure = go.Figure()
    for i, name in enumerate(mean[over].values):
        colour = COLOURS[i % len(COLOURS)]
        at = {over: name}
        xs = mean[x].values
        upper, lower = high.sel(at).values, low.sel(at).values
        figure.add_scatter(
            x=[*xs, *xs[::-1]], y=[*upper, *lower[::-1]], fill="toself", fillcolor=_faint(colour),
            line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=str(name),
        )  # fmt: skip
        figure.add_scatter(
            x=xs, y=mean.sel(at).values, mode="lines+markers", line={"color": colour, "width": 2},
            marker={"size": 5, "symbol": i}, name=str(name), legendgroup=str(name),
        )  # fmt: skip
    return _titled(figure, title, x_title, y_title)


def points(
    mean: xr.DataArray,
    low: xr.DataArray,
    high: xr.DataArray,
    *,
    over: str,
    x: str,
    title: str,
    x_title: str,
    y_title: str,
) -> go.Figure:
    """One series per entry of `over` against the categories of `x`, with error bars and joined by lines."""
    figure = go.Figure()
    for i, name in enumerate(mean[over].values):
        at = {over: name}
        centre = mean.sel(at).values
        figure.add_scatter(
            x=[str(v) for v in mean[x].values], y=centre, name=str(name), mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "width": 2}, marker={"size": 8, "symbol": i},
            error_y={"array": high.sel(at).values - centre, "arrayminus": centre - low.sel(at).values, "width": 4},
        )  # fmt: skip
    figure.update_xaxes(type="category")
    return _titled(figure, title, x_title, y_title)


def heatmaps(
    values: xr.DataArray,
    *,
    row: str,
    column: str,
    title: str,
    low: float,
    high: float,
    x: str = "head",
    y: str = "layer",
    unit: str = "score",
    colours: str = "Viridis",
) -> go.Figure:
    """A grid of y by x heatmaps on one colour scale, rows and columns of panels named by their dimensions."""
    rows, columns = values[row].values, values[column].values
    figure = make_subplots(
        len(rows), len(columns), shared_xaxes=True, shared_yaxes=True, column_titles=[escaped(c) for c in columns],
        row_titles=[escaped(r) for r in rows] if len(rows) > 1 else None, horizontal_spacing=0.1 / max(5, len(columns)),
        vertical_spacing=0.12 / len(rows), x_title=x, y_title=y,
    )  # fmt: skip
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            panel = values.sel({row: r, column: c}).transpose(y, x)
            figure.add_heatmap(
                z=panel.values, x=panel[x].values, y=panel[y].values, coloraxis="coloraxis",
                hovertemplate=f"{escaped(r)}, {escaped(c)}<br>{y} %{{y}}, {x} %{{x}}: %{{z:.3f}} {unit}<extra></extra>",
                row=i + 1, col=j + 1,
            )  # fmt: skip
    figure.update_layout(
        coloraxis={"colorscale": colours, "cmin": low, "cmax": high, "colorbar": {"title": unit, "thickness": 14}},
        template=TEMPLATE, title=title, height=150 + 170 * len(rows), margin={"l": 90},
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", dtick=1 if values.sizes[y] <= 12 else 4, showgrid=False)
    figure.update_xaxes(dtick=1 if values.sizes[x] <= 8 else 4 if values.sizes[x] <= 32 else 10, showgrid=False)
    return figure


def strip(values: xr.DataArray, *, over: str, group: str, title: str, y_title: str) -> go.Figure:
    """Every single value as a dot, jittered, by the categories of `group`, one colour per entry of `over`."""
    figure = go.Figure()
    for i, name in enumerate(values[over].values):
        part = values.sel({over: name})
        for j, category in enumerate(part[group].values):
            dots = part.sel({group: category}).values.ravel()
            figure.add_box(
                y=dots, x=[str(category)] * len(dots), boxpoints="all", jitter=0.6, pointpos=0,
                fillcolor="rgba(0,0,0,0)", line={"color": "rgba(0,0,0,0)"}, hoveron="points",
                marker={"color": COLOURS[i % len(COLOURS)], "size": 5, "opacity": 0.6}, name=str(name),
                legendgroup=str(name), offsetgroup=str(name), showlegend=j == 0,
            )  # fmt: skip
    figure.update_layout(boxmode="group")
    return _titled(figure, title, "", y_title)


def escaped(text: object) -> str:
    """A text, safe inside plotly's markup."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _titled(figure: go.Figure, title: str, x_title: str, y_title: str) -> go.Figure:
    return figure.update_layout(template=TEMPLATE, title=title, xaxis_title=x_title, yaxis_title=y_title)


def _faint(colour: str) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.2)"
