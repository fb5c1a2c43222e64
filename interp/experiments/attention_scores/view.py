"""How does a result of `attention_scores` look: where does each head attend?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType

from interp import plots
from interp.exhibits import OLSSON, Caption, GalleryEntry, ReportSection
from interp.request import Request
from interp.tables import largest_head, table_of, title


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Name the head that attends most to each kind of key.

    Args:
        result: a result of `attention_scores`.

    Returns:
        What rich can print, line by line: one row for each pool, one column for each kind of key.

    Example:
        >>> result = interp.run("attention_scores", "wired", "1:65", batch=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:65 | L1H0 1.00 | L0H0 1.00 | L0H1 0.03 | L0H1 0.03 | L0H1 0.03
    """
    mean = result["score"].mean("batch", skipna=True)
    queries = "the inducible queries" if "query" not in result.attrs else _queries(result)
    yield title(f"The head that attends most to each kind of key, over {queries}")
    rows = table_of("pool", *map(str, result["key_kind"].values))
    for pool in result["pool"].values:
        cells: list[str] = []
        for key_kind in result["key_kind"].values:
            scores = mean.sel(pool=pool, key_kind=key_kind)
            if not np.isfinite(scores).any():
                cells.append("no BOS" if key_kind == "bos" else "none")
                continue
            cells.append(largest_head(scores))
        rows.add_row(str(pool), *cells)
    yield rows


def _queries(result: xr.Dataset) -> str:
    query = str(result.attrs["query"])
    return "the positions that predict the answer" if query == "read" else f"the positions named '{query}'"


def head_scores(result: xr.Dataset) -> go.Figure:
    """Draw every attention score, layer by head.

    Args:
        result: a result of `attention_scores`.

    Returns:
        Heatmaps of scores, 0 to 1, mean over sequences, a row of panels for each pool, a column for each kind of key.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("attention_scores", "wired", "1:65", batch=2)
        >>> head_scores(result).data[0].z.round().tolist()  # of prefix matching
        [[0.0, 0.0], [1.0, 0.0]]
    """
    mean = result["score"].mean("batch", skipna=True)
    queries = "the inducible queries" if "query" not in result.attrs else _queries(result)
    title = plots.titled(f"Where each head looks, over {queries}", result)
    return plots.heatmaps(mean, row="pool", column="key_kind", title=title, low=0, high=1)


FIGURES = [head_scores]


GALLERY = (
    GalleryEntry(
        "attention_scores",
        Request.of("attention_scores"),
        (
            Caption(
                "head_scores",
                "Where each head looks, by pool of tokens: on unexposed tokens the induction stripe fades.",
                f"the prefix-matching scores by head of {OLSSON}",
            ),
        ),
        "the copying circuit",
        order=10,
    ),
)
PROMPTS_SECTION = ReportSection(
    "attention",
    "Where do heads look?",
    "Attention from where the answer is predicted to the named parts of the prompts.",
    Request.of("attention_scores"),
    order=50,
)
