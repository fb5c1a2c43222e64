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
    table = table_of("pool", "cause", "nats", "of the deficit", words=("cause",))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        whole = float(at["deficit"])
        explained = float(at["deficit_low"]) > 0  # else a share of it means nothing
        table.add_row(escape(str(pool)), "(deficit)", _span(at["deficit"], at["deficit_low"], at["deficit_high"]), "")
        for stage in stages:
            share = at.sel(stage=stage)
            part = f"{float(share['share']) / whole:.0%}" if explained else "-"
            table.add_row("", stage, _span(share["share"], share["share_low"], share["share_high"]), part)
    yield table
    yield title(
        "Each repair alone: nats gained of log p(token or a near-duplicate), and nats by which it moves ordinary tokens"
    )
    repairs = list(map(str, result["repair"].values))
    table = table_of("pool", "repair", "gained", "ordinary tokens", words=("repair",))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        gained = at["value"].sel(quantity="cluster") - at["value"].sel(quantity="cluster", combination="none")
        health = at["health"].sel(quantity="log_prob")
        used = [r for r in repairs if bool(at["used"].sel(repair=r))]
        for i, repair in enumerate([*repairs, "matching in called heads", " + ".join(used)]):
            words = (
                "all that are used"
                if i > len(repairs)
                else repair
                if repair in used or i == len(repairs)
                else f"{repair} (not used)"
            )
            if repair:
                table.add_row(
                    escape(str(pool)) if i == 0 else "", words, f"{float(gained.sel(combination=repair)):+.2f}",
                    f"{float(health.sel(combination=repair)):+.3f}",
                )  # fmt: skip
    yield table
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        yield Text(
            f"{pool}: {float(at['near_duplicates']):.0f} near-duplicates to a token, itself among them; where it is predicted, the residual "
            f"stream tells {float(at['retrieval'].sel(role='pool', place='prediction', way='fitted').max()):.0%} of them apart."
        )
        members = int((at["member_id"] >= 0).sum())
        if float(at["near_duplicates"]) > max(1.0, members / 2) and float(at["deficit_low"]) > 0:
            yield Text(
                f"{pool}: with most of them in one cluster, content and read-out stand in for each other: only the sum of the two can be told."
            )
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


def _span(mean: xr.DataArray, low: xr.DataArray, high: xr.DataArray) -> str:
    return (
        f"{float(mean):.2f} ({float(low):.2f} .. {float(high):.2f})"
        if np.isfinite(float(low))
        else f"{float(mean):.2f}"
    )
