"""How does a result of `edge_attribution` look: which edges make up the circuit, and how much do they keep?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import CHAPTERS, Caption, GalleryEntry, metric_of
from interp.request import Request
from interp.statistics import mean_interval
from interp.tables import number, sampled, table_of, title

ENOUGH = 0.85  # of the difference between the runs: the circuit that is drawn keeps as much
NEEDED = 0.1  # of that difference: an edge that costs as much by itself is drawn, too
_MOST = 60  # edges that are drawn
_FEW = 8  # edges in the table
_TRUSTED = 0.1  # deviation from one that the sum of the estimates may have without a warning
_NOTHING = 1e-4  # of the largest effect, below which an edge carries nothing
_COLOUR = {
    "q": plots.COLOURS[4],
    "k": plots.COLOURS[0],
    "v": plots.COLOURS[2],
    "MLP": plots.COLOURS[3],
    "logits": plots.COLOURS[1],
}
HANNA = "the circuits and faithfulness curves of Hanna et al. (2024), arXiv 2403.17806"


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the largest edges, what circuits of them keep, and how well estimates and exact effects agree.

    Args:
        result: a result of `edge_attribution`.

    Returns:
        What rich can print, line by line: changes of the metric with 95% intervals, faithfulness by size, and
        agreement.

    Example:
        >>> few = dict(batch=2, length=6, exact=16, others=4, sizes=4, draws=1)
        >>> result = interp.run("edge_attribution", "wired", "1:33", reference="33:65", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:33 | embed > L1H0.v | -1414.21 | -703.78 | -1325.83
    """
    if "metric" in result.attrs:
        yield title(f"Change by one edge that carries the corrupted prompt's values: {metric_of(result)}")
    else:
        unit = "logit difference" if result.attrs["measure"] == "logit_difference" else "log-prob"
        yield title(f"Change of the {unit} (nats) where one edge alone carries the paired sequence's values")
    rows = table_of("pool", "edge", "patched exactly", "integrated", "gradient", words=("edge",))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for edge in _ranked(at)[:_FEW]:
            effect = at["effect"].isel(edge=edge)
            cells = [sampled(effect.sel(estimate=name)) for name in ("exact", "integrated", "gradient")]
            rows.add_row(str(pool), str(at["edge"].values[edge]), *cells)
    yield rows
    yield title("What circuits keep of the difference between the clean and the corrupted run")
    rows = table_of("pool", "edges", "by exact effect", "by estimate", "random edges")
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for size in _told(result["size"].values):
            by_order = [sampled(at["faithfulness"].sel(order=order, size=size)) for order in ("exact", "integrated")]
            random = sampled(at["random_faithfulness"].sel(size=size).mean("draw"))
            rows.add_row(str(pool), f"{size} of {result.sizes['edge']}", *by_order, random)
    yield rows
    yield title("Estimates against exact effects, over the edges that were patched")
    columns = (
        "rank correlation",
        "correlation",
        "ten largest found",
        f"largest error ({_unit(result)})",
        "accounted for",
    )
    rows = table_of("pool", "estimate", *columns, words=("estimate",))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for name in ("integrated", "gradient"):
            fits = map(number, at["agreement"].sel(estimate=name).values)
            rows.add_row(str(pool), name, *fits, number(at["accounted"]) if name == "integrated" else "")
    yield rows
    for pool in result["pool"].values:
        share = float(result["accounted"].sel(pool=pool))
        if not abs(share - 1) <= _TRUSTED:
            yield Text(
                f"{pool}: integrated estimates account for {share:.0%} of the difference between the runs: gradients "
                "miss what happens in small parts of the way (saturated attention). Take more steps, or trust the "
                "exact effects alone."
                if np.isfinite(share)
                else f"{pool}: clean and corrupted runs do not differ: there is no circuit to find."
            )


def circuit(result: xr.Dataset) -> go.Figure:
    """Draw the smallest circuit tried that keeps 85% of the difference between the runs, by pool.

    Args:
        result: a result of `edge_attribution`.

    Returns:
        A graph for each pool, lines as wide as the exact effects, coloured by what the reader makes of them, dotted
        where they gain; edges on no path from the embedding to the logits are left out.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> few = dict(batch=2, length=6, exact=16, others=4, sizes=4, draws=1)
        >>> result = interp.run("edge_attribution", "wired", "1:33", reference="33:65", **few)
        >>> circuit(result).layout.annotations[0].text
        '1:33: 3 of 46 edges'
    """
    pools = plots.labels(result["pool"].values)
    chosen = [_circuit(result.isel(pool=i)) for i in range(len(pools))]
    titles = [
        f"{pool}: {len(edges)} of {result.sizes['edge']} edges" if edges else f"{pool}: no circuit"
        for pool, edges in zip(pools, chosen, strict=True)
    ]
    figure = make_subplots(1, len(pools), subplot_titles=titles, horizontal_spacing=0.04)
    depth = 1
    for i, edges in enumerate(chosen):
        at, where = result.isel(pool=i), {"row": 1, "col": i + 1}
        effect = _effect(at)
        strongest = max([abs(effect[e]) for e in edges], default=1.0)
        ends = [(edge, *ends) for edge in edges for ends in _ends(at, edge)]
        place = _places([name for _, writer, reader, _ in ends for name in (writer, reader)])
        depth = max(depth, len({y for _, y in place.values()}))
        for edge, writer, reader, via in sorted(ends, key=lambda end: abs(effect[end[0]])):
            figure.add_trace(_line(at, edge, place[writer], place[reader], via, effect[edge], strongest), **where)
        figure.add_scatter(
            x=[x for x, _ in place.values()],
            y=[y for _, y in place.values()],
            mode="markers+text",
            text=list(place),
            textposition="middle right",
            showlegend=False,
            hoverinfo="text",
            marker={"size": 15, "color": plots.GREY, "symbol": [_symbol(name) for name in place]},
            cliponaxis=False,
            **where,
        )
    for via, colour in _COLOUR.items():
        name = f"through {via}" if len(via) == 1 else f"to {'an MLP' if via == 'MLP' else 'the logits'}"
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": colour, "width": 4}, name=name)
    figure.update_xaxes(visible=False, range=[-1.25, 1.5])
    figure.update_yaxes(visible=False)
    return figure.update_layout(
        template=plots.TEMPLATE,
        height=210 + 85 * min(depth, 14),
        legend_y=1.1,
        margin={"t": 140, "l": 20, "r": 20, "b": 30},
        title=plots.titled(
            "Which edges are enough?" if "metric" in result.attrs else "Which edges are enough to copy?", result
        ),
    )


def faithfulness(result: xr.Dataset) -> go.Figure:
    """Draw what the best edges keep of the difference between the runs, beside the same number of random ones.

    Args:
        result: a result of `edge_attribution`.

    Returns:
        Lines by circuit size, y the share kept (1: all), with 95% intervals over sequences, a panel for each pool.

    Source:
        Hanna, Pezzelle and Belinkov 2024, Have Faith in Faithfulness, arXiv 2403.17806.

    Example:
        >>> few = dict(batch=2, length=6, exact=16, others=4, sizes=4, draws=1)
        >>> result = interp.run("edge_attribution", "wired", "1:33", reference="33:65", **few)
        >>> [line.name for line in faithfulness(result).data]
        ['by exact effect', 'by integrated gradients', 'random edges']
    """
    pools = plots.labels(result["pool"].values)
    figure = make_subplots(1, len(pools), column_titles=pools, horizontal_spacing=0.03, shared_yaxes=True)
    for i in range(len(pools)):
        at = result.isel(pool=i)
        curves = {
            "by exact effect": at["faithfulness"].sel(order="exact"),
            "by integrated gradients": at["faithfulness"].sel(order="integrated"),
            "random edges": at["random_faithfulness"].mean("draw"),
        }
        for k, (name, values) in enumerate(curves.items()):
            mean, low, high = mean_interval(values.transpose("batch", "size").values)
            figure.add_scatter(
                x=result["size"].values,
                y=mean,
                name=name,
                legendgroup=name,
                showlegend=i == 0,
                mode="lines+markers",
                line={"color": plots.GREY if name == "random edges" else plots.colour(k), "width": 2},
                marker={"size": 7, "symbol": k},
                error_y=plots.errors(mean, low, high, width=3),
                row=1,
                col=i + 1,
            )
    for level in (0, 1):
        figure.add_hline(level, line={"color": plots.GREY, "dash": "dot", "width": 1})
    figure.update_xaxes(type="log", title=f"edges kept, of {result.sizes['edge']}", dtick="D2")
    figure.update_yaxes(title="share of the difference kept", col=1)
    title = plots.titled(f"How few edges keep the {'answer' if 'metric' in result.attrs else 'copy'}?", result)
    return figure.update_layout(template=plots.TEMPLATE, legend_y=1.1, title=title)


def estimates_and_effects(result: xr.Dataset) -> go.Figure:
    """Draw the estimated effect of each patched edge against the exact one.

    Args:
        result: a result of `edge_attribution`.

    Returns:
        Dots, both axes in nats (of prompts, in the metric); on the diagonal the estimate is exact.

    Source:
        Hanna, Pezzelle and Belinkov 2024, Have Faith in Faithfulness, arXiv 2403.17806.

    Example:
        >>> few = dict(batch=2, length=6, exact=16, others=4, sizes=4, draws=1)
        >>> result = interp.run("edge_attribution", "wired", "1:33", reference="33:65", **few)
        >>> estimates_and_effects(result).layout.xaxis.title.text
        'nats, patched exactly'
    """
    pools = plots.labels(result["pool"].values)
    figure = make_subplots(1, len(pools), column_titles=pools, horizontal_spacing=0.03, shared_yaxes=True)
    mean = result["effect"].mean("batch", skipna=False)
    exact = mean.sel(estimate="exact")
    ends = [float(exact.min()), float(exact.max())]
    for i in range(len(pools)):
        at = {"row": 1, "col": i + 1}
        diagonal = {"color": plots.GREY, "dash": "dot"}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=diagonal, showlegend=False, hoverinfo="skip", **at)
        known = np.isfinite(exact.isel(pool=i).values)
        for k, name in enumerate(("gradient", "integrated")):
            figure.add_scatter(
                x=exact.isel(pool=i).values[known],
                y=mean.isel(pool=i).sel(estimate=name).values[known],
                mode="markers",
                marker={"color": plots.colour(k), "size": 8, "symbol": k, "opacity": 0.75},
                name=name,
                legendgroup=name,
                showlegend=i == 0,
                text=[plots.escaped(edge) for edge in result["edge"].values[known]],
                hovertemplate=f"%{{text}}, {name}<br>exact %{{x:.2f}}, estimated %{{y:.2f}}<extra></extra>",
                **at,
            )
    figure.update_xaxes(title=f"{_unit(result)}, patched exactly")
    figure.update_yaxes(title=f"{_unit(result)}, by gradients", col=1)
    title = plots.titled("Can gradients stand in for patching edges?", result)
    return figure.update_layout(template=plots.TEMPLATE, legend_y=1.1, title=title)


def _unit(result: xr.Dataset) -> str:
    return str(result.attrs.get("unit", "nats"))


def _effect(at: xr.Dataset) -> np.ndarray:
    """[edge]: the exact effect where it is known, else the integrated estimate."""
    mean = at["effect"].mean("batch", skipna=False)
    exact = mean.sel(estimate="exact").values
    return np.where(np.isfinite(exact), exact, mean.sel(estimate="integrated").values)


def _ranked(at: xr.Dataset) -> np.ndarray:
    """Edges as the circuits take them by exact effect: those that were patched first."""
    exact = np.isfinite(at["effect"].sel(estimate="exact").values).all(-1)
    return np.lexsort((-np.abs(_effect(at)), ~exact))


def _told(sizes: np.ndarray) -> list[int]:
    """A few of the sizes, the last among them."""
    return [int(size) for size in sizes[::-1][:: max(1, len(sizes) // 6)][::-1]]


def _circuit(at: xr.Dataset) -> list[int]:
    """The edges of the smallest circuit that keeps enough, and those that are needed by themselves; less dead ends."""
    kept = at["faithfulness"].sel(order="exact").mean("batch").values
    sizes = at["size"].values[kept >= ENOUGH]
    if not len(sizes):
        return []
    effect, whole = np.abs(_effect(at)), abs(float((at["clean"] - at["corrupted"]).mean()))
    ranked = _ranked(at)
    enough = set(ranked[: int(sizes.min())].tolist())
    edges = [
        int(e) for e in ranked if effect[e] > _NOTHING * effect.max() and (e in enough or effect[e] > NEEDED * whole)
    ]
    edges = edges[:_MOST]
    pairs = {e: {(w, r) for w, r, _ in _ends(at, e)} for e in edges}
    for start, end, sources in (("embed", "logits", True), ("logits", "embed", False)):
        reached, more = {start}, True
        while more:
            steps = {pair if sources else pair[::-1] for found in pairs.values() for pair in found}
            new = {b for a, b in steps if a in reached} - reached
            reached, more = reached | new, bool(new)
        edges = [e for e in edges if any((w if sources else r) in reached for w, r in pairs[e])]
        pairs = {e: pairs[e] for e in edges}
        if end not in reached:
            return []
    return edges


def _ends(at: xr.Dataset, edge: int) -> list[tuple[str, str, str]]:
    """Writer, node of the reader and what it reads through; heads that share a reader have one line each."""
    writer, reader = str(at["writer"].values[edge]), str(at["reader"].values[edge])
    node, _, via = reader.partition(".")
    if not via:
        return [(writer, node, "logits" if node == "logits" else "MLP")]
    layer, _, heads = node.partition("H")
    first, _, last = heads.partition("-")
    return [(writer, f"{layer}H{head}", via) for head in range(int(first), int(last or first) + 1)]


def _depth(name: str) -> float:
    """The height of a node."""
    if name in ("embed", "logits"):
        return -1.0 if name == "embed" else np.inf
    return int(name[3:]) + 0.5 if name.startswith("MLP") else float(name[1:].partition("H")[0])


def _places(names: list[str]) -> dict[str, tuple[float, float]]:
    """Where each node is drawn: the embedding below, layers above it, heads side by side and MLPs over them."""
    rows = sorted({_depth(name) for name in names})
    found = {}
    for y, depth in enumerate(rows):
        row = sorted({name for name in names if _depth(name) == depth}, key=lambda n: (len(n), n))
        for i, name in enumerate(row):
            # single nodes are off centre, so that lines passing them are visible
            x = (0.25 if y % 2 else -0.25) if len(row) == 1 else -1 + 2 * i / (len(row) - 1)
            found[name] = (0.0 if name in ("embed", "logits") else x, float(y))
    return found


def _symbol(name: str) -> str:
    return "square" if name.startswith("MLP") else "diamond" if name in ("embed", "logits") else "circle"


def _line(
    at: xr.Dataset,
    edge: int,
    start: tuple[float, float],
    end: tuple[float, float],
    via: str,
    effect: float,
    strongest: float,
) -> go.Scatter:
    """A line, bowed the more, the farther it leads, and to another side for each way in."""
    (x, y), (to_x, to_y) = start, end
    t = np.linspace(0, 1, 21)
    bow = {"q": 0.10, "k": 0.0, "v": -0.10}.get(via, 0.14) * (to_y - y)
    exact = np.isfinite(at["effect"].sel(estimate="exact").values[edge]).all()
    said = f"{at['edge'].values[edge]}: {effect:+.2f} {_unit(at)}{'' if exact else ' (estimated)'}"
    return go.Scatter(
        x=x + t * (to_x - x) + 4 * bow * t * (1 - t),
        y=y + t * (to_y - y),
        mode="lines",
        line={
            "color": _COLOUR[via],
            "width": 0.8 + 9 * abs(effect) / strongest,
            "dash": "solid" if effect < 0 else "dot",
        },
        opacity=0.75,
        showlegend=False,
        text=[plots.escaped(said)] * len(t),
        hoverinfo="text",
    )


FIGURES = [circuit, faithfulness, estimates_and_effects]


def _edge_attribution(folder: str, model: str, order: int) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("edge_attribution", model=model, batch=16),
        (
            Caption("circuit", f"The edges of `{model}` that are enough to copy, by pool.", HANNA),
            Caption(
                "faithfulness", "What the best edges keep of the copy, against the same number of random ones.", HANNA
            ),
            Caption("estimates_and_effects", "What gradients estimate that each edge carries, against patching it."),
        ),
        CHAPTERS[2],
        order=order,
    )


GALLERY = (
    _edge_attribution("edge_attribution", "organism", 62),
    _edge_attribution("edge_attribution_llama", "organism-llama", 63),
)
