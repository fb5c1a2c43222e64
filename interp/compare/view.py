"""How does a comparison look: models side by side, or the checkpoints of one over its training?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, takewhile
from pathlib import PurePath
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import METRICS
from interp.results import record
from interp.statistics import BOUNDS
from interp.tables import Cell, interval, number, table_of, title

Answer = Callable[[xr.Dataset], str]
# variable: the dimension of its lines, its unit, its panel's title
_PANELS = {
    "copied": ("pool", "nats", "log-prob in the second copy"),
    "score": ("kind", "attention", "score of the best head (dotted: without a repeat)"),
    "under_trained": ("set", "tokens", "tokens detected as under-trained"),
}
_BESIDE = {"orientation": "v", "x": 1.01, "yanchor": "top"}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """A column per model: what is copied, by which heads, which tokens look under-trained, why these are not copied."""
    models, of = list(map(str, result["model"].values)), sorted(set(map(str, result["of"].values)))
    whose = f"Checkpoints of {of[0]}" if len(of) == 1 else "Side by side"
    metric = str(record(result).get("metric", ""))
    what = f"{METRICS.get(metric, metric)}, with its 95% interval over prompts"
    yield title(f"{whose}: {what if metric else 'log-prob in nats, with its 95% interval over sequences'}")
    # for checkpoints of one model, the revision or the folder is enough
    rows = table_of(
        Cell("", {"": "quantity"}), *(_checkpoint(model, of[0]) if len(of) == 1 else model for model in models)
    )
    lines = [(words, [cell(result.sel(model=model)) for model in models]) for words, cell in _lines(result)]
    above = ""
    for at, (words, cells) in enumerate(lines):
        below = []
        if not words.startswith(" "):
            above, below = words, list(takewhile(lambda line: line[0].startswith(" "), lines[at + 1 :]))
        # a line of dashes is left out, unless the lines below need its heading
        if any(text != "-" for _, texts in [(words, cells), *below] for text in texts):
            rows.add_row(words if words == above else Cell(words, {"": f"{above}: {words.strip()}"}), *cells)
    yield rows
    for model in models:
        missing = str(result["missing"].sel(model=model).item())
        if missing:
            yield Text(f"{model} lacks {missing}")
        shorter = str(result["shorter_blocks"].sel(model=model).item()) if "shorter_blocks" in result else ""
        if shorter:
            yield Text(f"{model} has shorter blocks in {shorter}")


def _checkpoint(model: str, of: str) -> str:
    """What a name says beyond that of the run."""
    return model.removeprefix(f"{of}@") if model == of or model.startswith(f"{of}@") else PurePath(model).name


def _lines(result: xr.Dataset) -> list[tuple[str, Answer]]:
    """The first column, and each model's entry."""
    found: list[tuple[str, Answer]] = []
    pools = list(map(str, result["pool"].values)) if "pool" in result.coords else []
    for name, words in (("copied", "second copy: {}"), ("single", "a single {}")):
        if name in result:
            found += [(words.format(pool), partial(_interval, name, pool=pool)) for pool in pools]
    for name, words in (
        ("answered", "{}"),
        ("together", "lost with the worst heads ablated: {}"),
        ("controls", "lost with size-matched others: {}"),
    ):
        if name in result:
            found += [(words.format(pool), partial(_interval, name, pool=pool)) for pool in pools]
    if "needed" in result:
        found += [(f"largest single loss: {pool}", partial(_named, pool)) for pool in pools]
    if "heads" in result:
        found.append(("heads classified on", lambda at: str(at["classified_on"].item())))
        for kind in ("induction", "previous"):
            found.append((f"{kind} heads", partial(_words, kind)))
            found.append(("    score of the best", partial(_interval, "score", kind=kind)))
            found.append(("    without a repeat", partial(_number, "without_repeat", ",.2f", kind=kind)))
    if "under_trained" in result:
        for words, which in (("detected under-trained", "detected"), ("    and not repeated", "not repeated")):
            found.append((words, partial(_number, "under_trained", ",.0f", set=which)))
    if "share" in result:
        lacking = (result["deficit"].sel(bound="low") > 0.1).any("model")
        for pool in (p for p in pools if bool(lacking.sel(pool=p))):
            found.append((f"deficit of a single {pool}", partial(_interval, "deficit", pool=pool)))
            stages = map(str, result["stage"].values)
            found += [(f"    {stage}", partial(_interval, "share", pool=pool, stage=stage)) for stage in stages]
    return found


def _interval(name: str, at: xr.Dataset, **where: str) -> str:
    mean, low, high = (float(at[name].sel(where | {"bound": bound})) for bound in BOUNDS)
    return interval(mean, low, high, spec=".1f" if abs(mean) >= 10 else ".2f", to="..")


def _number(name: str, spec: str, at: xr.Dataset, **where: str) -> str:
    return number(at[name].sel(where), spec)


def _named(pool: str, at: xr.Dataset) -> str:
    return str(at["needed"].sel(pool=pool).item())


def _words(kind: str, at: xr.Dataset) -> str:
    return str(at["heads"].sel(kind=kind).item())


def answers_side_by_side(result: xr.Dataset) -> go.Figure | None:
    """How well the answers to prompts are predicted, by set and model; None where no prompts were given."""
    if "answered" not in result:
        return None
    models, figure = plots.labels(result["model"].values), go.Figure()
    for i, pool in enumerate(plots.labels(result["pool"].values)):
        figure.add_trace(_bar(models, result["answered"].isel(pool=i), pool, plots.colour(i)))
    metric = str(record(result).get("metric"))
    figure.update_yaxes(title_text=METRICS.get(metric, metric))
    return figure.update_layout(template=plots.TEMPLATE, barmode="group", title="Answers, side by side")


def side_by_side(result: xr.Dataset) -> go.Figure | None:
    """What is copied, by pool, and why the rest is not, in nats, per model; None where nothing was measured."""
    if "copied" not in result:
        return None
    with_causes = "share" in result and bool(result["deficit"].notnull().any())
    titles = ["log-prob in the second copy"]
    if with_causes:
        worst = str(result["deficit"].sel(bound="mean").mean("model").idxmax("pool").values)
        titles.append(f"deficit of a single token of {plots.labels([worst])[0]}, by cause")
    figure = make_subplots(len(titles), 1, subplot_titles=titles, vertical_spacing=0.22)
    models = plots.labels(result["model"].values)
    for i, pool in enumerate(plots.labels(result["pool"].values)):
        copied = result["copied"].isel(pool=i)
        if copied.notnull().any():
            figure.add_trace(_bar(models, copied, pool, plots.colour(i)).update(legend="legend"), row=1, col=1)
    if with_causes:
        for i, stage in enumerate(map(str, result["stage"].values)):
            colour = plots.GREY if stage == "unexplained" else plots.colour(i)
            bar = _bar(models, result["share"].sel(pool=worst, stage=stage), stage, colour)
            figure.add_trace(bar.update(legend="legend2"), row=2, col=1)
    figure.update_yaxes(title_text="nats")
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="group",
        title="Models side by side",
        margin={"t": 90, "r": 150},
        height=700 if with_causes else plots.HEIGHT,
        legend=_BESIDE | {"y": 1},
        legend2=_BESIDE | {"y": 0.39},
    )


def over_training(result: xr.Dataset) -> go.Figure | None:
    """Over checkpoints: what is copied, the best heads beside the same without a repeat, and which look under-trained.

    None where these are not checkpoints of one model, each with a step of its own.
    """
    every = result["step"].values
    if len(set(result["of"].values)) > 1 or not np.isfinite(every).all() or len(set(every)) < len(every):
        return None
    if not any(name in result for name in _PANELS):
        return None
    result = result.sortby("step")
    steps = [f"{step:g}" for step in result["step"].values]
    panels = {name: panel for name, panel in _PANELS.items() if name in result}
    titles = [words for _, _, words in panels.values()]
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=titles)
    colours = cycle(plots.COLOURS)
    legends = {}
    for at, (name, (over, unit, _)) in enumerate(panels.items(), start=1):
        legend = f"legend{at if at > 1 else ''}"
        legends[legend] = _BESIDE | {"y": figure.get_subplot(at, 1).yaxis.domain[1]}
        figure.update_yaxes(title_text=unit, row=at, col=1)
        entries = ["induction", "previous"] if over == "kind" else list(result[over].values)
        for entry, label in zip(entries, plots.labels(entries), strict=True):
            values = result[name].sel({over: entry})
            if not values.notnull().any():
                continue
            colour = next(colours)
            figure.add_trace(_line(steps, values, label, colour).update(legend=legend), row=at, col=1)
            if over == "kind":
                figure.add_scatter(
                    x=steps,
                    y=result["without_repeat"].sel(kind=entry).values,
                    mode="lines",
                    line={"color": colour, "dash": "dot"},
                    showlegend=False,
                    name=f"{entry}, without a repeat",
                    row=at,
                    col=1,
                )
    figure.update_xaxes(type="category", showticklabels=True)
    figure.update_xaxes(title_text="training step", row=len(panels), col=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=f"Copying and glitch tokens over the training of {plots.escaped(result['of'].values[0])}",
        height=160 + 220 * len(panels),
        margin={"t": 90, "r": 150},
        **legends,
    )


def _bar(x: list[str], values: xr.DataArray, name: str, colour: str) -> go.Bar:
    mean, low, high = (values.sel(bound=bound).values for bound in BOUNDS)
    error = plots.errors(mean, low, high, width=3, color=plots.GREY)
    return go.Bar(x=x, y=mean, name=name, marker_color=colour, error_y=error)


def _line(x: list[str], values: xr.DataArray, name: str, colour: str) -> go.Scatter:
    mean: Any = values
    error = None
    if "bound" in values.dims:
        mean, low, high = (values.sel(bound=bound).values for bound in BOUNDS)
        error = plots.errors(mean, low, high, width=4)
    style = {"mode": "lines+markers", "line": {"color": colour, "width": 2}}
    return go.Scatter(x=x, y=mean, name=name, error_y=error, **style)


FIGURES = [side_by_side, over_training, answers_side_by_side]
