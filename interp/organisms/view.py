"""When does copying appear in training? The training curve as a figure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType

from interp import plots
from interp.exhibits import OLSSON, Caption, GalleryEntry
from interp.tables import number, table_of, title

_ROWS = 12


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """How copying appeared in training."""
    yield title("Training: mean log-prob of the second half (nats) and the best induction score")
    rows = table_of("step", "ordinary", "unexposed", "induction", "held-out loss")
    steps = result["checkpoint"].values
    for i in sorted({round(x) for x in np.linspace(0, len(steps) - 1, _ROWS)}):
        at = result.isel(checkpoint=i)
        halves = [at["second_half"].sel(pool=pool) for pool in ("ordinary", "unexposed")]
        best = at["score"].sel(pool="ordinary", key_kind="induction").max()
        rows.add_row(str(steps[i]), *map(number, (*halves, best, at["heldout_loss"])))
    yield rows


def training_curve(result: xr.Dataset) -> go.Figure:
    """Second-half log-prob and the best heads' scores over training: the induction phase change."""
    figure = go.Figure()
    for i, pool in enumerate(result["pool"].values):
        series = result["second_half"].sel(pool=pool)
        figure.add_scatter(x=series["checkpoint"], y=series, name=f"{pool}: second half", line_color=plots.COLOURS[i])
    for i, key_kind in enumerate(("induction", "previous"), start=2):
        best = result["score"].sel(pool="ordinary", key_kind=key_kind).max(["layer", "head"])
        line = {"dash": "dash", "color": plots.COLOURS[i]}
        figure.add_scatter(x=best["checkpoint"], y=best, name=f"best {key_kind} score", yaxis="y2", line=line)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title="How copying appears in training",
        xaxis_title="optimiser step",
        yaxis_title="log-prob, second half (nats)",
        yaxis2={
            "title": "attention score",
            "overlaying": "y",
            "side": "right",
            "range": [0, 1.05],
            "showgrid": False,
            "tickmode": "linear",
            "dtick": 0.2,
        },
        margin={"r": 70},
    )


FIGURES = [training_curve]


GALLERY = (
    GalleryEntry(
        "training_curve",
        None,
        (
            Caption(
                "training_curve",
                "Copying of ordinary tokens appears all at once in training, with the induction head.",
                f"the phase change of {OLSSON}",
            ),
        ),
        "copying",
        stored="interp/organisms/organism/curve.nc",
        order=20,
    ),
)
