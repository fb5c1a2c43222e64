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
from interp.tables import number, table_of, title


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """How many tokens of each pool have a twin, exactly or up to rounding, and how far the others are from any."""
    yield title("How far is the nearest other row of the input embedding?")
    rows = table_of("pool", "tokens", "same as another", "within rounding", "median distance", "median norm")
    known = bool(np.isfinite(result["rounding"]).all())
    for pool, part in _by_pool(result).items():
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


def _by_pool(result: xr.Dataset) -> dict[str, xr.Dataset]:
    pools = result["pool"].values
    return {pool: result.isel(token=np.flatnonzero(pools == pool)) for pool in dict.fromkeys(map(str, pools))}


def nearest_rows(result: xr.Dataset) -> go.Figure:
    """The distance of each token's row to the nearest other, a dot per token; equal rows lie at the lower edge."""
    figure = go.Figure()
    distance = result["distance"].values
    least = distance[distance > 0].min(initial=1.0) / 3
    parts = _by_pool(result)
    for i, (name, part) in enumerate(zip(plots.labels(parts), parts.values(), strict=True)):
        said = [
            f"{plots.token_label(text)}: nearest is {near}, {d:.3g} away"
            for text, near, d in zip(part["text"].values, part["nearest"].values, part["distance"].values, strict=True)
        ]
        figure.add_box(
            y=np.maximum(part["distance"].values, least),
            x=[name] * part.sizes["token"],
            name=name,
            **plots.scattered(jitter=0.6),
            showlegend=False,
            marker={"color": plots.colour(i), "size": 5, "opacity": 0.6},
            text=said,
            hovertemplate="%{text}<extra></extra>",
        )
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
