"""Tables of why copying fails, and of what rewriting the rows repairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables.common import table_of, title


def attribution(result: xr.Dataset) -> Iterator[RenderableType]:
    """The deficit and its shares, by pool; what each repair does alone; the verdict."""
    model = provenance(result)["model"]["name"]
    yield title(
        f"What tokens of '{model}' lack of ordinary ones where context can tell them, by cause (nats, 95% interval)"
    )
    stages = list(map(str, result["stage"].values))
    table = table_of("pool", "deficit", *stages)
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        cells = [_span(at["deficit"], at["deficit_low"], at["deficit_high"])]
        cells += [_span(*(at[n].sel(stage=s) for n in ("share", "share_low", "share_high"))) for s in stages]
        table.add_row(escape(str(pool)), *cells)
    yield table
    yield title(
        "Each repair alone (nats gained of log p(cluster)), all together, and what repairs do to ordinary tokens"
    )
    repairs = list(map(str, result["repair"].values))
    table = table_of(
        "pool", *repairs, "matching, called heads", "all", "near-duplicates", "largest move of ordinary tokens"
    )
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        cluster = at["value"].sel(quantity="cluster")
        gained = cluster - cluster.sel(combination="none")
        used = [r for r in repairs if bool(at["used"].sel(repair=r))]
        health = np.abs(
            at["health"].sel(quantity="log_prob").sel(combination=[c for c in _combinations(at) if _of(c) <= set(used)])
        )
        table.add_row(
            escape(str(pool)), *(f"{float(at['alone'].sel(repair=r)):+.2f}{'' if r in used else ' (not used)'}" for r in repairs),
            f"{float(gained.sel(combination='matching in called heads')):+.2f}",
            f"{float(gained.sel(combination=' + '.join(used) or 'none')):+.2f}", f"{float(at['near_duplicates']):.0f}", f"{float(health.max()):.3f}",
        )  # fmt: skip
    yield table
    for line in str(result.attrs["verdict"]).splitlines():
        yield Text(line)


def repaired(result: xr.Dataset) -> Iterator[RenderableType]:
    """Copying recovered and damage done, by repair."""
    model = provenance(result)["model"]["name"]
    yield title(
        f"Rows of '{model}' rewritten: copying on sequences not seen, and damage to ordinary text (95% interval)"
    )
    table = table_of(
        "pool", "repair", "log-prob (nats)", "right", "recovered", "damage (nats per token)", words=("repair",)
    )
    for pool in result["pool"].values:
        for repair in map(str, result["repair"].values):
            at = result.sel({"pool": pool, "repair": repair})
            mean, low, high = mean_interval(at["log_prob"].values)
            damage = mean_interval(at["damage"].values)
            recovered = at["recovered"]
            table.add_row(
                escape(str(pool)), repair, f"{mean:.2f} ({low:.2f} .. {high:.2f})", f"{float(at['correct'].mean()):.0%}",
                f"{float(recovered.sel(bound='mean')):.0%} ({float(recovered.sel(bound='low')):.0%} .. {float(recovered.sel(bound='high')):.0%})",
                f"{damage[0]:.4f} ({damage[1]:.4f} .. {damage[2]:.4f})" if np.isfinite(damage[1]) else f"{damage[0]:.4f}",
            )  # fmt: skip
        table.add_row(
            escape(str(pool)),
            "(ordinary tokens in their place)",
            f"{float(result['paired'].sel(pool=pool).mean()):.2f}",
            "",
            "",
            "",
        )
    yield table


def _combinations(result: xr.Dataset) -> list[str]:
    """Those of repairs: neither the called heads' attention nor the paired run."""
    known = set(map(str, result["repair"].values))
    return [c for c in map(str, result["combination"].values) if _of(c) <= known]


def _of(combination: str) -> set[str]:
    return set() if combination == "none" else set(combination.split(" + "))


def _span(mean: xr.DataArray, low: xr.DataArray, high: xr.DataArray) -> str:
    return (
        f"{float(mean):.2f} ({float(low):.2f} .. {float(high):.2f})"
        if np.isfinite(float(low))
        else f"{float(mean):.2f}"
    )
