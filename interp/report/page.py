"""What does a report look like? Sections with figures, a table of tokens, a panel for the chosen one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import xarray as xr

from interp import results
from interp.exhibits import ReportSection
from interp.report import frame
from interp.report.frame import Column, Table
from interp.report.tokens import MAX_ROWS, TokenTable

QUESTION = "Why does a model that copies any ordinary token fail on some of its own vocabulary?"
QUESTION_ON_PROMPTS = "Which parts of the model make the answers to these prompts?"
COLUMNS = (
    Column("id", "id", "token id"),
    Column("text", "token", "its text"),
    Column("kind", "kind", "what the vocabulary's census calls it"),
    Column("exposure", "seen", "how often training showed it, where that is known", searched=False),
    Column("detected", "detected", "under-trained by its rows, at the false-discovery rate of the section above"),
    Column("indicator", "indicator", "low looks untrained", searched=False),
    Column(
        "probability",
        "repeated",
        "the highest probability that it got when the model was asked to repeat it",
        searched=False,
    ),
    Column("verdict", "arg-max", "can some state put it first?"),
    Column("lead", "lead", "by how many logits at most, after the last norm", searched=False),
    Column("cause", "cause", "the largest share of its deficit; blank: not asked; -: a deficit below 1 nat"),
)
_TOKENS = """
<div class="tokens"><h3>Token by token</h3>
<p>Tokens that are detected, were never seen, or can never be first, and ordinary ones beside them.{cut}
Click a heading to sort, a row to look closer.</p>
{table}
<div id="token" aria-live="polite"></div></div>"""
_METHODS = """<section id="methods"><h2>Methods</h2>
<p>Seed {seed}. {source}. Intervals are 95% intervals: percentile bootstrap from 30 samples on, Student's t for fewer.
Below each section stands the command that makes it again; here, with which versions and on which tokens it was
made.</p>
{records}
<p>How long each part took:</p><ul class="times">{times}</ul></section>"""


@dataclass(frozen=True)
class Part:
    """A section as displayed: its tables as text and its figures as Plotly JSON, or its problem.

    `note` says why the figures are plain ones. `seconds` is the time that this run took; None for an earlier run's
    result.
    """

    section: ReportSection
    text: str = ""
    figures: dict[str, str] = field(default_factory=dict)
    result: xr.Dataset | None = None
    problem: str = ""
    note: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Page:
    """Everything that a page shows: the model's origin, the parts in order, the table of tokens or its problem."""

    origin: dict[str, Any]
    seed: int
    parts: Sequence[Part]
    tokens: TokenTable = field(default_factory=TokenTable)
    problem: str = ""
    seconds: float = 0.0  # for the table
    question: str = QUESTION


def write(path: Path, page: Page) -> Path:
    """Write the page atomically. Raises `InterpError` where it cannot be written."""
    drawn = {f"{p.section.name}-{name}": json.loads(text) for p in page.parts for name, text in p.figures.items()}
    for figure in drawn.values():
        figure["layout"].pop("title", None)  # the page has its own titles
    links = "".join(f'<a href="#{p.section.name}">{escape(p.section.title)}</a>' for p in page.parts)
    return frame.write(
        path,
        name=str(page.origin["name"]),
        question=page.question,
        links=f'<nav>{links}<a href="#methods">Methods</a></nav>',
        main="".join(_section(part, page) for part in page.parts) + f"\n{_methods(page)}",
        figures=drawn,
        table=Table("tokens", COLUMNS, page.tokens.rows, key="indicator"),
    )


def _section(part: Part, page: Page) -> str:
    section = part.section
    places = frame.figure_places(part.figures, prefix=f"{section.name}-")
    text = f"Not available: {part.problem}" if part.problem else part.text
    note = f"<p>{escape(part.note[0].upper() + part.note[1:])}</p>" if part.note else ""
    return f"""<section id="{section.name}"><h2>{escape(section.title)}</h2><p>{escape(section.words)}</p>{note}
{places}<details{"" if part.figures else " open"}><summary>In numbers</summary><pre>{escape(text)}</pre></details>
{_tokens(page) if section.name == "found" else ""}
<p class="command"><code>{escape(section.request.command())}</code></p></section>
"""


def _tokens(page: Page) -> str:
    count, most = page.tokens.suspicious, MAX_ROWS // 2
    if page.problem:
        return f"<p>The table of tokens is not available: {escape(page.problem)}</p>"
    cut = f" Of {count:,} such tokens these are the {most} with the lowest indicator." if count > most else ""
    return _TOKENS.format(cut=cut, table=frame.table_place("tokens", "text, id, kind, verdict")) if count else ""


def _methods(page: Page) -> str:
    records = "".join(
        f"<details><summary>{escape(part.section.title)}</summary>"
        f"<pre>{escape(json.dumps(results.provenance(part.result), indent=1, sort_keys=True))}</pre></details>"
        for part in page.parts
        if part.result is not None
    )
    took = [(part.section.title, part.seconds) for part in page.parts]
    took += [("The table of tokens", page.seconds)] if page.tokens.rows else []
    times = "".join(
        f"<li>{escape(title)}: {'taken from an earlier run' if seconds is None else f'{seconds:.1f} s'}</li>"
        for title, seconds in took
    )
    return _METHODS.format(seed=page.seed, source=described(page.origin), records=records, times=times)


def described(origin: Mapping[str, Any]) -> str:
    """A page's description of its model."""
    return escape(", ".join(f"{key}: {value}" for key, value in origin.items() if value not in (None, "")))
