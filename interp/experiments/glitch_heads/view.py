"""How does a result of `glitch_heads` look: which heads fail, and what do they account for, over layers?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import Caption, GalleryEntry, Tolerance, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables import Cell, interval, number, sampled, table_of, title

_MOST = 12  # parts of heads of a pool that the table has
_HALF = 0.5
_COLOUR = {"attention": plots.COLOURS[0], "cargo": plots.COLOURS[1]}
_SYMBOL = {"attention": "circle", "cargo": "square"}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List what each part of the detected heads does, what its repair gains and its damage costs, and the verdict.

    Args:
        result: a result of `glitch_heads`.

    Returns:
        What rich can print, line by line: shares and nats with 95% intervals.

    Example:
        >>> few = dict(batch=4, length=6, fits=1, exact=2, steps=4)
        >>> result = interp.run("glitch_heads", "wired", "1:33", reference="33:65", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:33 | L1H0 attention | 1.00 | 1.00 | 0.00 | 0.00 | 0.00 | 0.00
    """
    model = provenance(result)["model"]["name"]
    yield title(f"Heads of '{model}': what they do for a pool and for ordinary tokens, and what it accounts for (nats)")
    names = ("repaired alone", "damaged alone", "share of repair", "share of damage")
    rows = table_of("pool", "part of a head", "pool", "ordinary", *names, words=("part of a head",))
    for pool in result["pool"].values:
        for i, (head, part) in enumerate(_largest(result.sel(pool=pool))[:_MOST]):
            rows.add_row(str(pool) if i == 0 else "", *_cells(result.sel(pool=pool), head, part))
    yield rows
    yield Text(
        "Damaged: on ordinary tokens, a part is what it is for the pool. Alone: a run in which this part is changed, "
        "and no other, with its 95% interval; share: by integrated gradients, of all classified heads together."
    )
    for pool in result["pool"].values:
        yield from _remarks(result.sel(pool=pool), str(pool))
    for line in str(result.attrs["verdict"]).splitlines():
        yield Text(line)


def _cells(at: xr.Dataset, head: str, part: str) -> list[Cell | str]:
    one = at.sel(circuit_head=head, part=part)
    said = "previous" if str(one["kind"].item()) == "previous" else part  # attention to the token before
    does = [number(one["does"].sel(role=role).mean("batch")) for role in ("pool", "ordinary")]
    alone = [sampled(one["effect"].sel(direction=to, estimate="alone")) for to in ("repair", "damage")]
    shares = [
        number(one["effect"].sel(direction=to, estimate="integrated").mean("batch")) for to in ("repair", "damage")
    ]
    return [f"{head} {said}", *does, *alone, *shares]


def _largest(at: xr.Dataset) -> list[tuple[str, str]]:
    """Parts (head, part) of classified heads, those that account for most in either direction first."""
    effect = abs(at["effect"].mean("batch"))
    most = effect.fillna(0).max(["direction", "estimate"])
    found = []
    for head in at["circuit_head"].values[at["head_group"].values == "classified"]:
        for part in map(str, at["part"].values):
            where = {"circuit_head": head, "part": part}
            if effect.sel(where).notnull().any():
                found.append((float(most.sel(where)), (str(head), part)))
    return [name for _, name in sorted(found, key=lambda one: -one[0])]


def _remarks(at: xr.Dataset, pool: str) -> Iterator[RenderableType]:
    """What all parts together do, the controls, and how far gradients can be trusted."""
    whole = at["whole"].mean("batch")
    lacks = interval(at["deficit"], at["deficit_low"], at["deficit_high"])
    both = [float(whole.sel(direction=to, group="classified")) for to in ("repair", "damage")]
    yield Text(
        f"{pool}: lacks {lacks} nats of log p(token or a near-duplicate). All parts of classified "
        "heads, repaired, gain "
        f"{both[0]:.2f}; damaged, they cost {both[1]:.2f}. Attention set to its mean moves ordinary tokens by "
        f"{sampled(at['moved'])}."
    )
    controls = at["head_group"].values == "control"
    if controls.any():
        effect = at["effect"].isel(circuit_head=controls).mean("batch")
        sums = [float(whole.sel(direction=to, group="control")) for to in ("repair", "damage")]
        yield Text(
            f"{pool}: size-matched control heads of these layers ({controls.sum()}), gain "
            f"{sums[0]:.2f} and cost {sums[1]:.2f}; no part of one more than {float(abs(effect).max()):.2f}."
        )
    for to in ("repair", "damage"):
        total, sum_of = (float(part.sel(direction=to, group="classified")) for part in (whole, at["integral"]))
        fit = at["agreement"].sel(direction=to, group="classified")
        if not np.isfinite(fit.values[1]):
            yield Text(
                f"{pool}: {to}: integrated gradients sum to {sum_of:.2f} of {total:.2f} nats, and are not used: "
                "give more --steps."
            )
            continue
        yield Text(
            f"{pool}: {to}: integrated gradients sum to {sum_of:.2f} of {total:.2f} nats. Against the mean of what a "
            f"part does first and last, in runs, of {int(fit.values[2])} parts: correlation "
            f"{number(fit.values[0])}, largest difference {number(fit.values[1])} nats."
        )


def heads_over_layers(result: xr.Dataset) -> go.Figure:
    """Draw what each part of a head accounts for, by layer.

    Args:
        result: a result of `glitch_heads`.

    Returns:
        Dots in nats: filled, changed alone, with 95% intervals; open, by integrated gradients; a panel for each pool
        and direction.

    Example:
        >>> few = dict(batch=4, length=6, fits=1, exact=2, steps=4)
        >>> result = interp.run("glitch_heads", "wired", "1:33", reference="33:65", **few)
        >>> heads_over_layers(result).layout.yaxis.title.text
        'nats gained on the pool'
    """
    panels = {"repair": "gained on the pool", "damage": "lost on ordinary tokens"}
    pools = plots.labels(result["pool"].values)
    figure = _panels(pools, len(panels))
    for row, (direction, said) in enumerate(panels.items(), start=1):
        for i in range(len(pools)):
            effect = result["effect"].isel(pool=i).sel(direction=direction)
            for part in map(str, result["part"].values):
                of = effect.sel(part=part).transpose("estimate", "batch", "circuit_head")
                alone = mean_interval(of.sel(estimate="alone").values)
                shares = of.sel(estimate="integrated").mean("batch").values
                where = {"row": row, "col": i + 1}
                _dots(figure, result, part, alone, f"{part}, alone", where)
                _dots(figure, result, part, shares, f"{part}, gradients", where, filled=False)
        figure.update_yaxes(title=f"nats {said}", col=1, row=row)
    _legend(figure, result, gradients=True)
    return _finished(figure, "Which heads account for the deficit?", 2, result)


def what_heads_do(result: xr.Dataset) -> go.Figure:
    """Draw each part of a head as a share of what it is for ordinary tokens, by layer.

    Args:
        result: a result of `glitch_heads`.

    Returns:
        Dots, y a share (100%: as for ordinary tokens), a panel for each pool; controls are grey.

    Example:
        >>> few = dict(batch=4, length=6, fits=1, exact=2, steps=4)
        >>> result = interp.run("glitch_heads", "wired", "1:33", reference="33:65", **few)
        >>> what_heads_do(result).layout.annotations[0].text
        '1:33'
    """
    pools = plots.labels(result["pool"].values)
    figure = _panels(pools, 1)
    does = result["does"].mean("batch")
    share = does.sel(role="pool") / does.sel(role="ordinary")
    for i in range(len(pools)):
        where = {"row": 1, "col": i + 1}
        for part in map(str, result["part"].values):
            _dots(figure, result, part, share.isel(pool=i).sel(part=part).values, part, where)
    for level in (_HALF, 1.0):
        figure.add_hline(y=level, line={"dash": "dot", "color": plots.GREY, "width": 1})
    called = share.isel(circuit_head=result["head_group"].values == "classified").values
    # controls do almost nothing for any token, so that their shares may be any number, and lie outside
    figure.update_yaxes(range=[-0.1, 1.1 * max(1.2, *called[np.isfinite(called)], 0.0)], tickformat=".0%")
    figure.update_yaxes(title="share of ordinary tokens'", col=1)
    _legend(figure, result, gradients=False)
    return _finished(figure, "What do the heads of the circuit do for these tokens?", 1, result)


def _panels(pools: list[str], rows: int) -> go.Figure:
    return make_subplots(
        rows, len(pools), column_titles=pools, shared_xaxes=True, shared_yaxes="rows", horizontal_spacing=0.03,
        vertical_spacing=0.08,
    )  # fmt: skip


def _dots(
    figure: go.Figure,
    result: xr.Dataset,
    part: str,
    values: np.ndarray,
    name: str,
    where: dict[str, int],
    *,
    filled: bool = True,
) -> None:
    """A dot for each head, [head] or, with the ends of intervals, [3 head]; controls in grey."""
    mean, low, high = values if values.ndim == 2 else (values, None, None)
    heads = list(map(str, result["circuit_head"].values))
    layer, head = _places(result).T
    x = layer + 0.7 * ((head + 0.5) / (1 + head.max()) - 0.5)  # heads of one layer side by side
    controls = result["head_group"].values == "control"
    for chosen, colour in ((~controls, _COLOUR[part]), (controls, plots.GREY)):
        chosen = chosen & np.isfinite(mean)
        bars = {}
        if low is not None and high is not None:
            bars["error_y"] = plots.errors(mean[chosen], low[chosen], high[chosen], width=2)
        figure.add_scatter(
            x=x[chosen],
            y=mean[chosen],
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=False,
            marker=_marker(part, colour, filled),
            text=[f"{head}{', not classified' if grey else ''}" for head, grey in zip(heads, controls, strict=True)],
            hovertemplate="%{text}, " + f"{name}: %{{y:.2f}}<extra></extra>",
            **bars,
            **where,
        )


def _marker(part: str, colour: str, filled: bool) -> dict[str, object]:
    symbol = _SYMBOL[part] if filled else f"{_SYMBOL[part]}-open"
    return {"color": colour, "symbol": symbol, "size": 9 if filled else 7}


def _legend(figure: go.Figure, result: xr.Dataset, *, gradients: bool) -> None:
    """Legend names of everything drawn, whatever the first panel holds."""
    names = []
    for part in map(str, result["part"].values):
        names.append((f"{part}, alone" if gradients else part, _marker(part, _COLOUR[part], True)))
        if gradients:
            names.append((f"{part}, gradients", _marker(part, _COLOUR[part], False)))
    for name, marker in [*names, ("not classified", {"color": plots.GREY, "size": 9})]:
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, legendgroup=name, marker=marker)


def _finished(figure: go.Figure, words: str, rows: int, result: xr.Dataset) -> go.Figure:
    figure.update_xaxes(dtick=1 if _places(result)[:, 0].max() < 12 else 4)
    figure.update_xaxes(title="layer", row=rows)
    title = plots.titled(words, result)
    return figure.update_layout(
        template=plots.TEMPLATE, title=title, legend_y=1 + 40 / (280 * rows), height=200 + 280 * rows
    )


def _places(result: xr.Dataset) -> np.ndarray:
    """[head 2]: layer and number of each head."""
    return np.array([[int(part) for part in str(name)[1:].split("H")] for name in result["circuit_head"].values])


FIGURES = [heads_over_layers, what_heads_do]


def _glitch_heads(folder: str, who: str, **options: Any) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("glitch_heads", **options),
        (
            Caption(
                "heads_over_layers",
                f"What the attention and the cargo of each head account for, of what {who} lack of ordinary ones: "
                "repaired on their sequences, and damaged on ordinary ones.",
            ),
            Caption(
                "what_heads_do",
                "What each head does for them, as a share of what it does for ordinary tokens.",
            ),
        ),
        "causes and repairs",
        tolerance=Tolerance(atol=0.02, why="rounding decides where the path of gradients is halved"),
        order=15,
    )


GALLERY = (
    _glitch_heads("glitch_heads", "single unexposed tokens", model="organism-untied", mixed=True),
    of_public_model(_glitch_heads("", "blocks of glitch tokens of `smollm2`")),
)
