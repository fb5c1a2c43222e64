"""How does a result of `activation_patching` look: what moves the repeated token when it is exchanged?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import ZHANG, Caption, GalleryEntry, ReportSection, metric_of
from interp.request import Request
from interp.tables import Cell, number, ranked, sampled, strongest_heads, table_of, title

READ = {"denoising": "other", "noising": "own"}  # the target that each direction is read by: the ordinary token
DIRECTIONS = tuple(READ)
READ_WORDS = (
    "Denoising runs on the pool and patches in the ordinary sequence's values; noising is the reverse. Both read the "
    "ordinary sequence's token."
)


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """The heads whose exchange moves the log-prob most."""
    if "metric" in result.attrs:
        yield from _table_of_prompts(result)
        return
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


def _table_of_prompts(result: xr.Dataset) -> Iterator[RenderableType]:
    """The heads and the named positions whose exchange moves the metric most."""
    stream, head = result.attrs["stream"], result.attrs["head"]
    yield title(f"Exchanged between clean and corrupted prompts: {metric_of(result)}, and what moves it")
    columns = ("direction", "without", f"one head's {head}", f"{stream} of named positions")
    rows = table_of("prompts", *columns, words=("direction", *columns[2:]))
    for pool in result["pool"].values:
        for direction in DIRECTIONS:
            at = result.sel(pool=pool, direction=direction)
            heads = strongest_heads((at["by_head"] - at["clean"]).mean("batch"), 4)
            rows.add_row(str(pool), direction, sampled(at["clean"]), heads, _named(at))
    yield rows
    if "no_heads" in result.attrs:
        yield Text(f"No heads: {result.attrs['no_heads']}.")
    yield Text(
        "Denoising runs on the corrupted prompt and patches in the clean one's values; noising is the reverse. Both "
        "read the clean prompt's answer."
    )


def _named(at: xr.Dataset) -> Cell | str:
    """The named positions in the order of what they move, each in the layer where it moves most."""
    if not at.sizes["named"]:
        return "no positions are named"
    moved = (at["by_name"] - at["clean"]).mean("batch").transpose("named", "layer").values
    found = []
    for name, row in zip(map(str, at["named"].values), moved, strict=True):
        if np.isfinite(row).any():
            layer = int(np.nanargmax(np.abs(row)))
            found.append((f"{name} in L{layer}", float(row[layer])))
    return ranked(sorted(found, key=lambda one: -abs(one[1]))[:4], "+.2f")


def prompt_positions(result: xr.Dataset) -> go.Figure | None:
    """How the metric of prompts moves when one layer's activation at one position comes from the other prompt."""
    if "metric" not in result.attrs:
        return None
    figure = _moved(result, "by_position", "position", f"One position of {result.attrs['stream']} exchanged")
    if result.sizes["pool"] * result.sizes["batch"] == 1 and "token_text" in result.coords:  # of one prompt, its tokens
        names = [plots.token_label(text, 10) for text in result["token_text"].values.ravel()]
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-90)
        figure.update_layout(margin_b=110)
    return figure


def prompt_names(result: xr.Dataset) -> go.Figure | None:
    """How the metric of prompts moves when one layer's activation at a named part comes from the other prompt."""
    if "metric" not in result.attrs or not result.sizes["named"]:
        return None
    return _moved(result, "by_name", "named", f"{result.attrs['stream']} of a named part exchanged")


def prompt_heads(result: xr.Dataset) -> go.Figure | None:
    """How the metric of prompts moves when one head's activation comes from the other prompt."""
    if "metric" not in result.attrs:
        return None
    return _moved(result, "by_head", "head", f"One head's {result.attrs['head']} exchanged")


def _moved(result: xr.Dataset, name: str, x: str, words: str) -> go.Figure:
    """Heatmaps of what an exchange adds to the metric, by direction and set of prompts."""
    moved = (result[name] - result["clean"]).mean("batch")
    return plots.diverging_heatmaps(
        moved,
        row="pool",
        column="direction",
        x=x,
        unit=str(result.attrs.get("unit", "")),
        title=plots.titled(f"What moves the answer? {words}", result),
    )


def patched_positions(result: xr.Dataset) -> go.Figure | None:
    """Nats that the last repeated token's log-prob moves when one layer's activation at one position is the pair's."""
    if "metric" in result.attrs:
        return None
    words = f"What moves the last repeated token? One position of {result.attrs['stream']} exchanged"
    figure = _heatmaps(result, "by_position", "clean_position", "pair", words, "position")
    start = int(result["position"].values[result["half"].values == 2][0])
    return figure.add_vline(x=start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1}, row="all", col="all")


def patched_heads(result: xr.Dataset) -> go.Figure | None:
    """Nats that the repeated tokens' mean log-prob moves when one head's activation comes from the pair."""
    if "metric" in result.attrs:
        return None
    words = f"What moves the repeated tokens' log-prob? One head's {result.attrs['head']} exchanged"
    return _heatmaps(result, "by_head", "clean_head", "batch", words, "head")


def _heatmaps(result: xr.Dataset, patched: str, clean: str, over: str, words: str, x: str) -> go.Figure:
    """What denoising does for the token of the ordinary pair, and noising against the ordinary run's own."""
    change = (result[patched] - result[clean]).mean(over)
    parts = [change.sel(direction=d, target=t).drop_vars(["direction", "target"]) for d, t in READ.items()]
    names = ["denoising: towards the ordinary token", "noising: away from the ordinary token"]
    moved = xr.concat(parts, xr.DataArray(names, dims="direction", name="direction"))
    return plots.diverging_heatmaps(
        moved,
        row="pool",
        column="direction",
        x=x,
        unit="nats",
        title=plots.titled(words, result),
    )


FIGURES = [patched_positions, patched_heads, prompt_positions, prompt_names, prompt_heads]


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
    GalleryEntry(
        "prompts_activation_patching",
        Request.of("activation_patching", prompts="blocks:ordinary:16", metric="logit_difference"),
        (
            Caption(
                "prompt_positions",
                "What moves the answer's lead when one layer at one position comes from the other prompt of a pair.",
                f"the heatmaps by layer and position of {ZHANG}",
            ),
            Caption("prompt_names", "The same of the named positions, each at its own place in each prompt."),
            Caption("prompt_heads", "The same of one head's output at all positions."),
        ),
        "the copying circuit",
        order=41,
    ),
)
PROMPTS_SECTION = ReportSection(
    "patched",
    "Where does it differ from the corrupted prompts?",
    "What moves when one activation comes from the other prompt of a pair.",
    Request.of("activation_patching"),
    order=40,
)
