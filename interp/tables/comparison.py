"""The table of several models side by side."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.markup import escape
from rich.table import Table

from interp.tables.common import table_of


def side_by_side(result: xr.Dataset) -> Table:
    """Rows of what was asked, a column per model."""
    names = [escape(str(name)) for name in result["model"].values]
    lines = table_of("", *names)
    for pool in result["pool"].values:
        row = [f"{float(v):.2f}" if np.isfinite(v) else "-" for v in result["copied"].sel(pool=pool).values]
        lines.add_row(f"log-prob of {escape(str(pool))}, second copy", *row)
    for kind in result["kind"].values:
        lines.add_row(f"{kind} heads", *map(str, result["heads"].sel(kind=kind).values))
    for pool in result["pool"].values:
        deficit = result["deficit"].sel(pool=pool)
        if not (deficit > 0.1).any():
            continue
        lines.add_row(f"one {escape(str(pool))}: deficit", *(f"{float(v):.2f}" for v in deficit.values))
        for stage in result["stage"].values:
            shares = result["share"].sel(pool=pool, stage=stage).values
            lines.add_row(f"    {stage}", *(f"{float(v):.2f}" for v in shares))
    return lines
