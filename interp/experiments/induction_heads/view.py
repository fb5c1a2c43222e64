"""How does a result of `induction_heads` look: which heads are which, and what do their weights say?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import ELHAGE, OLSSON, Caption, GalleryEntry, ReportSection, of_public_model
from interp.experiments.attention_scores.view import head_scores
from interp.request import Request
from interp.results import provenance
from interp.tables import Cell, number, table_of, title

_MOST = 8  # heads in one list


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the classified heads of each kind by pool, and what their weights say.

    Args:
        result: a result of `induction_heads`.

    Returns:
        What rich can print, line by line: scores, nulls and shares, composition, and the in-context-learning score
        (nats).

    Example:
        >>> result = interp.run("induction_heads", "wired", "1:33", batch=4, length=8, baseline_draws=4)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:33 | induction | L1H0 1.00 (0.00, 100%)
    """
    model = provenance(result)["model"]["name"]
    yield title(
        f"Heads of '{model}', classified against sequences without a repeat (score, null's mean, most attended key)"
    )
    rows = table_of("pool", "kind", "heads", words=("kind", "heads"))
    for pool in result["pool"].values:
        for kind in result["kind"].values:
            at = result.sel(pool=pool, kind=kind)
            if np.isfinite(float(at["threshold"])):
                words = _called(at.sel(key_kind=kind)) or "none"
            else:
                words = "no null: the sequences hold too few distinct tokens for one without a repeat"
            rows.add_row(str(pool), str(kind), words)
    yield rows
    if bool(result["classified"].sel(kind="induction").any()):
        yield from _weights(result)
    elif bool(np.isfinite(result["threshold"].sel(kind="induction")).any()):
        yield Text("This model has no induction head by this rule.")
    context = result["in_context_learning"].sel(span="twenty").values
    if np.isfinite(context[0]):
        yield Text(
            "In-context learning on text: loss at token 500 less loss at token 50 (twenty tokens each) "
            f"{context[0]:+.2f} nats ({context[1]:+.2f} .. {context[2]:+.2f})."
        )


def _called(at: xr.Dataset) -> Cell:
    """The classified heads, the largest score first."""
    score, null, looked = (at[n].mean("batch", skipna=True) for n in ("score", "null", "argmax_share"))
    found = sorted(np.argwhere(at["classified"].values).tolist(), key=lambda lh: -float(score[lh[0], lh[1]]))
    words = [
        f"L{la}H{h} {float(score[la, h]):.2f} ({float(null[la, h]):.2f}, {float(looked[la, h]):.0%})"
        for la, h in found[:_MOST]
    ]
    said = ", ".join(words) + (f" and {len(found) - _MOST} more" if len(found) > _MOST else "")
    values: dict[str, Any] = {"": ", ".join(f"L{la}H{h}" for la, h in found)}  # in a CSV file, all of them
    for place, at_head in enumerate(map(tuple, found[:_MOST]), start=1):
        values |= {f"{place} score": score.values[at_head], f"{place} null": null.values[at_head]}
        values |= {f"{place} argmax share": looked.values[at_head]}
    return Cell(said, values)


def _weights(result: xr.Dataset) -> Iterator[RenderableType]:
    """How well the weights of the heads classified as induction heads copy and match."""
    for name in ("copying", "matching", "composition"):
        if f"no_{name}" in result.attrs:
            yield Text(f"No {name}: {result.attrs[f'no_{name}']}.")
    if result.attrs.get("out_of_reach"):
        layers, distance = result.attrs["out_of_reach"].replace(" ", ", "), result.attrs["distance"]
        yield Text(f"No matching in layers {layers}: their attention does not reach {distance} back.")
    yield title(
        "Copying and matching by the weights (rows after the first MLP): heads classified as induction, and their sum"
    )
    columns = ("head", "copying (eigenvalues)", "top-1", "top-5", "matching", "through")
    rows = table_of("pool", *columns, words=("head", "through"))
    matching = result["matching"].sel(rows="effective").drop_sel(through="embedding")
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for layer, head in np.argwhere(result["classified"].sel(kind="induction").any("pool").values):
            best, through = number(np.nan), "-"
            asked = matching.sel(pool=pool, layer=layer, head=head)
            if bool(asked.notnull().any()):
                best = number(asked.max(), ".0%")
                through = str(asked["through"].values[int(np.nanargmax(asked.values))])
            copied = _copied(at["copying"].sel(rows="effective", layer=layer, head=head))
            rows.add_row(str(pool), f"L{layer}H{head}", *copied, best, through)
        if bool(at["copying_together"].notnull().any()):
            rows.add_row(str(pool), "together", *_copied(at["copying_together"].sel(rows="effective")))
    yield rows
    distance = result.attrs["distance"]
    yield Text(f"Matching: share of tokens whose best key, {distance} back, is the token after their own.")


def _copied(values: xr.DataArray) -> list[Cell]:
    shown = {"eigenvalues": ".2f", "top1": ".0%", "top5": ".0%"}
    return [number(values.sel(measure=measure), spec) for measure, spec in shown.items()]


def matching_and_copying(result: xr.Dataset) -> go.Figure:
    """Draw prefix matching against copying, with the classified heads filled.

    Args:
        result: a result of `induction_heads`.

    Returns:
        A dot for each head and pool, x induction score (0 to 1), y copying score (-1 to 1).

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("induction_heads", "wired", "1:33", batch=4, length=8, baseline_draws=4)
        >>> matching_and_copying(result).layout.yaxis.title.text
        'copying score (OV eigenvalues)'
    """
    figure = go.Figure()
    score = result["score"].sel(key_kind="induction").mean("batch").transpose("pool", "layer", "head")
    copied = result["copying"].sel(measure="eigenvalues", rows="effective").transpose("pool", "layer", "head")
    names = plots.head_names(score)
    for i, pool in enumerate(plots.labels(result["pool"].values)):
        called = result["classified"].isel(pool=i).sel(kind="induction").values.ravel()
        figure.add_scatter(
            x=score.values[i].ravel(),
            y=copied.values[i].ravel(),
            mode="markers+text",
            name=pool,
            textposition="top center",
            textfont={"size": 11},
            text=[n if c else "" for n, c in zip(names, called, strict=True)],
            marker={
                "size": 10,
                "color": plots.colour(i),
                "line": {"color": plots.colour(i), "width": 1.5},
                "symbol": [f"{('circle', 'square', 'diamond', 'cross')[i % 4]}{'' if c else '-open'}" for c in called],
            },
            customdata=names,
            hovertemplate=f"%{{customdata}}, {pool}<br>induction %{{x:.3f}}<br>copying %{{y:.3f}}<extra></extra>",
        )
    figure.update_xaxes(range=[-0.04, 1.04])
    figure.update_yaxes(range=[-1.1, 1.15])
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Heads that match and copy; filled: classified as induction heads", result),
        xaxis_title="induction score (attention)",
        yaxis_title="copying score (OV eigenvalues)",
    )


def head_composition(result: xr.Dataset) -> go.Figure | None:
    """Draw the composition of every pair of heads, with the pairs of the copying circuit named.

    Args:
        result: a result of `induction_heads`.

    Returns:
        A dot for each pair, y as a multiple of the mean over Gaussian matrices (1: no more than chance); None where
        composition was not measured.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("induction_heads", "wired", "1:33", batch=4, length=8, baseline_draws=4)
        >>> [box.name for box in head_composition(result).data[:2]]
        ['other pairs', 'previous-token to induction heads']
    """
    if "composition" not in result:
        return None
    figure = go.Figure()
    called = result["classified"].any("pool")
    names = np.array(plots.head_names(called)).reshape(called.sizes["layer"], -1)
    pairs = np.array([[[[f"{a} to {b}" for b in late] for late in names] for a in early] for early in names])
    circuit = np.einsum("ab,cd->abcd", called.sel(kind="previous").values, called.sel(kind="induction").values)
    groups = (
        (~circuit, "other pairs", plots.GREY, 6),
        (circuit, "previous-token to induction heads", plots.COLOURS[1], 9),
    )
    scale = result["baseline"].sel(bound="mean")
    for mode in result["mode"].values:
        values = result["composition"].sel(mode=mode).values / float(scale.sel(mode=mode))
        for j, (among, words, colour, size) in enumerate(groups):
            at = among & np.isfinite(values)
            figure.add_box(
                y=values[at],
                x=[f"{mode}-composition"] * int(at.sum()),
                text=pairs[at],
                name=words,
                legendgroup=words,
                showlegend=bool(mode == result["mode"].values[0]),
                **plots.scattered(jitter=0.5),
                offsetgroup=str(j),
                marker={"color": colour, "size": size, "opacity": 0.75, "symbol": 2 * j},
                hovertemplate="%{text}: %{y:.2f}<extra></extra>",
            )
    low, high = (result["baseline"].sel(bound=b) / scale for b in ("low", "high"))
    figure.add_hrect(y0=float(low.min()), y1=float(high.max()), fillcolor=plots.COLOURS[0], opacity=0.3, line_width=0)
    figure.add_hline(
        y=1,
        line={"color": plots.COLOURS[0], "dash": "dot", "width": 1},
        annotation_text="Gaussian matrices, middle 95%",
        annotation_position="top left",
        annotation_font_color=plots.COLOURS[0],
    )
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(
        template=plots.TEMPLATE,
        boxmode="group",
        title=plots.titled("Do heads read what earlier heads write?", result),
        yaxis_title="composition / that of Gaussian matrices",
    )


FIGURES = [head_scores, matching_and_copying, head_composition]


def _induction_heads(folder: str, model: str) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("induction_heads", model=model),
        (
            Caption(
                "head_scores",
                f"Where each head of `{model}` looks, by pool of tokens.",
                f"the prefix-matching scores by head of {OLSSON}",
            ),
            Caption(
                "matching_and_copying",
                f"Prefix matching against copying, a mark for each head of `{model}`; heads classified as "
                "induction heads are "
                "filled.",
                f"the plot of heads that match and copy of {ELHAGE}",
            ),
            Caption(
                "head_composition",
                f"How strongly later heads of `{model}` read what earlier ones write, over Gaussian matrices of "
                "the same "
                "shapes.",
                f"the composition scores of {ELHAGE}",
            ),
        ),
        "the copying circuit",
        order=20,
    )


GALLERY = (
    _induction_heads("induction_heads", "organism"),
    _induction_heads("induction_heads_llama", "organism-llama"),
    of_public_model(_induction_heads("", "smollm2")),
)

SECTION = ReportSection(
    "heads",
    "The heads that copy",
    "Heads are classified as induction or previous-token heads where they look back as copying needs it, more than in "
    "sequences without a repeat; and what their weights alone would do.",
    Request.of("induction_heads", batch=16),
    figures=("matching_and_copying", "head_scores"),
    order=50,
)
