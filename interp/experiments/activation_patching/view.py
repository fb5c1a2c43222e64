"""How does a result of `activation_patching` look: what moves the repeated token when it is exchanged?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import ZHANG, Caption, GalleryEntry
from interp.request import Request
from interp.tables import number, strongest_heads, table_of, title

READ = {"denoising": "other", "noising": "own"}  # the target that each direction is read by: the ordinary token
READ_WORDS = (
    "Denoising runs on the pool and puts the ordinary sequence's values in, noising the other way round; both read the "
    "ordinary sequence's token."
)


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """The heads whose exchange moves the log-prob most."""
    whose = f"each pool and '{result.attrs['among']}' tokens"
    yield title(f"One head's {result.attrs['head']} exchanged between {whose} (nats moved)")
    most = "heads that move it most"
    rows = table_of("pool", "direction", "without", most, words=("direction", most))
    for pool in result["pool"].values:
        for direction, target in READ.items():
            at = result.sel(pool=pool, direction=direction, target=target)
            moved = (at["by_head"] - at["clean_head"]).mean("batch")
            rows.add_row(str(pool), direction, number(at["clean_head"].mean()), strongest_heads(moved))
    yield rows
    if "no_heads" in result.attrs:
        yield Text(f"No heads: {result.attrs['no_heads']}.")
    yield Text(READ_WORDS)


def patched_positions(result: xr.Dataset) -> go.Figure:
    """Nats that the last repeated token's log-prob moves when one layer's activation at one position is the pair's."""
    words = f"What moves the last repeated token? One position of {result.attrs['stream']} exchanged"
    figure = _heatmaps(result, "by_position", "clean_position", "pair", words, "position")
    start = int(result["position"].values[result["half"].values == 2][0])
    return figure.add_vline(x=start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1}, row="all", col="all")


def patched_heads(result: xr.Dataset) -> go.Figure:
    """Nats that the repeated tokens' mean log-prob moves when one head's activation comes from the pair."""
    words = f"What moves the repeated tokens' log-prob? One head's {result.attrs['head']} exchanged"
    return _heatmaps(result, "by_head", "clean_head", "batch", words, "head")


def _heatmaps(result: xr.Dataset, patched: str, clean: str, over: str, words: str, x: str) -> go.Figure:
    """What denoising does for the token of the ordinary pair, and noising against the ordinary run's own."""
    change = (result[patched] - result[clean]).mean(over)
    parts = [change.sel(direction=d, target=t).drop_vars(["direction", "target"]) for d, t in READ.items()]
    names = ["denoising: towards the ordinary token", "noising: away from the ordinary token"]
    moved = xr.concat(parts, xr.DataArray(names, dims="direction", name="direction"))
    most = max(float(np.nan_to_num(np.abs(moved.values)).max()), 1e-3)
    return plots.heatmaps(
        moved,
        row="pool",
        column="direction",
        x=x,
        low=-most,
        high=most,
        unit="nats",
        colours=plots.DIVERGING,
        title=plots.titled(words, result),
    )


FIGURES = [patched_positions, patched_heads]


GALLERY = (
    GalleryEntry(
        "activation_patching",
        Request.of("activation_patching"),
        (
            Caption(
                "patched_positions",
                "What moves the last repeated token's log-prob when one layer at one position comes from a "
                "paired sequence.",
                f"the heatmaps by layer and position of {ZHANG}",
            ),
            Caption(
                "patched_heads",
                "What moves the repeated tokens' log-prob when one head's output comes from a paired sequence.",
                f"the patched heads of {ZHANG}",
            ),
        ),
        "the copying circuit",
        order=40,
    ),
)
