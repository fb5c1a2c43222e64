"""How does a result of `score_attribution` look: which pairs of components make a head attend?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import CHAPTERS, ELHAGE, Caption, GalleryEntry
from interp.request import Request
from interp.tables import sampled, table_of, title

_PAIRS, _ALONE, _MOVED = 5, 3, 4  # lines of a head in the tables
_MOST = 14  # components along a side of a heat map
_WORDS = {
    "bos": "BOS",
    "previous": "position before the key",
    "current": "the key's own position",
    "same_token": "other places of the query's token",
    "elsewhere": "elsewhere",
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the pairs of components that contribute most to each score, and what the largest sources moved.

    Args:
        result: a result of `score_attribution`.

    Returns:
        What rich can print, line by line: scores before the softmax with 95% intervals, at the key and at a control.

    Example:
        >>> result = interp.run("score_attribution", "wired", "1:33", batch=2, length=6)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:33 | L1H0 | all | all | 4000.00 | 0.00
    """
    over = "the inducible queries" if _of_blocks(result) else "prompts"
    yield title(f"Largest terms of the score before the softmax (means over {over})")
    columns = ("head", "wrote the query", "wrote the key", *_kinds(result).values())
    rows = table_of("pool", *columns, words=columns[:3])
    for pool in result["pool"].values:
        for head in result["attending"].values:
            at = result.sel(pool=pool, attending=head)
            totals = [sampled(at["score"].sel(key_kind=kind)) for kind in _kinds(result)]
            rows.add_row(str(pool), str(head), "all", "all", *totals)
            for side, writer, both in _largest_of_sides(at):
                cells = [sampled(both.sel(key_kind=kind)) for kind in _kinds(result)]
                names = (writer, "all") if side == "query_writer" else ("all", writer)
                rows.add_row(str(pool), str(head), *names, *cells)
            for query, key in _largest(at):
                both = at["part"].sel(query_writer=query, key_writer=key)
                cells = [sampled(both.sel(key_kind=kind)) for kind in _kinds(result)]
                rows.add_row(str(pool), str(head), query, key, *cells)
    yield rows
    if "out_of_reach" in result.attrs:
        heads = result.attrs["out_of_reach"]
        remedy = "use shorter blocks (--length)" if _of_blocks(result) else "use shorter prompts"
        yield Text(f"The attention of {heads} does not reach {_key(result)}: {remedy}.")
    if "no_sources" in result.attrs:
        yield Text(f"No source is split: {result.attrs['no_sources']}.")
    elif result.sizes["source"]:
        yield from _moved_table(result)


def _moved_table(result: xr.Dataset) -> Iterator[RenderableType]:
    yield title("What the largest sources gave through the keys: where they looked, and what they moved")
    columns = ("head", "source", "looked at", "moved", *_kinds(result).values())
    rows = table_of("pool", *columns, words=columns[:4])
    for pool in result["pool"].values:
        for head in result["attending"].values:
            at = result.sel(pool=pool, attending=head)
            for source, name in enumerate(at["source_head"].values):
                given = at["source_part"].isel(source=source)
                mean = given.isel(key_kind=0).mean("batch")
                if not str(name) or not np.isfinite(mean).any():
                    continue
                order = np.argsort(-np.abs(np.nan_to_num(mean.transpose("place", "component").values)), axis=None)
                for i in order[:_MOVED]:
                    place, moved = np.unravel_index(i, mean.transpose("place", "component").shape)
                    both = given.isel(place=place, component=moved)
                    cells = [sampled(both.sel(key_kind=kind)) for kind in _kinds(result)]
                    words = _WORDS[str(given["place"].values[place])]
                    rows.add_row(str(pool), str(head), str(name), words, str(given["component"].values[moved]), *cells)
    yield rows


def score_parts(result: xr.Dataset) -> go.Figure:
    """Draw what each pair of components contributes to a head's score, at the key and at a control.

    Args:
        result: a result of `score_attribution`.

    Returns:
        Heatmaps, key writer by query writer, positive: raises attention; of many components, the largest.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("score_attribution", "wired", "1:33", batch=2, length=6)
        >>> list(score_parts(result).data[0].x)
        ['embed', 'pos_embed', 'L0H0', 'L0H1', 'MLP0', 'biases']
    """
    mean = result["part"].mean("batch")
    kept = {side: _strongest(mean, side) for side in ("query_writer", "key_writer")}
    panels = _panels(mean.sel(kept))
    panels = panels.assign_coords(key_kind=list(_kinds(result).values()))
    figure = plots.diverging_heatmaps(
        panels.rename(query_writer="wrote the query", key_writer="wrote the key"),
        row="panel",
        column="key_kind",
        title=plots.titled("Which pairs of components make the head attend?", result),
        x="wrote the key",
        y="wrote the query",
        unit="score",
        least=1e-6,
    )
    return _tall(figure, panels.sizes["panel"], len(kept["query_writer"]), left=140)


def moved(result: xr.Dataset) -> go.Figure | None:
    """Draw where the largest source of a head's score looked, and what it moved to the key.

    Args:
        result: a result of `score_attribution`.

    Returns:
        Heatmaps of the score, place by component; None where no source was split.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("score_attribution", "wired", "1:33", batch=2, length=6)
        >>> list(moved(result).data[0].x)
        ['embed', 'pos_embed', 'biases']
    """
    if "no_sources" in result.attrs or not result.sizes["source"] or not result["source_part"].notnull().any():
        return None
    mean = result["source_part"].isel(source=0, key_kind=0).mean("batch")
    mean = mean.sel(component=_strongest(mean, "component"))
    sources = dict(zip(result["attending"].values, result["source_head"].isel(source=0).values, strict=True))
    named = mean.assign_coords(
        attending=[f"{sources[head]} for {head}" for head in mean["attending"].values],
        place=[_WORDS[str(place)] for place in mean["place"].values],
    )
    figure = plots.diverging_heatmaps(
        named.rename(place="looked at", component="moved"),
        row="attending",
        column="pool",
        title=plots.titled("What did the largest source move to the key?", result),
        x="moved",
        y="looked at",
        unit="score",
        least=1e-6,
    )
    return _tall(figure, named.sizes["attending"], named.sizes["place"], left=280)


def _of_blocks(result: xr.Dataset) -> bool:
    return "induction" in result["key_kind"].values


def _key(result: xr.Dataset) -> str:
    return "the induction key" if _of_blocks(result) else f"'{result['key_kind'].values[0]}'"


def _kinds(result: xr.Dataset) -> dict[str, str]:
    """Of each kind of key, how a column is headed: what matters, and its control."""
    key, control = map(str, result["key_kind"].values)
    return {key: f"at {_key(result)}", control: "at a control key"}


def _largest(at: xr.Dataset) -> list[tuple[str, str]]:
    """The pairs of the largest terms at the key."""
    mean = at["part"].isel(key_kind=0).mean("batch").transpose("query_writer", "key_writer")
    order = np.argsort(-np.abs(np.nan_to_num(mean.values)), axis=None)[:_PAIRS]
    pairs = [np.unravel_index(i, mean.shape) for i in order]
    return [(str(mean["query_writer"].values[q]), str(mean["key_writer"].values[k])) for q, k in pairs]


def _largest_of_sides(at: xr.Dataset) -> Iterator[tuple[str, str, xr.DataArray]]:
    """The components that give most with all that wrote on the other side: in deep models, pairs are small."""
    for side, other in (("query_writer", "key_writer"), ("key_writer", "query_writer")):
        summed = at["part"].sum(other, min_count=1)
        mean = np.nan_to_num(summed.isel(key_kind=0).mean("batch").values)
        for i in np.argsort(-np.abs(mean), kind="stable")[:_ALONE]:
            yield side, str(summed[side].values[i]), summed.isel({side: int(i)})


def _strongest(mean: xr.DataArray, side: str) -> list[str]:
    """The components that contribute most on a side, in their own order; none that come later."""
    others = [dim for dim in mean.dims if dim != side]
    largest = mean.copy(data=np.abs(mean.values)).max(others, skipna=True).fillna(-1).values
    kept = np.sort(np.argsort(-largest, kind="stable")[: min(_MOST, int((largest >= 0).sum()))])
    return [str(name) for name in mean[side].values[kept]]


def _panels(mean: xr.DataArray) -> xr.DataArray:
    """Heads and pools as one dimension `panel`."""
    rows = [(head, pool) for head in mean["attending"].values for pool in mean["pool"].values]
    parts = [mean.sel(attending=head, pool=pool, drop=True) for head, pool in rows]
    return xr.concat(parts, xr.DataArray([f"{h}, {p}" for h, p in rows], dims="panel", name="panel"))


def _tall(figure: go.Figure, rows: int, entries: int, *, left: int) -> go.Figure:
    """High enough for the names of the entries, all of which are written, with room for them and the titles beside."""
    figure.update_xaxes(dtick=1, tickangle=-45, type="category")
    figure.update_yaxes(dtick=1, type="category")
    for axis in figure.layout.annotations[-2:]:  # those of the axes come last
        axis.update({"xshift": 30 - left} if axis.textangle == -90 else {"yshift": -65})
    return figure.update_layout(
        height=210 + rows * max(150, 26 * entries), margin={"l": left, "b": 100, "r": 40}, title_y=0.98
    )


FIGURES = [score_parts, moved]


def _score_attribution(folder: str, model: str, order: int) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("score_attribution", model=model, most=1),
        (
            Caption(
                "score_parts",
                f"Why the strongest induction head of `{model}` attends to the induction key: pairs of components.",
                f"the QK circuit of a composed path of {ELHAGE}",
            ),
            Caption("moved", "What the largest earlier head moved to the key, and from where."),
        ),
        CHAPTERS[2],
        order=order,
    )


GALLERY = (
    _score_attribution("score_attribution", "organism", 16),
    _score_attribution("score_attribution_llama", "organism-llama", 17),
)
