"""How does a result of `attention_pattern` look: what does each head attend to, token by token?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType

from interp import plots
from interp.exhibits import OLSSON, Caption, GalleryEntry, ReportSection
from interp.request import Request
from interp.tables import Cell, table_of, title

_TICKS = 64  # token labels along the panels of one row
_ABREAST = 4  # panels in one row


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Say which key each head attends to most, at the last token but one (of prompts, the last).

    Args:
        result: a result of `attention_pattern`.

    Returns:
        What rich can print, line by line: one row for each pool, one column for each head.

    Example:
        >>> result = interp.run("attention_pattern", "wired", "1:65", batch=2, length=6, heads="L1H0")
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:65 | 'w15' 1.00
    """
    blocks = "half" in result.coords
    yield title(f"The key that the last token {'but one ' if blocks else ''}attends to most")
    rows = table_of("pool", *map(str, result["component"].values))
    for pool in result["pool"].values:
        texts, pattern = result["token_text"].sel(pool=pool).values, result["pattern"].sel(pool=pool)
        last = -2 if blocks else int(np.flatnonzero(pattern.notnull().any(["component", "key"]).values)[-1])
        patterns = pattern.isel(query=last).transpose("component", "key").values
        rows.add_row(str(pool), *(_most_attended(texts, row) for row in patterns))
    yield rows


def _most_attended(texts: np.ndarray, row: np.ndarray) -> Cell:
    """The key with the most attention, and how much that is."""
    key, most = repr(str(texts[int(np.nanargmax(row))])), float(np.nanmax(row))
    return Cell(f"{key} {most:.2f}", {"": most, "key": key})


def _known(texts: np.ndarray) -> list[str]:
    """The texts of a prompt's tokens; empty after its end."""
    return [text if isinstance(text, str) else "" for text in texts]


def attention_view(result: xr.Dataset) -> go.Figure:
    """Draw the attention of each head on one sequence of each pool, with the tokens on the axes.

    Args:
        result: a result of `attention_pattern`.

    Returns:
        Heatmaps of attention, 0 to 1, query by key, a panel for each head and pool.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("attention_pattern", "wired", "1:65", batch=2, length=6, heads="L1H0")
        >>> int(attention_view(result).data[0].z[8].argmax())
        3
    """
    pools, heads = plots.labels(result["pool"].values), list(map(str, result["component"].values))
    wide = min(_ABREAST, len(heads))
    bands = -(-len(heads) // wide)  # rows of panels for each pool
    unused = [""] * (bands * wide - len(heads))
    figure = make_subplots(
        bands * len(pools),
        wide,
        subplot_titles=[f"{head}, {pool}" if head else "" for pool in pools for head in [*heads, *unused]],
        horizontal_spacing=0.16 / max(2, wide),
        vertical_spacing=0.22 / (bands * len(pools)),
    )
    places = result["query"].values
    start = int(places[result["half"].values == 2][0]) if "half" in result.coords else None
    step = -(-len(places) * wide // _TICKS)
    for i in range(len(pools)):
        texts = [plots.token_label(t, 10) for t in _known(result["token_text"].isel(pool=i).values)]
        hover = [[f"{q} attends to {k} (positions {a}, {b})" for b, k in enumerate(texts)] for a, q in enumerate(texts)]
        for j in range(len(heads)):
            at = {"row": i * bands + j // wide + 1, "col": j % wide + 1}
            figure.add_heatmap(
                z=result["pattern"].isel(pool=i, component=j).values,
                x=places,
                y=places,
                text=hover,
                coloraxis="coloraxis",
                hovertemplate="%{text}<br>%{z:.3f}<extra></extra>",
                **at,
            )
            ticks = {"tickvals": places[::step], "ticktext": texts[::step], "tickfont": {"size": 9}, "showgrid": False}
            figure.update_xaxes(tickangle=-90, **ticks, **at)
            first = {} if j % wide == 0 else {"showticklabels": False}
            figure.update_yaxes(autorange="reversed", **(ticks | first), **at)
            for line in (figure.add_vline, figure.add_hline) if start is not None else ():
                line((start or 0) - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1}, **at)
    dotted = ", dotted: the repeat begins" if start is not None else ""
    words = f"What each head looks at (rows: queries, columns: keys{dotted})"
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled(words, result),
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": {"title": "attention", "thickness": 14}},
        height=170 + 380 * len(pools) * bands,
        margin={"l": 130, "b": 120},
    )


FIGURES = [attention_view]


GALLERY = (
    GalleryEntry(
        "attention_pattern",
        Request.of("attention_pattern", length=10),
        (
            Caption(
                "attention_view",
                "The attention of the classified heads on one repeated block: the induction stripe, by pool of tokens.",
                f"the attention patterns on repeated random tokens of {OLSSON}",
            ),
        ),
        "the copying circuit",
        order=90,
    ),
)
PROMPTS_SECTION = ReportSection(
    "patterns",
    "What do the heads that write it look at?",
    "The attention of the heads that write most towards or against the answer, on the first prompt.",
    Request.of("attention_pattern"),
    order=60,
)
