"""How does a result of `glitch_attribution` look: which stages of copying lack how many nats, and what repairs them?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import Caption, GalleryEntry, ReportSection, Tolerance, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.tables import Cell, interval, number, table_of, title

_STAGES = ("identity", "matching", "content", "readout", "suppression")
_COLOUR = dict(zip(_STAGES, plots.COLOURS, strict=False)) | {"unexplained": plots.GREY}
_NAMES = {
    "none": "as it is",
    **{stage: stage for stage in _STAGES[1:]},
    " + ".join(["matching", "content", "readout", "suppression"]): "all four",
    "paired": "paired",
}
# parts of repairs, as combinations of a result
_BESIDE = ("matching: induction heads", "matching: previous-token heads")
_LEVEL = 0.05  # of tests by permutation
_PLACES = {"source": "at the token itself", "prediction": "where it is predicted"}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the deficit and its shares by pool, what each repair does alone, and the verdict.

    Args:
        result: a result of `glitch_attribution`.

    Returns:
        What rich can print, line by line: nats with 95% intervals; a dash where a share was not tested.

    Example:
        >>> few = dict(batch=4, pairings=1, fits=1, length=6, reference="33:65")
        >>> result = interp.run("glitch_attribution", "wired", "1:33", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:3]), sep=" | ")
        1:33 | (deficit) | 0.00
    """
    model = provenance(result)["model"]["name"]
    yield title(
        f"Deficit of the tokens of '{model}' against ordinary ones, where context determines the "
        "token, by cause (nats, 95% interval)"
    )
    rows = table_of("pool", "cause", "nats", "of the deficit", words=("cause",))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        rows.add_row(str(pool), "(deficit)", interval(at["deficit"], at["deficit_low"], at["deficit_high"]))
        for stage in map(str, result["stage"].values):
            rows.add_row("", stage, *_share_cells(at, stage))
    yield rows
    yield from _not_tested(result)
    yield title(
        "Each repair alone: nats gained of log p(token or a near-duplicate), and nats by which it moves ordinary tokens"
    )
    yield _repairs(result)
    yield from _remarks(result)
    yield from _permutations(result)
    for line in str(result.attrs["verdict"]).splitlines():
        yield Text(line)


def _share_cells(at: xr.Dataset, stage: str) -> tuple[Cell | str, Cell | str]:
    """Nats and part of the deficit of one stage of a pool: an interval where that is all that is known, or dashes."""
    share, low, high = (float(at[name].sel(stage=stage)) for name in ("share", "share_low", "share_high"))
    if _reason(at, stage) or not np.isfinite([share, low, high]).any():
        return "-", "-"
    if not np.isfinite(share):
        return Cell(f"{low:.2f} .. {high:.2f}", {"low": low, "high": high}), "-"
    explained = float(at["deficit_low"]) > 0  # otherwise a share of it means nothing
    return interval(share, low, high), number(share / float(at["deficit"]) if explained else float("nan"), ".0%")


def _reason(at: xr.Dataset, stage: str) -> str:
    """Why a stage of a pool was not tested; "" where it was, and in results that do not say."""
    return str(at["reason"].sel(stage=stage).item()) if "reason" in at else ""


def _not_tested(result: xr.Dataset) -> Iterator[RenderableType]:
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for stage in map(str, result["stage"].values):
            if _reason(at, stage):
                most = float(at["share_high"].sel(stage=stage))
                yield Text(
                    f"{pool}: {stage} is not testable ({_reason(at, stage)}). It may be up to {most:.2f} nats; shares "
                    "of the others are intervals over that."
                )


def _remarks(result: xr.Dataset) -> Iterator[RenderableType]:
    """What matching sets, what the residual stream distinguishes, and what follows from near-duplicates."""
    scale = float(result["attention_scale"].mean()) if "attention_scale" in result else 1.0
    if scale != 1:
        yield Text(
            f"matching: induction heads are set to {scale:.0%} of their mean attention to the right key, with which "
            "ordinary tokens stay as they are."
        )
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        known = float(at["retrieval"].sel(role="pool", place="prediction", way="fitted").max())
        near = float(at["near_duplicates"])
        yield Text(
            f"{pool}: a token has {near:.0f} near-duplicates, itself included; where it is predicted, the residual "
            f"stream separates {known:.0%} of them."
        )
        members = int((at["member_id"] >= 0).sum())
        if near > max(1.0, members / 2) and float(at["deficit_low"]) > 0:
            yield Text(
                f"{pool}: with most of them in one cluster, content and read-out cannot be separated: only "
                "their sum is determined."
            )


def _permutations(result: xr.Dataset) -> Iterator[RenderableType]:
    """Whether tokens of a pool, and two pools, differ more than by chance; nothing for older results."""
    if "tokens_deficit_p" not in result:
        return
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        p = float(at["tokens_deficit_p"])
        if np.isfinite(p):
            yield Text(
                f"{pool}: its tokens {'differ' if p < _LEVEL else 'are not shown to differ'} in their deficit (p = "
                f"{p:.2g}, tokens permuted within sequences)."
            )
    if result.sizes["pool"] == 2:
        one, other = map(str, result["pool"].values)
        p = float(result["pools_deficit_p"].sel(pool=one, other_pool=other))
        yield Text(
            f"{one} and {other} {'differ' if p < _LEVEL else 'are not shown to differ'} in their mean deficit (p = "
            f"{p:.2g}, tokens permuted between them)."
        )


def _repairs(result: xr.Dataset) -> RenderableType:
    rows = table_of("pool", "repair", "gained", "ordinary tokens", words=("repair",))
    every = list(map(str, result["combination"].values))
    beside = [name for name in (*_BESIDE, "matching in classified heads") if name in every]
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        value, health = at["value"].sel(quantity="cluster"), at["health"].sel(quantity="log_prob")
        used = [repair for repair in map(str, result["repair"].values) if bool(at["used"].sel(repair=repair))]
        words = {r: r if r in used else f"{r} (not used)" for r in map(str, result["repair"].values)}
        shown = [*words.items(), *((name, name) for name in beside)]
        shown += [(" + ".join(used), "all that are used")] if len(used) > 1 else []
        for i, (repair, said) in enumerate(shown):
            gained = float(value.sel(combination=repair) - value.sel(combination="none"))
            moved = float(health.sel(combination=repair))
            # rows are fitted to the pool's deficit: what do they do to the tokens paired with it?
            if repair == "readout" and _BESIDE[0] in every:
                moved = float(value.sel(combination="paired, other rows") - value.sel(combination="paired"))
            numbers = number(gained, "+.2f"), number(moved, "+.3f")
            rows.add_row(str(pool) if i == 0 else "", said, *numbers)
    return rows


def deficit_shares(result: xr.Dataset) -> go.Figure:
    """Draw each stage's share of the deficit, by pool.

    Args:
        result: a result of `glitch_attribution`.

    Returns:
        Bars in nats with 95% intervals; a black line is the whole deficit; hatched bars reach from the lower to the
        upper bound of shares that were not tested.

    Example:
        >>> few = dict(batch=4, pairings=1, fits=1, length=6, reference="33:65")
        >>> result = interp.run("glitch_attribution", "wired", "1:33", **few)
        >>> [bar.name for bar in deficit_shares(result).data[:6]]
        ['identity', 'matching', 'content', 'readout', 'suppression', 'unexplained']
    """
    figure = go.Figure()
    pools = plots.labels(result["pool"].values)
    for stage in map(str, result["stage"].values):
        share, low, high = (result[n].sel(stage=stage).values for n in ("share", "share_low", "share_high"))
        known = np.isfinite(share)
        from_, to = np.where(known, 0.0, np.nan_to_num(low)), np.where(known, share, np.nan_to_num(high))
        figure.add_bar(
            x=pools,
            y=to - from_,
            base=from_,
            name=stage,
            marker_color=_COLOUR.get(stage, plots.GREY),
            marker_pattern={"shape": ["" if one else "/" for one in known], "fillmode": "replace"},
            error_y=plots.errors(share, low, high, width=3, thickness=1.2, color="#444444"),
            customdata=to,
            hovertemplate=f"%{{x}}, {stage}: %{{base:.2f}} .. %{{customdata:.2f}} nats<extra></extra>",
        )
    deficit, low, high = (result[name].values for name in ("deficit", "deficit_low", "deficit_high"))
    figure.add_scatter(
        x=pools,
        y=deficit,
        mode="markers",
        name="the whole deficit",
        marker={"symbol": "line-ew", "size": 38, "line": {"width": 2, "color": "black"}},
        error_y=plots.errors(deficit, low, high, width=5, color="black"),
        hovertemplate="%{x}: %{y:.2f} nats in all<extra></extra>",
    )
    figure.update_xaxes(type="category")
    if len(pools) > 4 and max(map(len, pools)) > 12:
        figure.update_xaxes(tickangle=-20)  # names rotated to the right would leave the picture
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="group",
        bargap=0.25,
        yaxis_title="deficit against ordinary tokens (nats)",
        legend_y=1.1,
        title=plots.titled("Why are these tokens not copied?", result),
    )


def identity_decomposition(result: xr.Dataset) -> go.Figure:
    """Draw -log p(t) as the surprise of its near-duplicates together, and of t among them.

    Args:
        result: a result of `glitch_attribution`.

    Returns:
        Stacked bars in nats, with and without repairs, and of the paired ordinary tokens, a panel for each pool.

    Example:
        >>> few = dict(batch=4, pairings=1, fits=1, length=6, reference="33:65")
        >>> result = interp.run("glitch_attribution", "wired", "1:33", **few)
        >>> identity_decomposition(result).layout.yaxis.title.text
        'surprise (nats)'
    """
    pools = plots.labels(result["pool"].values)
    wide = min(3, len(pools))
    high = -(-len(pools) // wide)
    size = 260 * high + 110 * (high - 1)  # pixels from the first row's top to the last one's axis
    figure = make_subplots(
        high,
        wide,
        subplot_titles=pools,
        shared_yaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=110 / size,
    )
    values = -result["value"].sel(combination=list(_NAMES))
    together = values.sel(quantity="cluster")
    parts = {
        "that one of its near-duplicates comes": together,
        "which of them": values.sel(quantity="log_prob") - together,
    }
    for i in range(len(pools)):
        for k, (words, part) in enumerate(parts.items()):
            figure.add_bar(
                x=list(_NAMES.values()),
                y=part.isel(pool=i).values,
                name=words,
                legendgroup=words,
                showlegend=i == 0,
                marker_color=plots.COLOURS[k],
                row=i // wide + 1,
                col=i % wide + 1,
                hovertemplate=f"%{{x}}: %{{y:.2f}} nats, {words}<extra></extra>",
            )
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(title="surprise (nats)", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="stack",
        legend_y=1 + 30 / size,
        height=size + 220,
        margin={"t": 110, "b": 110},
        title=plots.titled("What does the model not know, with which repair?", result),
    )


def retrieval_by_layer(result: xr.Dataset) -> go.Figure:
    """Draw how often the residual stream identifies the token, by depth, at its source and where it is predicted.

    Args:
        result: a result of `glitch_attribution`.

    Returns:
        Lines of shares, 0 to 1; dotted: size-matched ordinary tokens.

    Example:
        >>> few = dict(batch=4, pairings=1, fits=1, length=6, reference="33:65")
        >>> result = interp.run("glitch_attribution", "wired", "1:33", **few)
        >>> list(retrieval_by_layer(result).data[0].x)
        ['embedding', 'layer 0', 'layer 1']
    """
    places = list(map(str, result["place"].values))
    titles = [_PLACES.get(place, place) for place in places]
    figure = make_subplots(1, len(places), shared_yaxes=True, horizontal_spacing=0.06, column_titles=titles)
    pools = plots.labels(result["pool"].values)
    many = len(pools) > 3
    colours = plots.COLOURS if len(pools) <= len(plots.COLOURS) else sample_colorscale("Viridis", len(pools))
    retrieval = result["retrieval"].sel(way="fitted")
    for column, place in enumerate(places, start=1):
        for i, pool in enumerate(pools):
            whose = f"{pool}: size-matched ordinary tokens"
            # one name and one colour for the controls of many pools
            control = ("size-matched ordinary tokens", plots.GREY, i == 0) if many else (whose, colours[i], True)
            for role, hover, (name, colour, listed), dash in (
                ("ordinary", whose, control, "dot"),
                ("pool", pool, (pool, colours[i], True), "solid"),
            ):
                figure.add_scatter(
                    x=result["depth"].values,
                    y=retrieval.isel(pool=i).sel(role=role, place=place).values,
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1 and listed,
                    line={"color": colour, "dash": dash},
                    marker={"size": 8, "symbol": i},
                    row=1,
                    col=column,
                    hovertemplate=f"{hover}, %{{x}}: %{{y:.0%}}<extra></extra>",
                )
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(title="tokens identified", col=1)
    beside = {"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"}
    return figure.update_layout(
        template=plots.TEMPLATE,
        legend=beside if many else {"y": 1.12},
        title=plots.titled("Where is it known which token it is?", result),
    )


FIGURES = [deficit_shares, identity_decomposition, retrieval_by_layer]


_FITTED = Tolerance(atol=0.05, why="readers are fitted step by step, and rounding is carried from step to step")


def _glitch_attribution(folder: str, who: str, **options: Any) -> GalleryEntry:
    return GalleryEntry(
        folder,
        Request.of("glitch_attribution", repairs="transplant", **options),
        (
            Caption(
                "deficit_shares",
                f"How the deficit of {who} divides among the stages of copying, in nats.",
            ),
            Caption(
                "identity_decomposition",
                f"What the model does not know of {who}: that one of a token's near-duplicates comes, or which of "
                "them; as it "
                "is, and repaired.",
            ),
            Caption(
                "retrieval_by_layer",
                f"How often the residual stream identifies the token, layer by layer: {who}, and size-matched "
                "ordinary tokens.",
            ),
        ),
        "causes and repairs",
        tolerance=_FITTED,
        order=10,
    )


def _in_blocks_and_single(folder: str, model: str) -> tuple[GalleryEntry, GalleryEntry]:
    return (
        _glitch_attribution(folder, f"blocks of tokens of `{model}`", model=model),
        _glitch_attribution(
            f"{folder}_single", f"single tokens among ordinary ones of `{model}`", model=model, mixed=True
        ),
    )


GALLERY = (
    *_in_blocks_and_single("glitch_attribution", "organism"),
    *_in_blocks_and_single("glitch_attribution_untied", "organism-untied"),
    *_in_blocks_and_single("glitch_attribution_llama", "organism-llama"),
    _glitch_attribution(
        "glitch_attribution_doses",
        "single canaries of each dose among ordinary tokens of `organism`",
        pools="doses",
        mixed=True,
    ),
    of_public_model(_glitch_attribution("", "blocks of glitch tokens of `smollm2`")),
    of_public_model(
        _glitch_attribution("", "single glitch tokens among ordinary ones of `smollm2`"), suffix="_single", mixed=True
    ),
    of_public_model(
        _glitch_attribution("", "blocks of tokens of `smollm2`, the most suspicious by their rows first,"),
        suffix="_ranks",
        left_out=("identity_decomposition", "retrieval_by_layer"),
        pools="ranks",
    ),
)

SECTION = ReportSection(
    "causes",
    "Why are they not copied?",
    "The deficit of single tokens among ordinary ones (with the quick budget, of whole blocks of "
    "tokens), in nats, split "
    "into causes; what could not be tested is named, and drawn hatched. Each repair is applied alone and in every "
    "combination, and to ordinary tokens, too, where it must change nothing.",
    Request.of("glitch_attribution", batch=16, mixed=True),
    figures=("deficit_shares", "identity_decomposition"),
    order=60,
    quick=Request.of("glitch_attribution"),
)
