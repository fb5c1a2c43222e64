"""What do all tables share? An open table, a title, numbers with their intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text


def table_of(first: str, *others: str, words: tuple[str, ...] = ()) -> Table:
    """An open table, the first column and those named in `words` words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="left" if column in words else "right")
    return table


def title(text: str) -> Text:
    """A line of its own: as a table's title it would be wrapped to the table's width."""
    return Text(text, style="bold")


def number(at: xr.DataArray) -> str:
    """A number, or a dash where there is none."""
    return f"{at.item():.2f}" if np.isfinite(at.item()) else "-"


def interval(at: xr.DataArray) -> str:
    """A value and its interval, from the dimension `bound`."""
    value, low, high = (at.sel(bound=b).item() for b in ("value", "low", "high"))
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f} ({low:.2f}..{high:.2f})" if np.isfinite(low) else f"{value:.2f}"
