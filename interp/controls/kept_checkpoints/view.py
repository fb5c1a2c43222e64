"""How does a training look at its checkpoints: when are tokens copied, and when does each stage heal?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import OLSSON, Caption, GalleryEntry
from interp.results import provenance
from interp.statistics import BOUNDS
from interp.tables import Cell, interval, number, table_of, title

COSTS = 0.1  # nats: `glitch_attribution` finds no deficit in less
_CONTROL = "control"
_STAGES = plots.COLOURS  # of the stages, as in the figures of `glitch_attribution`
_ROOM = 1.2  # of the steps, for names behind the last one


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Copying and the cluster at each checkpoint, deficits by cause, and by when each stage has healed."""
    name = provenance(result)["model"]["name"]
    yield title(f"Training of '{name}', seed {provenance(result)['recipe']['seed']}: what is copied (log-prob in nats)")
    rows = table_of(
        "step",
        "first copy",
        "second copy",
        "induction score",
        "heads",
        "clustered",
        "of the control",
        "left at exposure",
    )
    for step in result["checkpoint"].values:
        at = result.sel(checkpoint=step)
        rows.add_row(
            f"{step}",
            _interval(at["log_prob"].sel(part="first")),
            _interval(at["log_prob"].sel(part="second")),
            _interval(at["induction_score"]),
            str(at["heads"].item()) or "-",
            number(at["clustered"].sum(), "d"),
            _interval(at["clustered_share"].sel(pool=_CONTROL), ".0%"),
            _interval(at["leaves_at"], ".0f"),
        )
    yield rows
    yield Text(_phase_change(result))
    yield Text(
        "Clustered: tokens that look untrained. Left at exposure: from so many times seen on, tokens are not among "
        f"them, with the fewest on the wrong side (at most {int(result['wrong_side'].max())})."
    )
    pools, stages = (list(map(str, result[dim].values)) for dim in ("pool", "stage"))
    yield title("Deficit of a single token among ordinary ones, by dose in the whole training (nats)")
    deficits = table_of("step", *pools)
    for step in _copying(result):
        deficits.add_row(f"{step}", *(_interval(result["deficit"].sel(checkpoint=step, pool=pool)) for pool in pools))
    yield deficits
    told = _told(result)
    yield title(f"By cause, for {told} (nats)")
    shares = table_of("step", "seen", "clustered", *stages)
    for step in _copying(result):
        at = result.sel(pool=told, checkpoint=step)
        shares.add_row(
            f"{step}",
            number(at["pool_exposure"], ".0f"),
            number(at["clustered_share"].sel(bound="mean"), ".0%"),
            *(_interval(at["share"].sel(stage=stage)) for stage in stages),
        )
    yield shares
    yield from _not_tested(result)
    yield title(
        f"Times seen when a stage was last shown to cost more than {COSTS} nats (95%), and at the next checkpoint"
    )
    healing = table_of("tokens", *stages)
    for pool in pools:
        healing.add_row(pool, *(_healed(result.sel(pool=pool, stage=stage)) for stage in stages))
    yield healing


def _interval(values: xr.DataArray, spec: str = ".2f") -> Cell:
    return interval(*(values.sel(bound=bound) for bound in BOUNDS), spec=spec)


def _copying(result: xr.Dataset) -> list[int]:
    """The checkpoints that have an induction head."""
    return [int(step) for step in result["checkpoint"].values[(result["heads"] != "").values]]


def _phase_change(result: xr.Dataset) -> str:
    """Between which checkpoints the first induction head appears."""
    steps = list(map(int, result["checkpoint"].values))
    copying = _copying(result)
    if not copying:
        return f"No head is classified as an induction head up to step {steps[-1]}: no causes are given."
    before = [step for step in steps if step < copying[0]]
    since = f"after step {before[-1]}, by" if before else "by"
    return f"The first head that is classified as an induction head appears {since} step {copying[0]}."


def _not_tested(result: xr.Dataset) -> Iterator[RenderableType]:
    """The checkpoints that copy and at which some stage could not be tested, with the reasons."""
    found: dict[str, dict[int, None]] = {}
    for step in _copying(result):
        for reason in np.unique(result["reason"].sel(checkpoint=step).values.astype(str)):
            if reason:
                found.setdefault(reason, {})[step] = None
    for reason, steps in found.items():
        yield Text(f"A dash at step {', '.join(map(str, steps))}: {reason}.")


def _healed(at: xr.Dataset) -> Cell:
    """The exposures at the last checkpoint at which a stage is shown to cost something, and at the one after that."""
    at = at.sel(checkpoint=_copying(at))
    seen = at["pool_exposure"].values
    costly = np.flatnonzero(at["share"].sel(bound="low").values > COSTS)
    if not len(costly):
        return Cell("-", {"last": np.nan, "next": np.nan})
    last, following = seen[costly[-1]], [*seen, np.nan][costly[-1] + 1]
    text = f"{last:.0f} .. {following:.0f}" if np.isfinite(following) else f"{last:.0f}, the end"
    return Cell(text, {"last": float(last), "next": float(following)})


def healing_over_training(result: xr.Dataset) -> go.Figure:
    """Three questions over the steps of training: what is copied, how often must a token be seen, which stage fails?

    Shaded: between the last checkpoint without an induction head and the first with one. Times seen: full markers while
    most tokens of the dose are in the cluster, open ones after.
    """
    told = _told(result)
    titles = ["copying", "times seen", f"causes, {told}"]
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.09, subplot_titles=titles, figure=plots.Figure())
    steps = result["checkpoint"].values
    _line(figure, 1, steps, result["log_prob"].sel(part="first"), "first", plots.GREY, 0, at_its_end=True)
    _line(figure, 1, steps, result["log_prob"].sel(part="second"), "repeat", plots.colour(5), 0, at_its_end=True)
    _doses(figure, result)
    _line(figure, 2, steps, result["leaves_at"], "cluster left", plots.colour(5), 2)
    for i, stage in enumerate(map(str, result["stage"].values)):
        share = result["share"].sel(pool=told, stage=stage)
        if share.sel(bound="mean").notnull().any():
            _line(figure, 3, steps, share, stage, plots.GREY if stage == "unexplained" else _STAGES[i], i)
    figure.update_yaxes(title_text="log-prob (nats)", row=1, col=1)
    figure.update_yaxes(title_text="times", type="log", dtick=1, row=2, col=1)
    figure.update_yaxes(title_text="nats", rangemode="tozero", row=3, col=1)
    figure.update_xaxes(range=[-0.03 * steps[-1], _ROOM * steps[-1]])
    figure.update_xaxes(title_text="optimiser step", row=3, col=1)
    _shade_phase_change(figure, result)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("When does each stage heal?", result),
        height=900,
        margin={"t": 150},
        legend={"y": 1.05},
    )


def _told(result: xr.Dataset) -> str:
    """The pool that is shown cause by cause: the middle one of those that were trained on, without the control."""
    trained = [str(pool) for pool in result["pool"].values if pool not in (_CONTROL, "dose=0")]
    return trained[(len(trained) - 1) // 2] if trained else str(result["pool"].values[0])


def _line(
    figure: go.Figure,
    row: int,
    steps: np.ndarray,
    values: xr.DataArray,
    name: str,
    colour: str,
    symbol: int,
    *,
    at_its_end: bool = False,
) -> None:
    """A series over the steps with its intervals, named in the legend or at its end; nothing where not measured."""
    mean, low, high = (values.sel(bound=bound).values for bound in BOUNDS)
    figure.add_scatter(
        x=steps,
        y=mean,
        mode="lines+markers" + "+text" * at_its_end,
        line={"color": colour, "width": 2},
        marker={"size": 7, "symbol": symbol},
        error_y=plots.errors(mean, low, high, width=3),
        text=_at_the_end(steps, name) if at_its_end else None,
        textposition="middle right",
        showlegend=not at_its_end,
        name=name,
        row=row,
        col=1,
    )


def _doses(figure: go.Figure, result: xr.Dataset) -> None:
    """How often the tokens of each pool had been seen by each step; its name stands at the end of its line."""
    steps = result["checkpoint"].values
    for pool in map(str, result["pool"].values):
        seen = result["pool_exposure"].sel(pool=pool).values
        if not seen.any():
            continue  # a logarithmic axis has no zero
        inside = result["clustered_share"].sel(pool=pool, bound="mean").values > 0.5
        name = pool.removeprefix("dose=")
        figure.add_scatter(
            x=steps,
            y=np.where(seen > 0, seen, np.nan),
            mode="lines+markers+text",
            line={"color": plots.GREY, "width": 1},
            marker={
                "size": 6,
                "color": plots.GREY,
                "symbol": ["circle" if is_inside else "circle-open" for is_inside in inside],
            },
            text=_at_the_end(steps, name),
            textposition="middle right",
            name=name,
            showlegend=False,
            row=2,
            col=1,
        )


def _at_the_end(steps: np.ndarray, name: str) -> list[str]:
    """Texts for the points of a line: its name at the last one."""
    return [""] * (len(steps) - 1) + [name]


def _shade_phase_change(figure: go.Figure, result: xr.Dataset) -> None:
    """Grey between the last checkpoint without an induction head and the first with one."""
    copying = _copying(result)
    before = [int(step) for step in result["checkpoint"].values if copying and step < copying[0]]
    if before:
        for row in (1, 2, 3):
            figure.add_vrect(
                x0=before[-1], x1=copying[0], fillcolor=plots.GREY, opacity=0.25, line_width=0, row=row, col=1
            )


FIGURES = [healing_over_training]
GALLERY = (
    GalleryEntry(
        "training_over_time",
        None,
        (
            Caption(
                "healing_over_training",
                "Over the training of one model: log-prob of ordinary tokens in both copies of a block; how often the "
                "tokens of each dose had been seen, full markers while most of them are in the cluster of tokens that "
                "look untrained, and the exposure at which tokens leave it; what single tokens of one dose lack, by "
                "cause. 95% intervals; shaded: the first induction head appears.",
                f"the top panel is the phase change of {OLSSON}; the others have no published counterpart",
            ),
        ),
        "causes and repairs",
        stored="interp/controls/kept_checkpoints/checkpoints.nc",
        order=910,
    ),
)
