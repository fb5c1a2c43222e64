"""How does a labelled array become a figure? DataArray in, `go.Figure` out; no model, no torch.

One template for all: colours that colour-blind readers can distinguish (Okabe and Ito 2008), text and grid in greys
that are legible on light and dark pages, no background.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import get_colorscale
from plotly.exceptions import PlotlyError
from plotly.subplots import make_subplots

from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables import shortened

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"
DIVERGING = "RdBu_r"
HEIGHT = 480
_GRID = "rgba(128,128,128,0.25)"
_CLEAR = "rgba(0,0,0,0)"
_LONG = 40  # characters of a name, such as a model's in a title or a pool's in a legend

WIDTH = 900  # default width of an image

TEMPLATE = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"color": GREY, "size": 13, "family": "system-ui, sans-serif"},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "xaxis": {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY},
        "yaxis": {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY},
        "modebar": {"bgcolor": _CLEAR, "color": _GRID, "activecolor": GREY},
        "hoverlabel": {"font": {"family": "ui-monospace, monospace"}},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        "title": {"x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 17}},
        "margin": {"l": 70, "r": 30, "t": 110, "b": 60},
        "height": HEIGHT,
    }
)


@takes_what_it_says
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
    _check_dims(mean, over, x)
    figure = Figure()
    xs = ticks(mean[x])
    for i, name in enumerate(labels(mean[over].values)):
        middle = mean.isel({over: i})
        # without an interval, the shade has no width: a gap would break it
        upper, lower = (end.isel({over: i}).fillna(middle).values for end in (high, low))
        figure.add_scatter(
            x=[*xs, *xs[::-1]],
            y=[*upper, *lower[::-1]],
            fill="toself",
            fillcolor=_faint(colour(i)),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
        figure.add_scatter(
            x=xs,
            y=middle.values,
            mode="lines+markers",
            line={"color": colour(i), "width": 2},
            marker={"size": 5, "symbol": i},
            name=name,
            legendgroup=name,
        )
    return _titled(figure, title, x_title, y_title)


@takes_what_it_says
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
    _check_dims(mean, over, x)
    figure = Figure()
    for i, name in enumerate(labels(mean[over].values)):
        at = {over: i}
        figure.add_scatter(
            x=labels(mean[x].values),
            y=mean.isel(at).values,
            name=name,
            mode="lines+markers",
            line={"color": colour(i), "width": 2},
            marker={"size": 8, "symbol": i},
            error_y=errors(mean.isel(at).values, low.isel(at).values, high.isel(at).values, width=4),
        )
    figure.update_xaxes(type="category")
    return _titled(figure, title, x_title, y_title)


@takes_what_it_says
def diverging_heatmaps(
    values: xr.DataArray,
    *,
    row: str | None = None,
    column: str | None = None,
    title: str,
    x: str = "head",
    y: str = "layer",
    unit: str = "score",
    least: float = 1e-3,
) -> go.Figure:
    """`heatmaps` of numbers with a meaningful zero: white is zero, and the colour scale is symmetric.

    Args:
        values: as `heatmaps` takes them.
        row: the dimension that names the rows of panels.
        column: the dimension that names the columns of panels.
        title: of the figure.
        x: the dimension across each panel.
        y: the dimension down each panel.
        unit: of the values, shown on the colour bar.
        least: the smallest range of the colour scale, either side of zero.

    Returns:
        A figure with one panel for each pair of a row and a column.
    """
    most = max(float(np.nan_to_num(np.abs(values.values)).max(initial=0.0)), least)
    return heatmaps(
        values, row=row, column=column, title=title, low=-most, high=most, x=x, y=y, unit=unit, colours=DIVERGING
    )


@takes_what_it_says
def heatmaps(
    values: xr.DataArray,
    *,
    row: str | None = None,
    column: str | None = None,
    title: str,
    low: float,
    high: float,
    x: str = "head",
    y: str = "layer",
    unit: str = "score",
    colours: str = "Viridis",
) -> go.Figure:
    """A grid of y by x heatmaps on one colour scale.

    Args:
        values: an array with the dimensions `y`, `x`, `row` and `column`.
        row: the dimension that names the rows of panels; None for one row.
        column: the dimension that names the columns of panels; None for one column.
        title: of the figure.
        low: the value at the lower end of the colour scale.
        high: the value at the upper end.
        x: the dimension across each panel.
        y: the dimension down each panel.
        unit: of the values, shown on the colour bar.
        colours: the name of a plotly colour scale.

    Returns:
        A figure with one panel for each pair of a row and a column.
    """
    _check_dims(values, row, column, y, x)
    try:
        get_colorscale(colours)
    except PlotlyError as error:
        raise InterpError(
            f"unknown colour scale '{colours}': use one of plotly's, such as Viridis or RdBu_r"
        ) from error
    grid = values.transpose(*(dim for dim in (row, column) if dim), y, x).values
    rows, columns = (labels(values[dim].values) if dim else [""] for dim in (row, column))
    grid = grid.reshape(len(rows), len(columns), *grid.shape[-2:])
    figure = make_subplots(
        len(rows),
        len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=columns if column else None,
        row_titles=rows if len(rows) > 1 else None,
        horizontal_spacing=0.1 / max(5, len(columns)),
        vertical_spacing=0.12 / len(rows),
        x_title=x,
        y_title=y,
        figure=Figure(),
    )
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            where = ", ".join(name for name, dim in ((r, row), (c, column)) if dim)
            figure.add_heatmap(
                z=grid[i, j],
                x=ticks(values[x]),
                y=ticks(values[y]),
                coloraxis="coloraxis",
                hovertemplate=f"{where}<br>{y} %{{y}}, {x} %{{x}}: %{{z:.3f}} {unit}<extra></extra>",
                row=i + 1,
                col=j + 1,
            )
    figure.update_layout(
        coloraxis={"colorscale": colours, "cmin": low, "cmax": high, "colorbar": {"title": unit, "thickness": 14}},
        template=TEMPLATE,
        title=title,
        height=150 + 170 * len(rows),
        margin={"l": 90},
    )
    figure.update_yaxes(autorange="reversed", dtick=1 if values.sizes[y] <= 12 else 4, showgrid=False)
    figure.update_xaxes(dtick=1 if values.sizes[x] <= 8 else 4 if values.sizes[x] <= 32 else 10, showgrid=False)
    return figure


@takes_what_it_says
def strip(values: xr.DataArray, *, over: str, group: str, title: str, y_title: str) -> go.Figure:
    """Every single value as a dot, jittered, by the categories of `group`, one colour per entry of `over`."""
    _check_dims(values, over, group, others=True)
    figure = Figure()
    for i, name in enumerate(labels(values[over].values)):
        for j, category in enumerate(labels(values[group].values)):
            dots = values.isel({over: i, group: j}).values.ravel()
            figure.add_box(
                y=dots,
                x=[category] * len(dots),
                **scattered(jitter=0.6),
                marker={"color": colour(i), "size": 5, "opacity": 0.6},
                name=name,
                legendgroup=name,
                offsetgroup=name,
                showlegend=j == 0,
            )
    figure.update_layout(boxmode="group")
    return _titled(figure, title, "", y_title)


class Figure(go.Figure):
    """A plotly figure whose images are wide enough for its titles and as high as its layout says; on a page it fits the
    page.
    """

    def to_image(self, *args: Any, **kwargs: Any) -> bytes:
        """An image, as plotly makes it, 900 pixels wide unless asked otherwise."""
        return super().to_image(*args, **self._sized(args, kwargs))

    def write_image(self, *args: Any, **kwargs: Any) -> None:
        """Write an image, as plotly does, 900 pixels wide unless asked otherwise."""
        super().write_image(*args, **self._sized(args[1:], kwargs))

    def _sized(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) < 2 and self.layout.width is None:  # the width comes after the format
            kwargs.setdefault("width", WIDTH)
        if len(args) < 3:
            kwargs.setdefault("height", self.layout.height or HEIGHT)
        return kwargs


@takes_what_it_says
def intervals(values: xr.DataArray, over: str = "batch") -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The mean over a dimension of samples and the ends of its interval, each with the remaining dimensions."""
    if over not in values.dims:
        raise InterpError(
            f"'{values.name}' has no dimension '{over}': it has {', '.join(map(str, values.dims)) or 'none'}"
        )
    samples = values.transpose(over, ...)
    mean, low, high = (samples.isel({over: 0}, drop=True).copy(data=part) for part in mean_interval(samples.values))
    return mean, low, high


def errors(mean: Any, low: Any, high: Any, **style: Any) -> dict[str, Any]:
    """Plotly's error bars from the ends of an interval."""
    return {"array": high - mean, "arrayminus": mean - low, **style}


def scattered(jitter: float) -> dict[str, Any]:
    """Arguments that turn plotly's box plot into a cloud of dots."""
    unseen = {"fillcolor": _CLEAR, "line": {"color": _CLEAR}}
    return {"boxpoints": "all", "jitter": jitter, "pointpos": 0, "hoveron": "points", **unseen}


def colour(i: int) -> str:
    """The colour of the i-th series."""
    return COLOURS[i % len(COLOURS)]


def labels(names: Iterable[object]) -> list[str]:
    """Names (of pools, say) for titles, legends and axes: safe in plotly's markup, short, and still distinct."""
    return [escaped(name) for name in shortened(map(str, names), _LONG)]


def ticks(coordinate: xr.DataArray) -> np.ndarray | list[str]:
    """The positions of a coordinate's entries on an axis: numbers and times as they are, everything else as labels."""
    return coordinate.values if coordinate.dtype.kind in "iufM" else labels(coordinate.values)


@takes_what_it_says
def head_names(values: xr.DataArray) -> list[str]:
    """`L0H0`, `L0H1`, ... for every head of an array, layer by layer."""
    _check_dims(values, "layer", "head", others=True)
    return [f"L{layer}H{head}" for layer in values["layer"].values for head in values["head"].values]


@takes_what_it_says
def titled(text: str, result: xr.Dataset) -> str:
    """A title followed by the model's name, if known; for a long path, its last part."""
    try:
        name = str(provenance(result)["model"]["name"])
    except (InterpError, KeyError, TypeError):
        return text
    return f"{text} · {escaped(name if len(name) <= _LONG else Path(name).name)}"


def token_label(text: str, most: int | None = None) -> str:
    """A token's text, safe inside plotly's markup, its spaces visible, cut to `most` characters."""
    text = str(text)
    text = text if most is None or len(text) <= most else text[: most - 1] + "\u2026"
    return escaped(text).replace(" ", "\u2423") or "(empty)"


def escaped(text: object) -> str:
    """A text, safe inside plotly's markup."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _check_dims(values: xr.DataArray, *dims: str | None, others: bool = False) -> None:
    """Raise `InterpError` where an array lacks a dimension to be drawn, or has others that are not drawn."""
    wanted = [dim for dim in dims if dim is not None]
    lacking = [dim for dim in wanted if dim not in values.dims]
    if lacking:
        have = ", ".join(map(str, values.dims))
        raise InterpError(f"'{values.name}' has no dimension '{lacking[0]}': it has {have or 'none'}")
    for dim in wanted:
        if dim not in values.coords:
            raise InterpError(f"dimension '{dim}' of '{values.name}' has no coordinate: give one, as interp.label does")
    left = [str(dim) for dim in values.dims if dim not in wanted]
    if left and not others:
        raise InterpError(
            f"'{values.name}' has a dimension '{left[0]}' that is not drawn: average over it, choose an entry, or draw "
            "it in rows or columns"
        )


def _titled(figure: go.Figure, title: str, x_title: str, y_title: str) -> go.Figure:
    return figure.update_layout(template=TEMPLATE, title=title, xaxis_title=x_title, yaxis_title=y_title)


def _faint(colour: str) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.2)"
