"""How does a labelled array become a figure? DataArray in, `go.Figure` out; no model, no torch.

One template for all: colours that colour-blind readers can distinguish (Okabe and Ito 2008), text and grid in greys
that are legible on light and dark pages, no background. For print, `paper` restyles any
figure at the width of a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
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

# for print: black on white, thin lines, ticks and titles close to the axes
PAPER = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"color": "black", "family": "Helvetica, Arial, Liberation Sans, sans-serif"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        **{
            axis: {
                "gridcolor": "#e6e6e6",
                "zerolinecolor": "#bdbdbd",
                "linecolor": "black",
                "ticks": "outside",
                "ticklen": 3,
                "tickcolor": "black",
                "title": {"standoff": 3},
                "automargin": True,
            }
            for axis in ("xaxis", "yaxis")
        },
        "legend": {
            "orientation": "h",
            "yanchor": "bottom",
            "x": 0,
            "bgcolor": _CLEAR,
            "itemwidth": 30,
            "tracegroupgap": 0,
        },
        "title": {"x": 0, "xref": "container", "y": 1, "yanchor": "top", "pad": {"t": 4, "l": 4}},
    }
)
COLUMN = 3.3  # inches: one column of two on a page
_INCH, _POINT = 96, 96 / 72  # pixels
_GLYPH = 0.53  # mean width of a character, in sizes of the font
_SHARED = -28  # from the panels down to a title that all of their x axes share
_LINE = 1.3  # height of a line, in sizes of the font


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
            style = {"name": name, "legendgroup": name, "offsetgroup": name, "showlegend": j == 0}
            add_dots(figure, dots, category, i, **style)
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
def paper(
    figure: go.Figure,
    *,
    width: float = COLUMN,
    height: float | None = None,
    points: float = 8.0,
    title: bool = True,
    template: go.layout.Template | None = None,
) -> Figure:
    """The same figure for print: texts of one size, wrapped to fit, black on white. No number is changed.

    Args:
        figure: any figure; it stays as it is.
        width: inches; 3.3 is a column of a two-column page, 6.9 the page.
        height: inches; None: half of what the panels are high on a screen, and what the texts need.
        points: the size of all texts, and of titles one more.
        title: whether the title stays; captions often say it.
        template: laid over `PAPER`, for fonts and colours of your own.

    Returns:
        A figure `width` inches wide at 96 pixels an inch: SVG and PDF come out in this size, PNG needs a `scale`
        (`scale=300 / 96` for 300 dots an inch).

    Raises:
        InterpError: sizes that are not positive.

    Example:
        >>> import xarray as xr
        >>> share = xr.DataArray([[0.1, 0.9]], dims=["pool", "copy"], coords={"pool": ["ordinary"], "copy": [1, 2]})
        >>> words = {"title": "Right", "x_title": "copy", "y_title": "share"}
        >>> paper(points(share, share, share, over="pool", x="copy", **words)).layout.width
        317
    """
    for name, size in (("width", width), ("height", height), ("points", points)):
        if size is not None and not size > 0:
            raise InterpError(f"{name} {size}: use a positive number")
    restyled = Figure(figure)
    sizes = _Print(restyled, round(width * _INCH), points * _POINT)
    heading = sizes.wrapped(restyled.layout.title.text, sizes.width - 8, sizes.font + _POINT) if title else ""
    restyled.update_layout(template=PAPER, title_text=heading or None, title_font_size=sizes.font + _POINT)
    if template is not None:  # laid over: what it does not say stays
        merged = go.layout.Template(PAPER.to_plotly_json())
        merged.update(template.to_plotly_json())
        restyled.update_layout(template=merged)
    _thin(restyled)
    sizes.axes()
    sizes.notes()
    sizes.colour_bars()
    sizes.margins(heading, None if height is None else round(height * _INCH))
    return restyled


class _Print:
    """Sizes and texts of one figure that is made for print; pixels throughout."""

    def __init__(self, figure: go.Figure, width: int, font: float) -> None:
        self.figure, self.width, self.font, self.line = figure, width, font, _LINE * font
        layout = figure.layout
        margin = layout.margin
        # of the figure on the screen: what is panels, and not titles
        around = (110 if margin.t is None else margin.t) + (60 if margin.b is None else margin.b)
        self.high = max(110.0, ((layout.height or HEIGHT) - around) / 2)
        self.columns = sorted({_domain(axis) for axis in figure.select_xaxes()}) or [(0.0, 1.0)]
        self.rows = len({_domain(axis) for axis in figure.select_yaxes()}) or 1
        self.wide = width - 60 - (45 if self._bars() else 0)  # all panels together
        self.panel = min(high - low for low, high in self.columns) * self.wide  # the narrowest

    def wrapped(self, text: str | None, room: float, font: float | None = None) -> str:
        """A text in lines that fit into so many pixels. Markup is not counted, and never cut."""
        most = max(8, int(room / (_GLYPH * (font or self.font))))
        return "<br>".join(line for part in re.split("<br */?>", text or "") for line in _wrapped(part, most))

    def axes(self) -> None:
        """Titles of axes and their ticks; panels move apart where the inner ones have titles of their own."""
        figure = self.figure
        for axis in figure.select_yaxes():
            room = max(80.0, 0.9 * (_domain(axis)[1] - _domain(axis)[0]) * self.high)
            axis.update(title_text=self.wrapped(axis.title.text, room) or None)
        inner = [_lines_of(axis.title.text) for axis in figure.select_yaxes() if self._column_of(axis) > 0]
        if any(inner) and len(self.columns) > 1:
            self._move_apart((36 + max(inner) * self.line) / self.wide)
        for axis in figure.select_xaxes():
            room = (_domain(axis)[1] - _domain(axis)[0]) * self.wide
            axis.update(title_text=self.wrapped(axis.title.text, room) or None, tickangle=axis.tickangle or None)
        for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
            axis.update(automargin=True, tickfont_size=self.font, title_font_size=self.font)

    def notes(self) -> None:
        """Texts beside and within the panels: titles of rows and columns, names of lines, what intervals are."""
        for note in self.figure.select_annotations():
            note.font.size = self.font
            if note.textangle in (90, -90):
                note.text = self.wrapped(note.text, max(80.0, self.high / self.rows))
                note.update(xshift=-26 if note.xshift == -40 else note.xshift)
            elif _below_all(note):
                note.text = self.wrapped(note.text, self.width - 10)
            elif note.yshift == -30:  # the title of all x axes, as make_subplots puts it
                note.update(text=self.wrapped(note.text, self.width - 60), yshift=_SHARED)
            elif len(self.columns) > 1 and _above(note):
                note.text = self.wrapped(note.text, self.panel)
                longest = max(map(_length, re.split(r"<br>|\s", note.text)), default=1)
                note.font.size = min(self.font, max(5 * _POINT, self.panel / (_GLYPH * max(longest, 1))))
            else:  # several may stand side by side
                note.text = self.wrapped(note.text, 0.48 * self.panel)

    def colour_bars(self) -> None:
        """Thin bars, with the unit along them."""
        for bar in self._bars():
            bar.update(thickness=8, tickfont_size=self.font, title={"side": "right", "font": {"size": self.font}})

    def _bars(self) -> list[Any]:
        bars = [axis.colorbar for axis in self.figure.select_coloraxes()]
        for trace in self.figure.data:
            if trace.type == "heatmap" and trace.coloraxis is None and trace.showscale is not False:
                bars.append(trace.colorbar)
            elif "marker" in trace and getattr(trace.marker, "showscale", None):
                bars.append(trace.marker.colorbar)
        return bars

    def margins(self, heading: str, height: int | None) -> None:
        """Room for title, legend, labels and notes, and the height that follows."""
        figure, notes = self.figure, list(self.figure.select_annotations())
        lines = _lines_of(heading)
        raised = max((_lines_of(note.text) for note in notes if _above(note)), default=0) * self.line
        legend = self._legend_rows() * 1.4 * self.line
        top = 8 + lines * _LINE * (self.font + _POINT) + legend + raised
        shared = max((_lines_of(note.text) for note in notes if note.yshift == _SHARED), default=0)
        own = max((_lines_of(axis.title.text) for axis in figure.select_xaxes()), default=0)
        bottom = 24 + (12 if shared else 0) + max(shared, own) * self.line + self._slanted()
        for note in filter(_below_all, notes):
            bottom += _lines_of(note.text) * self.line
            note.update(yshift=-bottom, yanchor="bottom")
        high = self.high + top + bottom if height is None else height
        figure.update_layout(
            width=self.width,
            height=round(high),
            font_size=self.font,
            margin={"t": round(top), "b": round(bottom), "l": 40, "r": 8, "pad": 0},
            # plotly sets the middle of a title of several lines where one line would be
            title_pad_t=4 + (lines - 1) * 0.55 * _LINE * (self.font + _POINT),
            legend={"font": {"size": self.font}, "y": 1 + (raised + 2) / max(80.0, high - top - bottom)},
        )

    def _column_of(self, axis: Any) -> float:
        """Where the panel of a y axis begins."""
        name = str(axis.anchor or "x")
        return _domain(self.figure.layout["xaxis" + name[1:]])[0] if name.startswith("x") else 0.0

    def _move_apart(self, gap: float) -> None:
        """Columns of panels of one width, with so much of the width between two; their titles go along."""
        size = (1 - gap * (len(self.columns) - 1)) / len(self.columns)
        to = {old: (i * (size + gap), i * (size + gap) + size) for i, old in enumerate(self.columns)}
        for axis in self.figure.select_xaxes():
            axis.domain = to[_domain(axis)]
        for note in filter(_above, self.figure.select_annotations()):
            for old, new in to.items():
                if note.x is not None and abs(note.x - sum(old) / 2) < 1e-6:
                    note.x = sum(new) / 2
        self.columns, self.panel = list(to.values()), size * self.wide

    def _slanted(self) -> float:
        """What labels of categories take below the panels where they do not fit side by side, about."""
        most = 0.0
        for axis in self.figure.select_xaxes():
            shown = axis.ticktext
            if shown is None:
                own = [t.x for t in self.figure.data if getattr(t, "x", None) is not None]
                shown = {str(x) for xs in own for x in xs if isinstance(x, str)} if own else set()
            lengths = [max(map(_length, str(text).split("<br>"))) for text in shown]
            room = (_domain(axis)[1] - _domain(axis)[0]) * self.wide
            if sum(lengths) * _GLYPH * self.font > 0.9 * room:
                most = max(most, min(110.0, 0.7 * _GLYPH * self.font * max(lengths)))
        return most

    def _legend_rows(self) -> int:
        """How many rows the legend above the panels takes, about."""
        shown: dict[str, str] = {}
        for trace in self.figure.data:
            if trace.showlegend is not False and trace.name:
                shown.setdefault(trace.legendgroup or trace.name, trace.name)
        layout = self.figure.layout
        if layout.showlegend is False or (len(shown) < 2 and layout.showlegend is None):
            return 0
        longest = max(map(_length, shown.values()), default=0)  # entries stand in columns of one width
        columns = max(1, int((self.width - 70) / (42 + _GLYPH * self.font * longest)))
        return 0 if layout.legend.orientation == "v" else -(-len(shown) // columns)


def _domain(axis: Any) -> tuple[float, float]:
    low, high = axis.domain or (0.0, 1.0)
    return float(low), float(high)


def _above(note: Any) -> bool:
    """Does a text stand above the panels, as titles of columns do?"""
    return bool(note.yref == "paper" and (note.y or 0) >= 1 and note.yanchor == "bottom" and not note.textangle)


def _below_all(note: Any) -> bool:
    return bool(note.yref == "paper" and (note.yshift or 0) < -60)


def _thin(figure: go.Figure) -> None:
    """Lines and markers at the weight of print."""
    for trace in figure.select_traces({"type": "scatter"}):
        if "text" in (trace.mode or ""):
            trace.cliponaxis = False
    for trace in figure.data:
        marker: Any = getattr(trace, "marker", None)
        line: Any = getattr(trace, "line", None)
        if isinstance(getattr(marker, "size", None), int | float):
            marker.size = max(2.5, 0.6 * marker.size)
        if isinstance(getattr(line, "width", None), int | float) and line.width:
            line.width = max(0.75, 0.6 * line.width)
        error = getattr(trace, "error_y", None)
        if error is not None and error.array is not None:
            error.update(thickness=1, width=2)


def _wrapped(text: str, most: int) -> Iterator[str]:
    """Lines of about `most` characters; a tag or an entity counts as what it shows."""
    words, lines = re.findall(r"\S+", text), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if _length(longer) <= most or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    yield from lines


def _length(text: str) -> int:
    """Characters that are seen of a text in plotly's markup."""
    return len(re.sub("&[a-z]+;", "x", re.sub("<[^>]*>", "", text)))


def _lines_of(text: str | None) -> int:
    return text.count("<br>") + 1 if text else 0


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


def add_dots(figure: go.Figure, values: np.ndarray, category: str, i: int, **style: Any) -> None:
    """Add each value as a dot, jittered, above a category, in the colour of the i-th series."""
    marker = {"color": colour(i), "size": 5, "opacity": 0.6}
    figure.add_box(y=values, x=[category] * len(values), marker=marker, **scattered(jitter=0.6), **style)


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
