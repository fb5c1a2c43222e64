"""How does a result of `row_distances` look: which rows are the same, and which only nearly so?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import Caption, GalleryEntry, of_public_model
from interp.request import Request
from interp.results import by_pool
from interp.tables import number, table_of, title


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Count the tokens with an equal row, exactly or within rounding, by pool.

    Args:
        result: a result of `row_distances`.

    Returns:
        What rich can print, line by line: counts, median distance and norm in units of the embedding, and how rows are
        stored.

    Example:
        >>> result = interp.run("row_distances", "organism", "ordinary")
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        ordinary | 1654 | 0 | 0 | 1.03 | 1.07
    """
    yield title("How far is the nearest other row of the input embedding?")
    rows = table_of("pool", "tokens", "same as another", "within rounding", "median distance", "median norm")
    known = bool(np.isfinite(result["rounding"]).all())
    for pool, part in by_pool(result).items():
        within = f"{int((part['within'] > 0).sum())}" if known else "-"
        same = f"{int((part['same'] > 0).sum())}"
        middle = [number(part[name].median(), ".3g") for name in ("distance", "norm")]
        rows.add_row(pool, f"{part.sizes['token']}", same, within, *middle)
    yield rows
    stored = f"Rows are stored as {result.attrs['stored']}"
    if not known:
        yield Text(f"{stored}: what rounding makes of equal rows is not known.")
        return
    apart = float(result["rounding"].median())
    yield Text(
        f"{stored}: equal rows, each with an error of its own, would lie about {apart:.2g} apart. "
        "Rows within twice that cannot be distinguished from equal ones; rows farther apart were trained apart."
    )


def nearest_rows(result: xr.Dataset) -> go.Figure:
    """Draw the distance of each token's row to the nearest other row.

    Args:
        result: a result of `row_distances`.

    Returns:
        A dot for each token on a logarithmic y axis; equal rows lie at the lower edge; dotted: equal rows, each
        rounded.

    Example:
        >>> result = interp.run("row_distances", "organism", "ordinary")
        >>> nearest_rows(result).data[0].name
        'ordinary'
    """
    figure = go.Figure()
    distance = result["distance"].values
    least = distance[distance > 0].min(initial=1.0) / 3
    parts = by_pool(result)
    for i, (name, part) in enumerate(zip(plots.labels(parts), parts.values(), strict=True)):
        said = [
            f"{plots.token_label(text)}: nearest is {near}, {d:.3g} away"
            for text, near, d in zip(part["text"].values, part["nearest"].values, part["distance"].values, strict=True)
        ]
        style = {"name": name, "showlegend": False, "text": said, "hovertemplate": "%{text}<extra></extra>"}
        plots.add_dots(figure, np.maximum(part["distance"].values, least), name, i, **style)
    rounding = float(result["rounding"].median())
    if np.isfinite(rounding):
        figure.add_hline(y=rounding, line={"dash": "dot", "color": plots.GREY})
        at = {"xref": "paper", "x": 1, "xanchor": "right", "y": float(np.log10(rounding)), "yanchor": "bottom"}
        figure.add_annotation(text="equal rows, each rounded", showarrow=False, **at)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Is there a twin? The distance to the nearest other row", result),
        yaxis={"title": "distance (equal rows: at the lower edge)", "type": "log", "dtick": 1},
    )


FIGURES = [nearest_rows]


_ENTRY = GalleryEntry(
    "row_distances",
    Request.of("row_distances", pools=("unexposed", "control(unexposed)")),
    (Caption("nearest_rows", "How far the input row of each token is from the nearest other row."),),
    "the vocabulary",
    order=50,
)
GALLERY = (_ENTRY, of_public_model(_ENTRY))
