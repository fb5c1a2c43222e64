"""What does the page of a survey look like? Figures, and a table to search and to sort; it needs no other file."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path

import xarray as xr
from plotly.offline import get_plotlyjs

from interp.compare.survey_view import COLUMNS, FIGURES, rows
from interp.errors import InterpError
from interp.files import write_text
from interp.results import provenance

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A survey · interp</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>{css}</style></head><body>
<header><h1>A survey</h1><p>{question}</p></header>
<main>
{figures}
<section><h2>Every model, checkpoint and seed</h2>
<p>Click a heading to sort; a blank is what the survey does not hold.</p>
<input id="search" type="search" placeholder="search: model, pool, head, cause" aria-label="search rows">
<span id="count" aria-live="polite"></span>
<div class="scroll"><table id="rows"><thead></thead><tbody></tbody></table></div></section>
<section><h2>Where these numbers come from</h2><pre>{about}</pre></section>
</main>
<script>{plotly}</script>
<script id="data" type="application/json">{data}</script>
<script>{js}</script>
</body></html>
"""
_QUESTION = "Which models copy all of their tokens, which heads do it, and where does it fail?"


def write_survey_page(result: xr.Dataset, path: Path) -> Path:
    """Write the page of a survey atomically.

    Args:
        result: as `compare_survey` returns it.
        path: of the page.

    Returns:
        The path.

    Raises:
        InterpError: it cannot be written.
    """
    drawn = {draw.__name__: figure for draw in FIGURES if (figure := draw(result)) is not None}
    data = {
        "figures": {name: json.loads(figure.to_json()) for name, figure in drawn.items()},
        "rows": rows(result),
        "columns": COLUMNS,
    }
    page = _PAGE.format(
        css=files("interp.report").joinpath("page.css").read_text(encoding="utf-8"),
        js=files("interp.compare").joinpath("survey_page.js").read_text(encoding="utf-8"),
        question=_QUESTION,
        figures="".join(f'<div class="wide"><div class="figure" id="{name}" role="img"></div></div>' for name in drawn),
        about=escape(json.dumps(provenance(result), indent=1, sort_keys=True)),
        plotly=get_plotlyjs(),
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\!--"),
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise InterpError(f"cannot write {path} ({error.strerror}): choose another --out") from error
    return path
