"""What does the series of output layers show: tokens that can never win, by dimensions, and what they cost?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import DEMETER, GRIVAS, Caption, GalleryEntry
from interp.organisms import ORDINARY_FROM
from interp.statistics import wilson_interval
from interp.tables import Cell, interval, number, sampled, table_of, title

_KINDS = {"plain": "no bias", "bias": "bias", "unit": "unit rows, no bias"}
_EXPOSED = ((0, 0), (1, 9), (10, 99), (100, ORDINARY_FROM - 1), (ORDINARY_FROM, 999), (1000, None))


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Tokens that can never win, and held-out text; then which tokens these are."""
    ranks, never = result["unembedding_rank"].values, never_first(result)
    count = result.sizes["token"]
    yield title(f"Of {count:,} tokens, how many can never win, and what does it cost? (loss in nats per token)")
    widest = int(ranks.max())
    shown = "never first", "random rows: never", "of held-out text", "loss", f"above rank {widest}", "right"
    rows = table_of("output layer", "rank", *shown)
    held = result["heldout_count"].values
    for kind in map(str, result["kind"].values):
        for rank in ranks:
            at = result.sel(kind=kind, unembedding_rank=rank)
            trained, random = (never.sel(kind=kind, unembedding_rank=rank, rows=name).values for name in result["rows"])
            more = at["loss"] - result["loss"].sel(kind=kind, unembedding_rank=widest)
            rows.add_row(
                _KINDS[kind],
                number(rank, "d"),
                _tokens(trained),
                _tokens(random),
                number(100 * held[trained].sum() / held.sum(), ".1f") + Cell(" %", {}),
                sampled(at["loss"]),
                sampled(more) if rank < widest else Cell("-", {"": 0.0}),
                number(at["right"].mean(), ".3f"),
            )
    yield rows
    undecided = int((result["verdict"] == _code(result, "undecided")).sum())
    yield Text(
        f"The frequencies of the training text alone: {float(result['unigram_loss']):.2f} nats. "
        + (f"{undecided} verdicts are undecided." if undecided else "Every verdict was proven.")
    )
    yield title("Share of tokens that can never win, by exposures in training")
    yield _by_exposure(result, never)


def _by_exposure(result: xr.Dataset, never: xr.DataArray) -> RenderableType:
    exposure = result["exposure"].values
    bins = [(low, high, (exposure >= low) & (exposure <= (np.inf if high is None else high))) for low, high in _EXPOSED]
    bins = [(low, high, of) for low, high, of in bins if of.any()]
    names = [f"{low}" if low == high else f"{low}+" if high is None else f"{low}-{high}" for low, high, _ in bins]
    rows = table_of(
        "output layer", "rank", *(f"{name} ({of.sum()})" for name, (*_, of) in zip(names, bins, strict=True))
    )
    for kind in map(str, result["kind"].values):
        for rank in result["unembedding_rank"].values:
            of_kind = never.sel(kind=kind, unembedding_rank=rank, rows="trained").values
            if of_kind.any():
                shares = [
                    interval(of_kind[of].mean(), *wilson_interval(int(of_kind[of].sum()), int(of.sum())), spec=".0%")
                    for *_, of in bins
                ]
                rows.add_row(_KINDS[kind], number(rank, "d"), *shares)
    return rows


def never_first(result: xr.Dataset) -> xr.DataArray:
    """Which tokens are proven never to win [kind unembedding_rank rows token]: unargmaxable, or tied at best."""
    return (result["verdict"] == _code(result, "unargmaxable")) | (result["verdict"] == _code(result, "tied"))


def _code(result: xr.Dataset, verdict: str) -> int:
    return list(map(str, result["verdicts"].values)).index(verdict)


def _tokens(never: np.ndarray) -> Cell:
    return number(int(never.sum()), ",d")


def never_by_rank(result: xr.Dataset) -> go.Figure:
    """How many tokens can never win, by dimensions of the output layer; dashed: random rows of the same lengths."""
    figure, never = plots.Figure(), never_first(result).sum("token")
    ranks = list(map(str, result["unembedding_rank"].values))
    for i, kind in enumerate(map(str, result["kind"].values)):
        for rows, dash in (("trained", "solid"), ("random directions", "dash")):
            figure.add_scatter(
                x=ranks,
                y=never.sel(kind=kind, rows=rows).values,
                mode="lines+markers",
                line={"color": plots.colour(i), "dash": dash},
                marker={"symbol": i, "size": 8},
                name=_KINDS[kind] if rows == "trained" else f"{_KINDS[kind]}, {rows}",
            )
    figure.update_xaxes(type="category", title="dimensions of the output layer")
    figure.update_yaxes(title="tokens that can never win", rangemode="tozero")
    return figure.update_layout(template=plots.TEMPLATE, title="How many tokens can never win?")


def loss_by_rank(result: xr.Dataset) -> go.Figure:
    """Loss on held-out text, by dimensions of the output layer, with 95% intervals over windows."""
    mean, low, high = (part.rename("loss") for part in plots.intervals(result["loss"], "window"))
    names = [_KINDS[kind] for kind in map(str, result["kind"].values)]
    parts = [part.assign_coords(kind=names) for part in (mean, low, high)]
    return plots.points(
        *parts,
        over="kind",
        x="unembedding_rank",
        title="What does it cost?",
        x_title="dimensions of the output layer",
        y_title="loss on held-out text (nats per token)",
    )


def never_by_exposure(result: xr.Dataset) -> go.Figure | None:
    """Which tokens can never win: their share by exposures in training. None if every token can win."""
    never, exposure = never_first(result).sel(rows="trained"), result["exposure"].values
    edges = np.unique(np.quantile(exposure, np.linspace(0, 1, 9)))
    bins = np.clip(np.searchsorted(edges, exposure, side="right") - 1, 0, len(edges) - 2)
    figure = plots.Figure()
    for i, kind in enumerate(map(str, result["kind"].values)):
        for rank, dash in zip(
            result["unembedding_rank"].values, ("solid", "dash", "dot", "dashdot", "longdash") * 9, strict=False
        ):
            of_kind = never.sel(kind=kind, unembedding_rank=rank).values
            if of_kind.any():
                figure.add_scatter(
                    x=[float(np.median(exposure[bins == j])) + 1 for j in np.unique(bins)],
                    y=[float(of_kind[bins == j].mean()) for j in np.unique(bins)],
                    mode="lines+markers",
                    line={"color": plots.colour(i), "dash": dash},
                    marker={"symbol": i, "size": 7},
                    name=f"{_KINDS[kind]}, rank {rank}",
                )
    if not figure.data:
        return None
    figure.update_xaxes(type="log", title="exposures in training, plus 1 (median of an eighth of the tokens)")
    figure.update_yaxes(title="share that can never win", range=[-0.02, 1.02])
    return figure.update_layout(template=plots.TEMPLATE, title="Which tokens can never win?")


FIGURES = [never_by_rank, loss_by_rank, never_by_exposure]
GALLERY = (
    GalleryEntry(
        "unembedding_ranks",
        None,
        (
            Caption(
                "never_by_rank",
                "How many tokens can never be the arg-max, by dimensions of the output layer, beside rows as long in "
                "random directions.",
                f"the effect is that of {DEMETER}, proven as in {GRIVAS}",
            ),
            Caption("loss_by_rank", "What few dimensions cost on held-out text."),
            Caption("never_by_exposure", "Which tokens can never be the arg-max, by exposures in training."),
        ),
        "the output layer",
        stored="interp/controls/factorised_unembedding/ranks.nc",
        order=900,
    ),
)
