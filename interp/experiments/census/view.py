"""How does a census look: how many tokens of each kind can a text produce?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import LAND, NO_COUNTERPART, Caption, GalleryEntry, ReportSection
from interp.request import Request
from interp.tables import Cell, table_of, title

_REACHABLE = {"reachable": plots.COLOURS[0], "unknown": plots.COLOURS[4], "impossible": plots.COLOURS[1]}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Count the tokens of each kind that a text can produce.

    Args:
        result: a result of `census`.

    Returns:
        What rich can print, line by line: a table by kind and one by published category, and what differs between them.

    Example:
        >>> result = interp.run("census", "organism")
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        byte | 243 | 13 | -
    """
    about = f"'{_name(result)}' ({result.attrs['tokenizer_scheme']})"
    yield title(f"The {int(result['count'].sum()):,} tokens of {about}: can any text produce them?")
    answers = list(map(str, result["reachable"].values))
    for words, variable in (("kind", "count"), ("published category", "published")):
        rows = table_of(words, *answers)
        for entry, counts in result[variable].transpose(..., "reachable").to_pandas()[answers].iterrows():
            if any(counts):
                rows.add_row(str(entry), *(Cell(f"{c:,}" if c else "-", {"": int(c)}) for c in counts))
        yield rows
    beyond = int(result.attrs["beyond_the_embedding"])
    if beyond:
        yield Text(f"{beyond:,} entries of the tokenizer have no embedding row: this model cannot be fed them.")
    failed = [c for c in map(str, result["category"].values) if c.startswith(("UNREACHABLE", "UNDECODEABLE"))]
    wrong = int(result["published"].sel(category=failed, reachable="reachable").sum())
    yield Text(
        "reachable: a witness text encodes to it; impossible: proved. "
        + (f"{wrong:,} tokens that fail decode-then-encode alone can be reached inside a longer text." if wrong else "")
    )


def _name(result: xr.Dataset) -> str:
    return str(result.attrs["model_name"] or result.attrs["tokenizer_name"])


def census(result: xr.Dataset) -> go.Figure:
    """Draw how many tokens of each kind a text can produce.

    Args:
        result: a result of `census`.

    Returns:
        Bars of token counts on a logarithmic axis, one for each kind and answer.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417.

    Example:
        >>> result = interp.run("census", "organism")
        >>> [bar.name for bar in census(result).data]
        ['reachable', 'unknown', 'impossible']
    """
    counts = result["count"].transpose("kind", "reachable")
    counts = counts.isel(kind=counts.sum("reachable").values > 0)
    figure = go.Figure()
    for name, colour in _REACHABLE.items():
        values = list(map(int, counts.sel(reachable=name)))
        figure.add_bar(
            y=list(map(str, counts["kind"].values)),
            x=[value or None for value in values],  # nothing has no bar on a logarithmic axis
            name=name,
            marker_color=colour,
            orientation="h",
            text=[f"{value:,}" if value else "" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{y}}, {name}: %{{x:,}}<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(type="log", range=[-0.3, np.log10(max(int(counts.max()), 10)) + 0.4], dtick=1)
    name = plots.escaped(_name(result).rstrip("/").split("/")[-1] or "tokenizer")
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=f"Can any text produce this token? · {name}",
        xaxis_title="tokens",
        barmode="group",
        bargap=0.3,
        height=220 + 60 * counts.sizes["kind"],
        margin={"l": 100},  # room for the names of kinds
    )


FIGURES = [census]


GALLERY = (
    GalleryEntry(
        "census",
        Request.of("census"),
        (
            Caption(
                "census",
                "How many tokens of each kind a text can produce.",
                f"{NO_COUNTERPART}; the kinds are a finer version of the categories of {LAND}",
            ),
        ),
        "the vocabulary",
        order=10,
    ),
)

SECTION = ReportSection(
    "census",
    "The vocabulary",
    "What each token is, and whether any text can produce it: with a witness, or with a proof that none can.",
    Request.of("census"),
    order=20,
)
