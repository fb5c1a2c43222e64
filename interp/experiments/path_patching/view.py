"""How does a result of `path_patching` look: what does each path between heads carry?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import ELHAGE, WANG, Caption, GalleryEntry, metric_of
from interp.experiments.activation_patching.view import READ, READ_WORDS
from interp.request import Request
from interp.tables import sampled, strongest_heads, table_of, title

_WIDE = 2  # diagrams in one row
_VIA = {"q": plots.COLOURS[4], "k": plots.COLOURS[0], "v": plots.COLOURS[2], "to the logits": plots.COLOURS[1]}
_BOW = {"q": 0.06, "k": 0.0, "v": -0.06, "to the logits": -0.1}  # lines between the same ends do not hide each other


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List what each path from a sender to the induction heads carries.

    Args:
        result: a result of `path_patching`.

    Returns:
        What rich can print, line by line: nats with 95% intervals through q, k and v and directly to the logits,
        control heads among the senders.

    Example:
        >>> few = dict(batch=2, length=6, controls=1)
        >>> result = interp.run("path_patching", "wired", "1:33", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:33 | denoising | L0H0 (previous) | 0.00 | 702.93 | 0.00 | 0.00
    """
    if "metric" in result.attrs:
        yield from _table_of_prompts(result)
        return
    yield title(
        "Change of the right token's log-prob (nats) when a path carries the paired sequence's values, to all "
        "induction "
        "heads"
    )
    columns = ("direction", "sender", "through q", "through k", "through v", "to the logits")
    rows = table_of("pool", *columns, words=("direction", "sender"))
    for pool in result["pool"].values:
        for direction, target in READ.items():
            at = result.sel(pool=pool, direction=direction, target=target)
            for sender, role in zip(result["sender"].values, result["role"].values, strict=True):
                cells = [sampled(at["effect"].sel(sender=sender, receiver="all", via=via)) for via in ("q", "k", "v")]
                direct = sampled(at["direct"].sel(writer=sender))
                rows.add_row(str(pool), direction, f"{sender} ({role})", *cells, direct)
    yield rows
    yield Text(READ_WORDS)


def _table_of_prompts(result: xr.Dataset) -> Iterator[RenderableType]:
    """The heads whose paths move the metric most, to the logits and to the receivers."""
    yield title(f"One path alone carries the other prompt's values: {metric_of(result)}, and what moves it")
    columns = ("direction", "without", "to the logits", *(f"through {via} of the receivers" for via in ("q", "k", "v")))
    rows = table_of("prompts", *columns, words=("direction", *columns[2:]))
    for pool in result["pool"].values:
        for direction in READ:
            at = result.sel(pool=pool, direction=direction)
            ways = [strongest_heads(at["effect"].sel(via=via).mean("batch")) for via in ("q", "k", "v")]
            direct = strongest_heads(at["direct"].mean("batch"), 4)
            rows.add_row(str(pool), direction, sampled(at["clean"]), direct, *ways)
    yield rows
    if "receivers" in result.attrs:
        yield Text(f"Receivers: {result.attrs['receivers']}.")


def paths_of_heads(result: xr.Dataset) -> go.Figure | None:
    """Draw how far noising each head's path to the logits, or to the receivers, moves the metric of prompts.

    Args:
        result: a result of `path_patching`.

    Returns:
        Heatmaps of the change in the metric, layer by head, a panel for each way in; None for repeated blocks.

    Source:
        Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593.

    Example:
        >>> result = interp.run("path_patching", "wired", prompts="blocks:4")
        >>> [note.text for note in paths_of_heads(result).layout.annotations[:4]]
        ['to the logits', 'through q', 'through k', 'through v']
    """
    if "metric" not in result.attrs:
        return None
    at = result.sel(direction="noising")
    ways = [at["direct"], *(at["effect"].sel(via=via, drop=True) for via in ("q", "k", "v"))]
    names = ["to the logits", "through q", "through k", "through v"]
    moved = xr.concat([way.mean("batch") for way in ways], xr.DataArray(names, dims="way", name="way"))
    return plots.diverging_heatmaps(
        moved,
        row="pool",
        column="way",
        unit=str(result.attrs.get("unit", "")),
        title=plots.titled("Which paths carry the answer? One head's, noised", result),
    )


def path_strengths(result: xr.Dataset) -> go.Figure | None:
    """Draw senders, receivers and the logits, joined by lines as wide as what the path carries.

    Args:
        result: a result of `path_patching`.

    Returns:
        A graph for each pool, noising, in nats; dotted lines gain; None for prompts.

    Source:
        Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593.

    Example:
        >>> few = dict(batch=2, length=6, controls=1)
        >>> result = interp.run("path_patching", "wired", "1:33", **few)
        >>> path_strengths(result).layout.annotations[0].text
        '1:33 in the ordinary run'
    """
    if "metric" in result.attrs:
        return None
    at = {"direction": "noising", "target": "own"}
    effect = result["effect"].sel(at).drop_sel(receiver="all").mean("batch")
    direct = result["direct"].sel(at).mean("batch")
    pools = plots.labels(result["pool"].values)
    senders = list(map(str, result["sender"].values))
    receivers = list(map(str, effect["receiver"].values))
    strongest = max(float(np.nanmax(np.abs(effect))), float(np.abs(direct).max()), 1e-3)
    columns = {0.0: senders, 1.0: receivers, 2.0: ["logits"]}
    roles = dict(zip(senders, map(str, result["role"].values), strict=True))
    place = {name: (x, _height(i, len(names))) for x, names in columns.items() for i, name in enumerate(names)}
    wide = min(_WIDE, len(pools))
    high = -(-len(pools) // wide)
    figure = make_subplots(
        high,
        wide,
        subplot_titles=[f"{p} in the ordinary run" for p in pools],
        horizontal_spacing=0.03,
        vertical_spacing=0.14,
    )
    for i in range(len(pools)):
        where = {"row": i // wide + 1, "col": i % wide + 1}
        of_pool = effect.isel(pool=i)
        edges = [
            (s, r, via, float(of_pool.sel(via=via, sender=s, receiver=r)))
            for s in senders
            for r in receivers
            for via in ("q", "k", "v")
        ]
        written = direct.isel(pool=i)
        edges += [(w, "logits", "to the logits", float(written.sel(writer=w))) for w in [*senders, *receivers]]
        for source, target, via, nats in edges:
            width = 14 * abs(nats) / strongest
            if np.isfinite(nats) and width >= 0.35:  # thinner lines are not drawn
                figure.add_trace(_edge(source, target, via, nats, width, place), **where)
        figure.add_scatter(
            x=[x for x, _ in place.values()],
            y=[y for _, y in place.values()],
            mode="markers+text",
            text=[f"{n}<br>{roles[n]}" if roles.get(n, "control") != "control" else n for n in place],
            textposition=["middle left" if n in senders else "bottom center" for n in place],
            showlegend=False,
            hoverinfo="text",
            hovertext=[f"{n}: {roles.get(n, 'induction' if n in receivers else 'output')}" for n in place],
            marker={
                "size": 16,
                "line": {"color": plots.GREY, "width": 1.5},
                "color": ["white" if roles.get(n) == "control" else plots.GREY for n in place],
            },
            **where,
        )
    for via, colour in _VIA.items():
        name = f"through {via}" if len(via) == 1 else via
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": colour, "width": 4}, name=name)
    figure.update_xaxes(
        tickvals=[0, 1, 2],
        ticktext=["earlier heads<br>(white: controls)", "induction heads", "output"],
        range=[-0.75, 2.4],
        showgrid=False,
        zeroline=False,
        tickangle=0,
    )
    figure.update_yaxes(visible=False, range=[-0.25, 1.1])
    return figure.update_layout(
        template=plots.TEMPLATE,
        height=170 + 350 * high,
        legend_y=1.08,
        margin={"t": 130},
        title=plots.titled(f"Which paths carry the copy? Widest line: {strongest:.1f} nats lost", result),
    )


def _height(i: int, count: int) -> float:
    return 0.5 if count == 1 else 1 - i / (count - 1)


def _edge(
    source: str, target: str, via: str, nats: float, width: float, place: dict[str, tuple[float, float]]
) -> go.Scatter:
    """A line, bowed a little."""
    (x, y), (to_x, to_y) = place[source], place[target]
    bow = _BOW[via] * (to_x - x)
    t = np.linspace(0, 1, 15)
    return go.Scatter(
        x=x + t * (to_x - x),
        y=y + t * (to_y - y) + 4 * bow * t * (1 - t),
        mode="lines",
        line={"color": _VIA[via], "width": max(width, 0.6), "dash": "solid" if nats < 0 else "dot"},
        opacity=0.8,
        showlegend=False,
        text=[f"{source} to {target}, {via}: {nats:+.2f} nats"] * 15,
        hoverinfo="text",
    )


FIGURES = [path_strengths, paths_of_heads]


def _path_patching(folder: str, model: str) -> GalleryEntry:
    caption = Caption(
        "path_strengths",
        f"Which paths between heads of `{model}` carry the copy: lines as wide as the nats lost without them.",
        f"the path patching of {WANG}, drawn like the composition diagram of {ELHAGE}",
    )
    return GalleryEntry(folder, Request.of("path_patching", model=model), (caption,), "the copying circuit", order=50)


GALLERY = (
    _path_patching("path_patching", "organism"),
    _path_patching("path_patching_llama", "organism-llama"),
)
