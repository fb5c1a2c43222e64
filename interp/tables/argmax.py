"""Tables of the output layer: which tokens can be first, and how surely."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from interp.results import provenance
from interp.tables.common import table_of, title

_SHOWN = 12
_SHORT = {"any state": "any", "behind the norm": "normed"}


def verdicts(result: xr.Dataset) -> Iterator[RenderableType]:
    """How many tokens have each verdict, for any state and behind the norm, by pool; and the narrowest."""
    about = provenance(result)
    model = about.get("model")
    name = model["name"] if isinstance(model, dict) else about.get("matrix", "this matrix")
    names = list(map(str, result["verdicts"].values))
    yield title(f"Can a token of '{name}' be the arg-max?")
    groups = {"all": np.ones(result.sizes["token"], bool)}
    if "member" in result:
        groups |= {str(p): result["member"].sel(pool=p).values.astype(bool) for p in result["pool"].values}
    behind = np.isfinite(result["margin"].sel(question="behind the norm")).any().item()
    shown = 3 + codes_in(result, 3)
    margins = ["mean lead", "least"] if behind else []
    table = table_of("tokens", "all", "state", *names[:shown], *margins, words=("state",))
    for group, of in groups.items():
        for question in map(str, result["question"].values):
            if question == "behind the norm" and not behind:
                continue
            codes = result["verdict"].sel(question=question).values[of]
            margin = result["margin"].sel(question=question).values[of]
            counts = [f"{int((codes == i).sum()):,}" if (codes == i).any() else "-" for i in range(len(names))]
            cells = [escape(group), f"{int(of.sum()):,}", _SHORT[question], *counts[:shown]]
            if behind:
                finite = margin[np.isfinite(margin)] if question != "any state" else margin[:0]
                cells += [f"{finite.mean():.2f}", f"{finite.min():.2f}"] if len(finite) else ["-", "-"]
            table.add_row(*cells)
    yield table
    codes, margin = (result[n].sel(question="any state").values for n in ("verdict", "margin"))
    never = np.flatnonzero(codes != 0)
    if len(never):
        listed = ", ".join(f"{int(result['token'].values[i])} ({names[codes[i]]})" for i in never[:_SHOWN])
        yield Text(f"Not argmaxable: {listed}{f' and {len(never) - _SHOWN:,} more' if len(never) > _SHOWN else ''}.")
    if behind:
        widest = result["margin"].sel(question="behind the norm").values
        for dtype in map(str, result["dtype"].values):
            lost = int((widest <= result["spacing"].sel(dtype=dtype).values).sum())
            yield Text(f"{lost:,} tokens lead by no more than {dtype} logits tell apart.")
    yield Text(
        "Every verdict was checked in float64: a state that puts the token first, or weights of other rows that give its own."
    )
    if "stages" in result.attrs:
        yield Text(
            "Decided by " + ", ".join(f"{n}: {c:,}" for n, c in json.loads(result.attrs["stages"]).items()) + "."
        )


def codes_in(result: xr.Dataset, code: int) -> bool:
    """Has any token this verdict, where it was asked?"""
    known = result["verdict"].where(np.isfinite(result["margin"]) | (result["question"] == "any state"))
    return bool((known == code).any())
