"""What does a test over training seeds show: the number behind each claim on each model, and does the claim hold?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import Caption, GalleryEntry
from interp.tables import Cell, number, table_of, title

_STAGES = ("identity", "matching", "content", "readout", "suppression")
_FAILS = "*"  # behind a number for which the claim does not hold


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List each claim's number on the model of every training seed, and how many of them it holds for.

    Args:
        result: a result of `findings_over_seeds`.

    Returns:
        What rich can print, line by line, a table for each recipe.
    """
    for recipe in dict.fromkeys(map(str, result["about"].values)):
        at = result.isel(claim=np.flatnonzero(result["about"].values == recipe))
        at = at.isel(training_seed=np.flatnonzero(at["value"].notnull().any("claim").values))
        seeds = at["training_seed"].values.tolist()
        yield title(f"Findings about '{recipe}' on models trained from {len(seeds)} seeds (seed 0 is the bundled one)")
        rows = table_of("claim", "section", "true if", *(f"seed {seed}" for seed in seeds), "holds", words=("true if",))
        for i in range(at.sizes["claim"]):
            one = at.isel(claim=i)
            tested = one["holds"].values[one["holds"].values >= 0]
            rows.add_row(
                str(one["sentence"].item()),
                number(one["section"], "d"),
                _bounds(float(one["at_least"]), float(one["at_most"]), str(one["unit"].item())),
                *(_value(one.sel(training_seed=seed)) for seed in seeds),
                Cell(f"{tested.sum()} of {tested.size}", {"": int(tested.sum()), "of": tested.size}),
            )
        yield rows
        for seed in seeds:
            missed = str(result["missed"].sel(recipe=recipe, training_seed=seed).item())
            if missed:
                yield Text(f"Seed {seed} misses an acceptance criterion: {missed}.")
    yield Text(f"{_FAILS}: the claim does not hold for this model. A dash: there is no number.")


def _bounds(low: float, high: float, unit: str) -> str:
    ends = {
        (True, True): f"{low:g}" if low == high else f"{low:g} to {high:g}",
        (True, False): f"at least {low:g}",
        (False, True): f"at most {high:g}",
    }
    one = (high if np.isfinite(high) else low) == 1 and " " not in unit  # and not one of several pools
    return f"{ends[bool(np.isfinite(low)), bool(np.isfinite(high))]} {unit.removesuffix('s') if one else unit}"


def _value(one: xr.Dataset) -> Cell | str:
    if not np.isfinite(float(one["value"])):
        return "-"
    return number(one["value"], ".2f") + ("" if int(one["holds"]) else _FAILS)


def shares_by_seed(result: xr.Dataset) -> go.Figure:
    """Draw the deficit of unexposed tokens by cause, a stacked bar for each training seed.

    Args:
        result: a result of `findings_over_seeds`.

    Returns:
        Bars in nats; a panel for each recipe, in blocks and single.
    """
    panels = [(str(r), str(s)) for r in result["recipe"].values for s in result["setting"].values]
    figure = make_subplots(1, len(panels), subplot_titles=[f"{r}, {s}" for r, s in panels], shared_yaxes=True)
    for column, (recipe, setting) in enumerate(panels, start=1):
        at = result.sel(recipe=recipe, setting=setting)
        at = at.isel(training_seed=np.flatnonzero(at["deficit"].notnull().values))
        for i, stage in enumerate(_STAGES):
            figure.add_bar(
                x=[str(seed) for seed in at["training_seed"].values],
                y=at["share"].sel(stage=stage).values,
                name=stage,
                legendgroup=stage,
                showlegend=column == 1,
                marker_color=plots.colour(i),
                row=1,
                col=column,
            )
        figure.update_xaxes(title="training seed", type="category", row=1, col=column)
    figure.update_yaxes(title="deficit by cause (nats)", row=1, col=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="stack",
        title="Unexposed tokens: what they lack, over training seeds",
        legend={"orientation": "h", "y": -0.27, "yanchor": "top"},
    )


FIGURES = [shares_by_seed]
GALLERY = (
    GalleryEntry(
        "findings_over_seeds",
        None,
        (
            Caption(
                "shares_by_seed",
                "How the deficit of unexposed tokens divides among the stages of copying, on models trained from three "
                "seeds each.",
            ),
        ),
        "causes and repairs",
        stored="interp/controls/training_seeds/seeds.nc",
        order=910,
    ),
)
