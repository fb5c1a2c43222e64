"""What does the page of a survey look like? Figures, and a table to search and to sort; it needs no other file."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import xarray as xr

from interp.compare.survey_view import COLUMNS, FIGURES, rows
from interp.report import frame
from interp.report.frame import Column, Table
from interp.results import provenance

_MAIN = """{figures}
<section><h2>Every model, checkpoint and seed</h2>
<p>Click a heading to sort; a blank is what the survey does not hold.</p>
{table}</section>
<section><h2>Where these numbers come from</h2><pre>{about}</pre></section>"""
_QUESTION = "Which models copy all of their tokens, which heads do it, and where does it fail?"
_COUNTS = ("checkpoint", "seed", "detected", "not_repeated")


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
    columns = [Column(key, heading, says, 0 if key in _COUNTS else 2) for key, heading, says in COLUMNS]
    main = _MAIN.format(
        figures=frame.figure_places(drawn),
        table=frame.table_place("rows", "model, pool, head, cause"),
        about=escape(json.dumps(provenance(result), indent=1, sort_keys=True)),
    )
    return frame.write(
        path,
        name="A survey",
        question=_QUESTION,
        main=main,
        figures={name: json.loads(figure.to_json()) for name, figure in drawn.items()},
        table=Table("rows", columns, rows(result), key="gap", up=False),
    )
