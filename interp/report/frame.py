"""What do the pages of a report and of a survey share? Head, style and script; figures; a table to search and to sort.

A page is one file and needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from interp.files import write_errors, write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} · interp</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>{css}</style></head><body>
<header><h1>{name}</h1><p>{question}</p>{links}</header>
<main>
{main}
</main>
<script>{plotly}</script>
<script id="data" type="application/json">{data}</script>
<script>{js}</script>
</body></html>
"""
_FIGURE = '<div class="wide"><div class="figure" id="{id}" role="img" aria-label="{label}"></div></div>'
_TABLE = """<input id="search" type="search" placeholder="search: {hint}" aria-label="search {what}">
<span id="count" aria-live="polite"></span>
<div class="scroll"><table id="{what}"><thead></thead><tbody></tbody></table></div>"""


@dataclass(frozen=True)
class Column:
    """A column of a page's table.

    Attributes:
        key: of the value in a row.
        heading: of the column.
        meaning: what the heading says on hover.
        digits: of a number after its point; None: three that are significant, and all of an integer.
        searched: whether the search looks there; of what is true it finds the heading.
    """

    key: str
    heading: str
    meaning: str
    digits: int | None = None
    searched: bool = True


@dataclass(frozen=True)
class Table:
    """A page's table, which `table_place` puts where it belongs.

    Attributes:
        what: is in its rows, in the plural; also its id.
        columns: from left to right; one of which no row knows anything is left out.
        rows: values by key, None where unknown.
        key: of the column by which the rows are sorted at first.
        up: whether they are sorted upwards.
    """

    what: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    key: str
    up: bool = True


def figure_places(names: Iterable[str], prefix: str = "") -> str:
    """Where figures are drawn, each with the prefix and its name as its id."""
    return "".join(_FIGURE.format(id=escape(prefix + name), label=escape(name.replace("_", " "))) for name in names)


def table_place(what: str, hint: str) -> str:
    """Where the table of a page is filled in, below its search; `hint` says what can be searched for."""
    return _TABLE.format(what=escape(what), hint=escape(hint))


def write(
    path: Path, *, name: str, question: str, main: str, figures: Mapping[str, Any], table: Table, links: str = ""
) -> Path:
    """Write a page atomically.

    Args:
        path: of the page.
        name: its heading.
        question: what it answers.
        main: the HTML of its sections.
        figures: Plotly's JSON by the id of the place.
        table: drawn if the page has a place for it.
        links: the HTML below the question.

    Returns:
        The path.

    Raises:
        InterpError: it cannot be written.
    """
    data = {
        "figures": figures,
        "what": table.what,
        "columns": [asdict(column) for column in table.columns],
        "rows": table.rows,
        "order": {"key": table.key, "up": table.up},
    }
    package = files("interp.report")
    page = _PAGE.format(
        name=escape(name),
        css=package.joinpath("page.css").read_text(encoding="utf-8"),
        question=escape(question),
        links=links,
        main=main,
        plotly=get_plotlyjs(),
        # no tag may close inside a script
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\!--"),
        js=package.joinpath("page.js").read_text(encoding="utf-8"),
    )
    with write_errors(path):
        write_text(path, page)
    return path
