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
        model = result.sel(recipe=recipe, training_seed=seeds)
        copies = np.array([_copies(result, recipe, seed) for seed in seeds])
        yield title(f"Findings about '{recipe}' on models trained from {len(seeds)} seeds (seed 0 is the bundled one)")
        rows = table_of("claim", "section", "true if", *(f"seed {seed}" for seed in seeds), "holds", words=("true if",))
        for i in range(at.sizes["claim"]):
            one = at.isel(claim=i)
            tested = one["holds"].values[(one["holds"].values >= 0) & copies]
            rows.add_row(
                str(one["sentence"].item()),
                number(one["section"], "d"),
                _bounds(float(one["at_least"]), float(one["at_most"]), str(one["unit"].item())),
                *(_value(one.sel(training_seed=seed)) for seed in seeds),
                Cell(f"{tested.sum()} of {tested.size}", {"": int(tested.sum()), "of": tested.size}),
            )
        yield rows
        for seed, copied in zip(seeds, copies, strict=True):
            one = model.sel(training_seed=seed)
            if missed := str(one["missed"].item()):
                yield Text(f"Seed {seed} does not meet these acceptance criteria: {missed}.")
            if not copied:
                yield Text(f"Seed {seed} does not copy ordinary tokens, so 'holds' leaves it out.")
            if "refused" in one and one["refused"].item():
                yield Text(f"Seed {seed}, what does not run: {one['refused'].item()}.")
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
    """Draw what each stage accounts for in the deficit of unexposed tokens, beside each other for all training seeds.

    Args:
        result: a result of `findings_over_seeds`.

    Returns:
        Bars in nats with the 95% intervals of their runs; a row for each recipe, in blocks and single. Models that do
        not copy ordinary tokens are named and left out.
    """
    recipes, settings = (list(map(str, result[name].values)) for name in ("recipe", "setting"))
    panels = [(recipe, setting) for recipe in recipes for setting in settings]
    shape = len(recipes), len(settings)
    seeds = result["training_seed"].values.tolist()
    others = {one: [str(seed) for seed in seeds if not _copies(result, one, seed)] for one in recipes}
    titles = [
        f"{recipe}, {setting}" + (f" (no copying: seed {', '.join(others[recipe])})" if others[recipe] else "")
        for recipe, setting in panels
    ]
    figure = make_subplots(*shape, subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.16)
    stages = list(_STAGES)
    for at, (recipe, setting) in enumerate(panels):
        row, column = at // shape[1] + 1, at % shape[1] + 1
        for i, seed in enumerate(seeds):
            one = result.sel(recipe=recipe, setting=setting, training_seed=seed, stage=stages)
            if not np.isfinite(float(one["deficit"])) or str(seed) in others[recipe]:
                continue
            ends = [one[name].values for name in ("share", "share_low", "share_high") if name in one]
            figure.add_bar(
                x=stages,
                y=ends[0],
                error_y=plots.errors(*ends, width=3) if len(ends) == 3 else None,
                name=f"seed {seed}",
                legendgroup=str(seed),
                showlegend=not any(trace.legendgroup == str(seed) for trace in figure.data),
                marker_color=plots.colour(i),
                row=row,
                col=column,
            )
    figure.update_yaxes(title="part of the deficit (nats)", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="group",
        title="Unexposed tokens: what they lack, over training seeds",
        legend={"orientation": "h", "y": -0.12, "yanchor": "top"},
        height=320 * len(recipes) + 120,
    )


def _copies(result: xr.Dataset, recipe: str, seed: int) -> bool:
    """Whether a model copies ordinary tokens; true of all models in results stored before there were others."""
    return "copies" not in result or int(result["copies"].sel(recipe=recipe, training_seed=seed)) != 0


FIGURES = [shares_by_seed]
GALLERY = (
    GalleryEntry(
        "findings_over_seeds",
        None,
        (
            Caption(
                "shares_by_seed",
                "What each stage of copying accounts for in the deficit of unexposed tokens, on models trained from "
                "three seeds each; 95% intervals over the sequences of a run.",
            ),
        ),
        "causes and repairs",
        stored="interp/controls/training_seeds/seeds.nc",
        order=910,
    ),
)
