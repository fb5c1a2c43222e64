"""How does a result of `check` look: which identities hold?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp.tables import number, table_of, title


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the identities with their errors, and what follows where one does not hold.

    Args:
        result: a result of `check`.

    Returns:
        What rich can print, line by line: one row for each identity; the error is a share of the spread of what is
        compared.

    Example:
        >>> result = interp.run("check", "wired")
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[::2]), sep=" | ")
        log_probs | yes
    """
    yield title("What must hold for the analyses of this model (errors as shares of the spread of what is compared)")
    rows = table_of("identity", "error", "holds", "what must hold", words=("holds", "what must hold"))
    for name in map(str, result["identity"].values):
        at = result.sel(identity=name)
        error, holds, reason = float(at["error"]), bool(at["holds"]), str(at["reason"].values)
        answer = ("not tested" if reason else "yes") if holds else "NO"
        rows.add_row(name, number(error, ".1e"), answer, str(at["question"].values))
    yield rows
    for name, reason in zip(result["identity"].values, result["reason"].values, strict=True):
        if reason:
            yield Text(f"{name}: {reason}.")
    if "note" in result.attrs:
        yield Text(f"{result.attrs['note']}.")


FIGURES: list[Callable[[xr.Dataset], go.Figure]] = []  # a table alone
