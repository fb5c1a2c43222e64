"""How does a survey look: models side by side, over training, with the spread over seeds?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType

from interp import plots
from interp.tables import number, table_of, title

# key of a row, heading, what it means
COLUMNS = (
    ("model", "model", "as it was named"),
    ("checkpoint", "step", "training step in its name"),
    ("seed", "seed", "of the training where the name tells one, else of the drawing"),
    ("gap", "gap", "nats by which the worst pool is copied less than the last"),
    ("worst", "worst pool", "which that is"),
    ("copied", "copied", "log-prob of the last pool in the second copy, nats"),
    ("detected", "detected", "tokens detected as under-trained"),
    ("not_repeated", "not repeated", "how many of these the model cannot repeat on request"),
    ("score", "best head", "prefix-matching score of the best induction head"),
    ("heads", "induction heads", "those that are classified so"),
    ("cause", "largest share", "of what single glitch tokens lack"),
    ("share", "nats", "how much of it"),
)
_NUMBERS = ("gap", "detected", "not_repeated", "score")
_UNITS = {"gap": "nats", "detected": "tokens", "not_repeated": "tokens", "score": "attention"}


def rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """A row for each model, checkpoint and seed of which anything is known; None where something is not."""
    found = []
    for model in map(str, result["model"].values):
        for step in map(int, result["checkpoint"].values):
            for seed in map(int, result["seed"].values):
                row = _row(result.sel(model=model, checkpoint=step, seed=seed))
                if any(value is not None for value in row.values()):
                    found.append({"model": model, "checkpoint": step if step >= 0 else None, "seed": seed, **row})
    return found


def _row(at: xr.Dataset) -> dict[str, Any]:
    """What one combination says."""
    row: dict[str, Any] = dict.fromkeys(key for key, _, _ in COLUMNS[3:])
    if "gap" in at and bool(at["gap"].notnull().any()):
        worst = at["gap"].isel(pool=slice(0, -1)) if at.sizes["pool"] > 1 else at["gap"]
        if bool(worst.notnull().any()):
            row["gap"], row["worst"] = float(worst.max()), str(worst.idxmax("pool").item())
        row["copied"] = _value(at["copied"].sel(bound="mean").isel(pool=-1))
    if "under_trained" in at:
        row["detected"], row["not_repeated"] = (
            _value(at["under_trained"].sel(set=which)) for which in ("detected", "not repeated")
        )
    if "score" in at:
        row["score"] = _value(at["score"].sel(kind="induction", bound="mean"))
        named = str(at["heads"].sel(kind="induction").item())
        row["heads"] = named if row["score"] is not None or named != "-" else None
    if "share" in at:
        share = at["share"].sel(bound="mean").stack(at=("pool", "stage"))
        if bool(share.notnull().any()):
            pool, stage = share.idxmax("at").item()
            row["cause"], row["share"] = f"{pool}: {stage}", float(share.max())
    return row


def _value(of: xr.DataArray) -> float | None:
    value = float(of)
    return value if np.isfinite(value) else None


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """A row per model and checkpoint: the mean over seeds, and the least and the most where there are several."""
    found = rows(result)
    yield title(f"A survey of {result.sizes['model']} models: means over seeds (least .. most)")
    shown = table_of("model", "step", "seeds", "gap, nats", "detected", "not repeated", "best induction head")
    for key in dict.fromkeys((row["model"], row["checkpoint"]) for row in found):
        of = [row for row in found if (row["model"], row["checkpoint"]) == key]
        cells = [_spread([row[name] for row in of if row[name] is not None], name) for name in _NUMBERS]
        shown.add_row(key[0], "-" if key[1] is None else f"{key[1]:,}", str(len(of)), *cells)
    yield shown
    if result.sizes["checkpoint"] > 1:
        first = table_of("first checkpoint with", *map(str, result["model"].values))
        for what in map(str, result["appearing"].values):
            of_models = [result["appears"].sel(appearing=what, model=m).values for m in result["model"].values]
            first.add_row(what, *(_spread([v for v in values if np.isfinite(v)], "detected") for values in of_models))
        yield first


def _spread(values: list[float], name: str) -> str:
    spec = ",.0f" if name in ("detected", "not_repeated") else ".2f"
    if not values:
        return "-"
    mean = number(xr.DataArray(np.mean(values)), spec)
    return mean if len(values) == 1 else f"{mean} ({min(values):{spec}} .. {max(values):{spec}})"


def over_models(result: xr.Dataset) -> go.Figure | None:
    """The copying gap of each model, a mark for each seed and checkpoint; None where no gap was measured."""
    found = [row for row in rows(result) if row["gap"] is not None]
    if not found:
        return None
    figure = go.Figure()
    for i, pool in enumerate(dict.fromkeys(row["worst"] for row in found)):
        of = [row for row in found if row["worst"] == pool]
        figure.add_scatter(
            x=plots.labels([row["model"] for row in of]),
            y=[row["gap"] for row in of],
            mode="markers",
            marker={"color": plots.colour(i), "size": 9, "opacity": 0.7},
            name=plots.labels([pool])[0],
            text=[f"seed {row['seed']}" for row in of],
        )
    figure.update_yaxes(title_text="nats")
    return figure.update_layout(
        template=plots.TEMPLATE, title="Copying gap of the worst pool, by model", showlegend=True
    )


def over_training(result: xr.Dataset) -> go.Figure | None:
    """Each quantity over checkpoints, a line per model, mean over seeds, least to most; None for one checkpoint."""
    found = [row for row in rows(result) if row["checkpoint"] is not None]
    if len({row["checkpoint"] for row in found}) < 2:
        return None
    kinds = [name for name in _NUMBERS if any(row[name] is not None for row in found)]
    figure = make_subplots(len(kinds), 1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=kinds)
    colours = cycle(plots.COLOURS)
    for model in dict.fromkeys(row["model"] for row in found):
        colour = next(colours)
        for at, name in enumerate(kinds, start=1):
            by_step: dict[int, list[float]] = {}
            for row in found:
                if row["model"] == model and row[name] is not None:
                    by_step.setdefault(row["checkpoint"], []).append(row[name])
            steps = sorted(by_step)
            mean, low, high = (np.array([f(by_step[s]) for s in steps]) for f in (np.mean, min, max))
            figure.add_scatter(
                x=steps,
                y=mean,
                error_y=plots.errors(mean, low, high, width=3),
                line={"color": colour},
                name=plots.labels([model])[0],
                legendgroup=model,
                showlegend=at == 1,
                row=at,
                col=1,
            )
            figure.update_yaxes(title_text=_UNITS[name], row=at, col=1)
    figure.update_xaxes(title_text="training step", row=len(kinds), col=1)
    heading = "Over training: mean over seeds, from least to most"
    return figure.update_layout(template=plots.TEMPLATE, title=heading, height=160 + 200 * len(kinds))


FIGURES = [over_models, over_training]
