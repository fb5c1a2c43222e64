"""The table of several models side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import xarray as xr
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from interp.tables.common import table_of, title

_ABREAST = 3  # models in one table
Cell = Callable[[xr.Dataset], str]


def side_by_side(result: xr.Dataset) -> Iterator[RenderableType]:
    """A column per model: what is copied, which heads do it, which tokens look under-trained, why these are not copied."""
    models = list(map(str, result["model"].values))
    lines = _lines(result)
    of = set(map(str, result["of"].values))
    whose = f"Checkpoints of {min(of)}" if len(of) == 1 else "Side by side"
    yield title(f"{whose}: log-prob in nats, with its 95% interval over sequences")
    for start in range(0, len(models), _ABREAST):
        yield _table(result, models[start : start + _ABREAST], lines)
    for model in models:
        missing = str(result["missing"].sel(model=model).item())
        if missing:
            yield Text(f"{model} lacks {missing}")


def _table(result: xr.Dataset, models: list[str], lines: list[tuple[str, Cell]]) -> Table:
    # of checkpoints of one, the revision says it
    one = str(result["of"].values[0]) if len(set(result["of"].values)) == 1 else ""
    table = table_of("", *(escape(model.removeprefix(f"{one}@") if one else model) for model in models))
    for column in table.columns:
        column.overflow = "fold"  # an interval that is cut off is none
    for words, cell in lines:
        cells = [cell(result.sel(model=model)) for model in models]
        if any(text != "-" for text in cells):
            table.add_row(escape(words), *cells)
    return table


def _lines(result: xr.Dataset) -> list[tuple[str, Cell]]:
    """What stands in the first column, and what a model has to say there."""
    found: list[tuple[str, Cell]] = []
    pools = list(map(str, result["pool"].values)) if "pool" in result.coords else []
    for name, words in (("copied", "second copy: {}"), ("single", "a single {}")):
        if name in result:
            found += [(words.format(pool), partial(_interval, name, pool=pool)) for pool in pools]
    if "heads" in result:
        found.append(("heads called on", partial(_words, "called_on")))
        for kind in ("induction", "previous"):
            found.append((f"{kind} heads", partial(_words, "heads", kind=kind)))
            found.append(("    score of the best", partial(_interval, "score", kind=kind)))
            found.append(("    without a repeat", partial(_number, "without_repeat", 2, kind=kind)))
    if "under_trained" in result:
        found.append(("called under-trained", partial(_number, "under_trained", 0, set="called")))
        found.append(("    and not repeated", partial(_number, "under_trained", 0, set="not repeated")))
    if "share" in result:
        lacking = (result["deficit"].sel(bound="low") > 0.1).any("model")
        for pool in (p for p in pools if bool(lacking.sel(pool=p))):
            found.append((f"a single {pool} lacks", partial(_interval, "deficit", pool=pool)))
            stages = map(str, result["stage"].values)
            found += [(f"    {stage}", partial(_interval, "share", pool=pool, stage=stage)) for stage in stages]
    return found


def _interval(name: str, at: xr.Dataset, **where: str) -> str:
    mean, low, high = (float(at[name].sel(where | {"bound": b})) for b in ("mean", "low", "high"))
    if not np.isfinite(mean):
        return "-"
    digits = 1 if abs(mean) >= 10 else 2
    ends = f" ({low:.{digits}f}..{high:.{digits}f})" if np.isfinite(low) else ""
    return f"{mean:.{digits}f}{ends}"


def _number(name: str, digits: int, at: xr.Dataset, **where: str) -> str:
    value = float(at[name].sel(where))
    return f"{value:,.{digits}f}" if np.isfinite(value) else "-"


def _words(name: str, at: xr.Dataset, **where: str) -> str:
    return str(at[name].sel(where).item())
