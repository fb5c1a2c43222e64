"""What does a result say, in a table and in plain words?

`copying` has the tables of repeated tokens, `circuit` those of heads and interventions, `causes` those of why copying fails,
`vocabulary` those of tokens, `argmax` those of the output layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr
from rich.console import RenderableType
from rich.markup import escape

from interp.reproduce import is_reproduction, table as reproduction
from interp.tables import argmax, causes, circuit, comparison, copying, vocabulary
from interp.tables.common import table_of, title


def story(result: xr.Dataset) -> Iterator[RenderableType]:
    """Tables and sentences for whatever this result holds."""
    if is_reproduction(result):
        yield from reproduction(result)
    elif {"model", "missing"} <= {*result.dims, *result.data_vars}:
        yield from comparison.side_by_side(result)
    elif {"summary", "log_prob"} <= set(result.data_vars) and "definition" in result.dims:
        yield from copying.repeated(result)
    elif "checkpoint" in result.dims and "second_half" in result:
        yield from copying.curve(result)
    elif "verdict" in result and "question" in result["verdict"].dims:
        yield from argmax.verdicts(result)
    elif {"share", "deficit"} <= set(result.data_vars):
        yield from causes.attribution(result)
    elif {"recovered", "damage"} <= set(result.data_vars):
        yield from causes.repaired(result)
    elif {"score", "copying", "matching"} <= set(result.data_vars):
        yield from circuit.heads(result)
    elif {"lost", "curve", "random"} <= set(result.data_vars):
        yield from circuit.ablation(result)
    elif {"by_position", "by_head"} <= set(result.data_vars):
        yield from circuit.patched(result)
    elif "effect" in result and "sender" in result["effect"].dims:
        yield from circuit.paths(result)
    elif {"lost", "agreement"} <= set(result.data_vars):
        yield from circuit.attributed(result)
    elif "log_prob_after" in result:
        yield from circuit.lens(result)
    elif {"by_component", "total"} <= set(result.data_vars):
        yield from circuit.attribution(result)
    elif "pattern" in result and "token_text" in result.coords:
        yield from circuit.patterns(result)
    elif "score" in result and "stripe" in result["score"].dims:
        yield from copying.stripes(result)
    elif "count" in result and "reachable" in result["count"].dims:
        yield from vocabulary.census(result)
    elif {"value", "called", "null_centre"} <= set(result.data_vars):
        yield from vocabulary.undertrained(result)
    elif "correlation" in result and "response" in result["correlation"].dims:
        yield from vocabulary.correlations(result)
    elif "said" in result and "correct" in result:
        yield from copying.prompted(result)
    elif "largest" in result and "after" in result:
        yield from vocabulary.largest(result)
    else:
        yield from means(result)


def means(result: xr.Dataset) -> Iterator[RenderableType]:
    """The mean of every variable by pool, for results that have no table of their own."""
    for name, values in result.data_vars.items():
        if values.dtype.kind not in "fiub":
            continue
        yield title(f"{name}: mean by pool")
        table = table_of("pool", "mean")
        for pool in result["pool"].values if "pool" in values.dims else ["all"]:
            part = values.sel(pool=pool) if "pool" in values.dims else values
            table.add_row(escape(str(pool)), f"{float(part.mean(skipna=True)):.4f}")
        yield table
