"""How does a training look at its checkpoints: when is a token copied, out of the cluster, and healed, stage by stage?"""

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

HEALED = 0.1  # nats that a stage costs at most, where it has healed: below, `glitch_attribution` finds no deficit
_CONTROL = "control"


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Copying and the cluster at each checkpoint, deficits by cause, and by when each stage has healed."""
    name = provenance(result)["model"]["name"]
    yield title(f"Training of '{name}', seed {provenance(result)['recipe']['seed']}: what is copied (log-prob in nats)")
    rows = table_of("step", "first copy", "second copy", "induction score", "heads", "in the cluster", "left at exposure")
    for step in result["checkpoint"].values:
        at = result.sel(checkpoint=step)
        rows.add_row(
            f"{step}",
            _interval(at["log_prob"].sel(part="first")),
            _interval(at["log_prob"].sel(part="second")),
            _interval(at["induction_score"]),
            str(at["heads"].item()) or "-",
            number(at["clustered"].sum(), "d"),
            _interval(at["leaves_at"], ".0f"),
        )
    yield rows
    yield Text(_phase_change(result))
    yield Text(
        "Left at exposure: from so many on, tokens are out of the cluster of those that look untrained, with the fewest "
        f"tokens on the wrong side (at most {int(result['wrong_side'].max())})."
    )
    yield title("Deficit of a single token among ordinary ones, by cause (nats)")
    stages = list(map(str, result["stage"].values))
    shares = table_of("tokens", "step", "seen", "clustered", "deficit", *stages)
    for pool in map(str, result["pool"].values):
        for step in _copying(result):
            at = result.sel(pool=pool, checkpoint=step)
            inside = float(at["clustered_share"].sel(bound="mean"))
            shares.add_row(
                pool,
                f"{step}",
                number(at["pool_exposure"], ".0f"),
                number(inside, ".0%"),
                _interval(at["deficit"]),
                *(_interval(at["share"].sel(stage=stage)) for stage in stages),
            )
    yield shares
    yield title(f"Times seen when a stage last costs more than {HEALED} nats (95%), and when no more")
    healing = table_of("tokens", *stages)
    for pool in map(str, result["pool"].values):
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


def _healed(at: xr.Dataset) -> Cell:
    """The exposures between which a stage's cost falls below the limit for good, of one pool and stage."""
    at = at.sel(checkpoint=_copying(at))
    seen = at["pool_exposure"].values
    high = at["share"].sel(bound="high").values
    if not len(seen):
        return Cell("-", {"last": np.nan, "healed": np.nan})
    costly = np.flatnonzero(~(high < HEALED))  # what is not known is not healed
    last = float(seen[costly[-1]]) if len(costly) else np.nan
    healed = float(seen[costly[-1] + 1]) if len(costly) and costly[-1] + 1 < len(seen) else np.nan
    if not len(costly):
        text = f"by {seen[0]:.0f}"
    elif not np.isfinite(healed):
        text = f"not by {last:.0f}"
    else:
        text = f"{last:.0f} .. {healed:.0f}"
    return Cell(text, {"last": last, "healed": seen[0] if not len(costly) else healed})


def healing_over_training(result: xr.Dataset) -> go.Figure:
    """Three questions over the steps of training: is it copied, which exposure is enough to look trained, what is lacking?

    Shaded: between the last checkpoint without an induction head and the first with one.
    """
    figure = make_subplots(
        3,
        1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        subplot_titles=["ordinary tokens", "the glitch cluster", _third(result)],
        figure=plots.Figure(),
    )
    return figure


def _third(result: xr.Dataset) -> str:
    return ""


FIGURES = [healing_over_training]
GALLERY: tuple[GalleryEntry, ...] = ()
