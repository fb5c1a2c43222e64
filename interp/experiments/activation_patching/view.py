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
    """List the heads whose patching moves the log-prob most.

    Args:
        result: a result of `activation_patching`.

    Returns:
        What rich can print, line by line: one row for each pool and direction, in nats moved; of prompts, by the
        metric.

    Example:
        >>> few = dict(batch=2, length=6, sequences=2)
        >>> result = interp.run("activation_patching", "wired", "1:33", reference="33:65", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:33 | denoising | -707.11 | L1H0 +707.11, L0H0 +702.93, L0H1 +0.00
    """
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
    """The heads and the named positions whose patching moves the metric most."""
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
    """Draw how far patching one layer at one position moves the metric of prompts.

    Args:
        result: a result of `activation_patching`.

    Returns:
        Heatmaps of the change in the metric, layer by position, by direction; None for repeated blocks.

    Source:
        Zhang and Nanda 2023, Towards Best Practices of Activation Patching, arXiv 2309.16042.

    Example:
        >>> result = interp.run("activation_patching", "wired", prompts="blocks:4")
        >>> prompt_positions(result).data[0].z.shape
        (2, 50)
    """
    if "metric" not in result.attrs:
        return None
    figure = _moved(result, "by_position", "position", f"One position of {result.attrs['stream']} exchanged")
    if result.sizes["pool"] * result.sizes["batch"] == 1 and "token_text" in result.coords:  # of one prompt, its tokens
        names = [plots.token_label(text, 10) for text in result["token_text"].values.ravel()]
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-90)
        figure.update_layout(margin_b=110)
    return figure


def prompt_names(result: xr.Dataset) -> go.Figure | None:
    """Draw how far patching one layer at all tokens of a named part moves the metric of prompts.

    Args:
        result: a result of `activation_patching`.

    Returns:
        Heatmaps of the change in the metric, layer by name, by direction; None for repeated blocks, or without names.

    Source:
        Zhang and Nanda 2023, Towards Best Practices of Activation Patching, arXiv 2309.16042.

    Example:
        >>> result = interp.run("activation_patching", "wired", prompts="blocks:4")
        >>> list(prompt_names(result).data[0].x)
        ['key', 'before', 'last']
    """
    if "metric" not in result.attrs or not result.sizes["named"]:
        return None
    return _moved(result, "by_name", "named", f"{result.attrs['stream']} of a named part exchanged")


def prompt_heads(result: xr.Dataset) -> go.Figure | None:
    """Draw how far patching one head moves the metric of prompts.

    Args:
        result: a result of `activation_patching`.

    Returns:
        Heatmaps of the change in the metric, layer by head, by direction; None for repeated blocks.

    Source:
        Zhang and Nanda 2023, Towards Best Practices of Activation Patching, arXiv 2309.16042.

    Example:
        >>> result = interp.run("activation_patching", "wired", prompts="blocks:4")
        >>> prompt_heads(result).data[0].z.shape
        (2, 2)
    """
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
    """Draw how far patching one layer at one position moves the last repeated token's log-prob.

    Args:
        result: a result of `activation_patching`.

    Returns:
        Heatmaps of nats moved, layer by position, a panel for each pool and direction; None for prompts.

    Source:
        Zhang and Nanda 2023, Towards Best Practices of Activation Patching, arXiv 2309.16042.

    Example:
        >>> few = dict(batch=2, length=6, sequences=2)
        >>> result = interp.run("activation_patching", "wired", "1:33", reference="33:65", **few)
        >>> patched_positions(result).data[0].z.shape
        (2, 13)
    """
    if "metric" in result.attrs:
        return None
    words = f"What moves the last repeated token? One position of {result.attrs['stream']} exchanged"
    figure = _heatmaps(result, "by_position", "clean_position", "pair", words, "position")
    start = int(result["position"].values[result["half"].values == 2][0])
    return figure.add_vline(x=start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1}, row="all", col="all")


def patched_heads(result: xr.Dataset) -> go.Figure | None:
    """Draw how far patching one head moves the mean log-prob of the repeated tokens.

    Args:
        result: a result of `activation_patching`.

    Returns:
        Heatmaps of nats moved, layer by head, a panel for each pool and direction; None for prompts.

    Source:
        Zhang and Nanda 2023, Towards Best Practices of Activation Patching, arXiv 2309.16042.

    Example:
        >>> few = dict(batch=2, length=6, sequences=2)
        >>> result = interp.run("activation_patching", "wired", "1:33", reference="33:65", **few)
        >>> patched_heads(result).data[0].z.shape
        (2, 2)
    """
    if "metric" in result.attrs:
        return None
    words = f"What moves the repeated tokens' log-prob? One head's {result.attrs['head']} exchanged"
    return _heatmaps(result, "by_head", "clean_head", "batch", words, "head")


def _heatmaps(result: xr.Dataset, patched: str, clean: str, over: str, words: str, x: str) -> go.Figure:
    """Denoising is read by the ordinary pair's token, noising by the ordinary run's own."""
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
