"""Which table and figures does a result get? Those of the experiment named in its provenance, otherwise plain ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import Console, RenderableType
from rich.text import Text

from interp import plots
from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.results import provenance
from interp.statistics import ENOUGH, way_of
from interp.tables import number, printable, table_of, title

# where to find the view for a name in a result's provenance, if not in the experiment's folder: results that come from
# no experiment, and former names of experiments
_ELSEWHERE = {
    "compare": "interp.compare.view",
    "compare_survey": "interp.compare.survey_view",
    "findings_over_seeds": "interp.controls.training_seeds.view",
    "lexinvariance": "interp.controls.drawn_tables.view",
    "reproduce": "interp.reproduce.view",
    "training": "interp.organisms.view",
    "training_over_time": "interp.controls.kept_checkpoints.view",
    "unembedding_ranks": "interp.controls.factorised_unembedding.view",
}
_EXPERIMENTS = Path(__file__).parent / "experiments"
_MOST_FIGURES, _MOST_PANELS, _MOST_ROWS = 6, 12, 40  # limit of the plain view
_COPIED = 0.9  # share of correct ordinary tokens above which they count as copied
_MOST_CELLS = 100_000  # for a variable that is drawn entry by entry


def view_of(result: xr.Dataset) -> ModuleType | None:
    """Find the view of a result: a module with `table` and `FIGURES`.

    Args:
        result: any dataset.

    Returns:
        The view of the experiment that the provenance names; None for an unknown name, and without provenance.
    """
    try:
        record = provenance(result)
    except InterpError:
        return None
    name = str(record.get("experiment", ""))
    # an experiment may have no view
    known = name in _ELSEWHERE or (name.isidentifier() and (_EXPERIMENTS / name / "view.py").is_file())
    return import_module(_ELSEWHERE.get(name, f"interp.experiments.{name}.view")) if known else None


def own_view(experiment: Callable[..., Any] | str) -> ModuleType | None:
    """Find the view in a user's file: the file itself, if it defines `FIGURES` or `table`.

    Args:
        experiment: a function, or the name of an experiment of this package.

    Returns:
        The module that defines the function; None for this package's own, and where there is neither.
    """
    module = sys.modules.get(getattr(experiment, "__module__", ""))
    own = module is not None and not module.__name__.startswith("interp.")
    return module if own and (_figures_in(module) or callable(getattr(module, "table", None))) else None


def _loaded_view(result: xr.Dataset) -> ModuleType | None:
    """The view in the experiment's own module, if it was run in this process."""
    try:
        record = provenance(result)
    except InterpError:
        return None
    module = sys.modules.get(str(record.get("module")))
    name = str(record.get("experiment")).rpartition(":")[2]
    return own_view(getattr(module, name, "")) if callable(getattr(module, name, None)) else None


@takes_what_it_says
def show(result: xr.Dataset, user_view: Any = None) -> None:
    """Print a result's tables and show its figures; in a notebook, below the cell.

    Args:
        result: any dataset; without a view of its own, means by pool and plain figures are shown.
        user_view: an object with a function `table` or a list `FIGURES`, which replaces the experiment's own view.

    Example:
        >>> interp.show(interp.run("check", "wired"))  # doctest: +ELLIPSIS
        What must hold for the analyses of this model ...
    """
    for line in tables(result, user_view):
        Console().print(line)
    for figure in figures(result, user_view).values():
        figure.show()


def tables(result: xr.Dataset, user_view: Any = None) -> Iterator[RenderableType]:
    """Describe a result in tables and sentences. Never raises.

    Args:
        result: any dataset.
        user_view: anything with a function `table`, which is used in place of the experiment's own.

    Returns:
        Renderables for rich. If a view fails: one line that says why, and the means by pool.
    """
    view = None
    try:
        user_view = user_view or _loaded_view(result)
        view = user_view if callable(getattr(user_view, "table", None)) else view_of(result)
        if view is not None:
            made = view.table(result)
            yield from _what_it_rests_on(result)
            yield from [made] if isinstance(made, str) or hasattr(made, "__rich_console__") else list(made)
            yield from _how_drawn(result)
            yield from _budget(result)
            return
    except Exception as error:
        yield Text(f"The table of {_name(view)} is not available for this result ({_said(error)}):")
    yield from _what_it_rests_on(result)
    yield from means(result)
    yield from _how_drawn(result, intervals=False)
    yield from _budget(result)


def _what_it_rests_on(result: xr.Dataset) -> Iterator[RenderableType]:
    """A warning if ordinary tokens are not copied well, since every statement about other tokens rests on it."""
    try:
        if "prompts" in provenance(result):
            return
        sequences = provenance(result)["sequences"]
        name, behind = next((n, b) for n, b in sequences["bos_tried"].items() if b["id"] == sequences["bos"])
        right, nats = float(behind["right"]), float(behind["mean"])
    except (InterpError, KeyError, AttributeError, TypeError, StopIteration):
        return
    if right < _COPIED:
        yield Text(
            f"Ordinary tokens are copied in part only: {right:.0%} right, {nats:.2f} nats after {printable(name)}, "
            "second of two copies (a third is easier: --copies 3). All that follows rests on them."
        )


def _how_drawn(result: xr.Dataset, *, intervals: bool = True) -> Iterator[RenderableType]:
    """A note on blocks that differ from what a reader expects: shorter than by default, or with repeats inside.

    Args:
        result: any dataset.
        intervals: whether the table has intervals, possibly from few sequences.
    """
    try:
        record = provenance(result)
        sequences, pools = record["sequences"], record["pools"]
        few = _few_sequences(result) if intervals else ""
        if "prompts" in record:
            yield from [Text(few)] if few else []
            return
        redrawn = [name for name, facts in pools.items() if facts.get("replacement") and facts.get("size") != 1]
        smallest, length = sequences.get("fitted_to"), sequences["length"]
    except (InterpError, KeyError, AttributeError, TypeError):
        return
    if smallest is not None:
        yield Text(
            f"Blocks are of {length} tokens, since '{printable(smallest)}' has no more; --length asks for others."
        )
    if redrawn:
        yield Text(
            f"Blocks of {', '.join(map(printable, redrawn))} are drawn with replacement: a token may return within a "
            "block, and what follows it is then ambiguous even to a perfect copier."
        )
    if few:
        yield Text(few)


def _budget(result: xr.Dataset) -> Iterator[RenderableType]:
    """What the budget set, in one line."""
    try:
        budget = provenance(result)["budget"]
        decides = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in budget["decides"].items())
        yield Text(f"Budget '{printable(budget['name'])}': {printable(decides)} (--budget asks for another).")
    except (InterpError, KeyError, AttributeError, TypeError):
        return


def _few_sequences(result: xr.Dataset) -> str:
    """The kind of intervals in a result with few sequences; "" for the usual kind."""
    try:
        count = int(provenance(result)["sequences"]["batch"])
    except (InterpError, KeyError, TypeError, ValueError):
        return ""
    if count >= ENOUGH:
        return ""
    what = "prompts" if "prompts" in provenance(result) else "sequences"
    return f"95% intervals: {way_of(count)}, {count} {what}." if count > 1 else f"One {what[:-1]}: no intervals."


def figures(
    result: xr.Dataset, user_view: Any = None, *, log: Callable[[str], None] = lambda line: None
) -> dict[str, go.Figure]:
    """Draw every figure for which a result has data. Never raises.

    Args:
        result: any dataset.
        user_view: anything with a list `FIGURES`, used in place of the experiment's own: functions from a dataset to a
            figure, or to None where the result has nothing to draw.
        log: receives one line that says why a view failed.

    Returns:
        Figures by the names of their functions. If a view fails: plain figures of some variables.
    """
    drawn: dict[str, go.Figure] = {}
    view = None
    try:
        user_view = user_view or _loaded_view(result)
        view = user_view if _figures_in(user_view) else view_of(result)
        if view is None:
            return plain_figures(result)
        for i, make in enumerate(_figures_in(view), start=1):
            figure = make(result)
            name = getattr(make, "__name__", "")
            if figure is not None:
                figure = _with_note(plots.Figure(figure), _few_sequences(result))
                drawn[name if name.isidentifier() and name not in drawn else f"figure_{i}"] = figure
        return drawn
    except Exception as error:
        log(f"the figures of {_name(view)} are not available for this result ({_said(error)}): plain ones instead")
        return plain_figures(result)


def _with_note(figure: go.Figure, note: str) -> go.Figure:
    """A figure with intervals, and a line below it that states their kind."""
    drawn = [getattr(trace, "error_y", None) is not None and trace.error_y.array is not None for trace in figure.data]
    shaded = [getattr(trace, "fill", None) == "toself" for trace in figure.data]
    if note and any(drawn + shaded):
        at = {"xref": "paper", "yref": "paper", "x": 1, "y": 0, "yshift": -94, "xanchor": "right"}
        figure.add_annotation(text=note, showarrow=False, font={"size": 11}, **at)
        figure.update_layout(margin_b=110)  # below the title of the axis, which may be long
    return figure


def _figures_in(view: Any) -> list[Callable[[xr.Dataset], go.Figure | None]]:
    found = getattr(view, "FIGURES", None)
    return list(found) if isinstance(found, list | tuple) else []


def _name(view: Any) -> str:
    if view is None:
        return "its experiment"
    name = str(getattr(view, "__name__", "the given view"))
    return f"'{name.split('.')[-2]}'" if name.startswith("interp.") else name.removeprefix("interp_file_")


def _said(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}".removesuffix(": "))[:200]


# --- the plain view ---------------------------------------------------------------------------------------------------


def means(result: xr.Dataset) -> Iterator[RenderableType]:
    """The mean of every numeric variable by pool, for results that have no table of their own."""
    for name, values in _numbers(result).items():
        by_pool = _mean(values, keep=("pool",))
        pools = list(map(str, values["pool"].values)) if "pool" in values.dims else ["all"]
        yield title(f"{printable(name)}: mean by pool")
        rows = table_of("pool", "mean")
        for pool, mean in list(zip(pools, by_pool.values.ravel(), strict=True))[:_MOST_ROWS]:
            rows.add_row(pool, number(mean, ".4f"))
        yield rows
        if len(pools) > _MOST_ROWS:
            yield Text(f"and {len(pools) - _MOST_ROWS:,} more pools")
    if not _numbers(result):
        yield Text("This result holds no numbers.")


def plain_figures(result: xr.Dataset) -> dict[str, go.Figure]:
    """A figure of each numeric variable, by name, at most a handful: its variation over pools, or a histogram."""
    drawn: dict[str, go.Figure] = {}
    for name, values in list(_numbers(result).items())[:_MOST_FIGURES]:
        if np.isfinite(values.values).any():
            key = "".join(c if c.isalnum() or c == "_" else "_" for c in name)[:60] or "values"
            drawn[key if key not in drawn else f"{key}_{len(drawn)}"] = _plain_figure(values, result)
    return drawn


def _numbers(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """The numeric variables as floats, without coordinates that are no labels: places where labels are not distinct."""
    found = {}
    for name, values in result.data_vars.items():
        if values.dtype.kind in "fiub" and values.size:
            coords = {
                dim: values[dim].values if _labels(values, dim) else np.arange(values.sizes[dim]) for dim in values.dims
            }
            plain = xr.DataArray(values.values.astype(float), dims=values.dims, coords=coords, name=str(name))
            found[str(name)] = plain.where(np.isfinite(plain))
    return found


def _labels(values: xr.DataArray, dim: Any) -> bool:
    """Does a dimension have labels that are one-dimensional and distinct?"""
    coordinate = values.coords.get(dim)
    return coordinate is not None and coordinate.ndim == 1 and len(set(map(str, coordinate.values))) == coordinate.size


def _mean(values: xr.DataArray, keep: tuple[Any, ...]) -> xr.DataArray:
    """The mean over all dimensions except those kept; NaN where nothing was measured, without a warning."""
    over = [dim for dim in values.dims if dim not in keep]
    count = values.notnull().sum(over)
    return values.sum(over) / count.where(count > 0)


def _plain_figure(values: xr.DataArray, result: xr.Dataset) -> go.Figure:
    about = plots.titled(plots.escaped(printable(values.name)), result)
    others = [dim for dim in values.dims if dim not in ("pool", "batch") and values.sizes[dim] > 1]
    panels = values.sizes.get("pool", 1)
    if len(others) == 2 and panels <= _MOST_PANELS and values.size <= _MOST_CELLS:
        y, x = map(str, others)
        column = "pool" if "pool" in values.dims else None
        mean = _mean(values, keep=("pool", *others))
        low, high = float(mean.min()), float(mean.max())
        return plots.heatmaps(mean, column=column, x=x, y=y, title=about, low=low, high=high, unit=str(values.name))
    if len(others) == 1 and "pool" in values.dims and panels <= _MOST_PANELS and values.size <= _MOST_CELLS:
        samples = values if "batch" in values.dims else values.expand_dims("batch")
        kept = samples.squeeze([dim for dim in values.dims if dim not in ("pool", "batch", *others)], drop=True)
        draw = plots.lines if kept[others[0]].dtype.kind in "iuf" else plots.points
        words: dict[str, Any] = {
            "title": about,
            "x_title": plots.escaped(others[0]),
            "y_title": plots.escaped(values.name),
        }
        return draw(*plots.intervals(kept), over="pool", x=str(others[0]), **words)
    figure = plots.Figure()
    parts = values.transpose("pool", ...).values if 1 < panels <= _MOST_PANELS else values.values[None]
    names = plots.labels(values["pool"].values) if len(parts) > 1 else [""]
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        counts, edges = np.histogram(part[np.isfinite(part)], bins=40, range=(float(values.min()), float(values.max())))
        width = float(edges[1] - edges[0])
        figure.add_bar(
            x=edges[:-1] + width / 2, y=counts, width=width, name=name, opacity=0.6, marker_color=plots.colour(i)
        )
    axes = {"xaxis_title": plots.escaped(values.name), "yaxis_title": "values"}
    return figure.update_layout(
        template=plots.TEMPLATE, title=about, barmode="overlay", showlegend=len(parts) > 1, **axes
    )
