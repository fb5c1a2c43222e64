"""The page of a report: sections with figures, a table that sorts and searches, a panel for the chosen token. It needs no other file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from interp.errors import InterpError
from interp.files import write_text
from interp.report.sections import Section
from interp.report.tokens import MOST

# key of a row, heading, what it means
COLUMNS = (
    ("id", "id", "token id"), ("text", "token", "its text"), ("kind", "kind", "what the vocabulary's census calls it"),
    ("exposure", "seen", "how often training showed it, where that is known"),
    ("called", "called", "under-trained by its rows, at the false-discovery rate of the section above"),
    ("indicator", "indicator", "low looks untrained"), ("probability", "repeated", "the highest probability that it got when the model was asked to repeat it"),
    ("verdict", "arg-max", "can some state put it first?"), ("lead", "lead", "by how many logits at most, behind the last norm"),
    ("cause", "cause", "the largest share of what it lacks of an ordinary token; blank: not asked; -: it lacks less than 1 nat"),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A section as it is shown: the command that makes it, its tables as text, its figures, where its numbers come from."""

    section: Section
    command: str
    text: str
    figures: dict[str, go.Figure]
    provenance: dict[str, Any]


def write(
    path: Path, name: str, about: dict[str, Any], parts: Sequence[Part], rows: list[dict[str, Any]], odd: int, seed: int
) -> Path:
    """Write the page, whole or not at all."""
    try:
        write_text(path, page(name, about, parts, rows, odd, seed))
    except OSError as error:
        raise InterpError(f"cannot write {path} ({error.strerror}): choose another --out") from error
    return path


def page(
    name: str, about: dict[str, Any], parts: Sequence[Part], rows: list[dict[str, Any]], odd: int, seed: int
) -> str:
    """The HTML; `odd` is how many tokens the table would have, were it not cut."""
    drawn = {
        f"{part.section.name}-{key}": json.loads(figure.to_json())
        for part in parts
        for key, figure in part.figures.items()
    }
    for figure in drawn.values():
        figure["layout"].pop("title", None)  # the page has its own
    bodies = [_section(part, odd if part.section.name == "found" and rows else 0) for part in parts]
    links = "".join(f'<a href="#{part.section.name}">{html.escape(part.section.title)}</a>' for part in parts)
    data = {"figures": drawn, "rows": rows, "columns": [list(c) for c in COLUMNS]}
    # no tag may end inside a script
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\!--")
    part_of = files("interp.report")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)} · interp</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>{part_of.joinpath("page.css").read_text(encoding="utf-8")}</style></head><body>
<header><h1>{html.escape(name)}</h1><p>Why does a model that copies any ordinary token fail on some of its own vocabulary?</p><nav>{links}<a href="#methods">Methods</a></nav></header>
<main>
{"".join(bodies)}
{_methods(about, parts, seed)}
</main>
<script>{get_plotlyjs()}</script>
<script id="data" type="application/json">{text}</script>
<script>{part_of.joinpath("page.js").read_text(encoding="utf-8")}</script>
</body></html>
"""


def _section(part: Part, odd: int) -> str:
    section = part.section
    figures = "".join(
        f'<div class="wide"><div class="figure" id="{section.name}-{key}" role="img" aria-label="{html.escape(key.replace("_", " "))}"></div></div>'
        for key in part.figures
    )
    cut = f" Of {odd:,} such tokens these are the {MOST // 2} with the lowest indicator." if odd > MOST // 2 else ""
    table = f"""
<div class="tokens"><h3>Token by token</h3>
<p>Tokens that are called, were never seen, or can never be first, and ordinary ones beside them.{cut} Click a heading to sort, a row to look closer.</p>
<input id="search" type="search" placeholder="search: text, id, kind, verdict" aria-label="search tokens"> <span id="count"></span>
<div class="scroll"><table id="tokens"><thead></thead><tbody></tbody></table></div>
<div id="token" aria-live="polite"></div></div>"""
    return f"""<section id="{section.name}"><h2>{html.escape(section.title)}</h2><p>{html.escape(section.words)}</p>
{figures}<details{"" if part.figures else " open"}><summary>In numbers</summary><pre>{html.escape(part.text)}</pre></details>
{table if odd else ""}<p class="command"><code>{html.escape(part.command)}</code></p></section>
"""


def _methods(about: dict[str, Any], parts: Sequence[Part], seed: int) -> str:
    source = ", ".join(f"{key}: {value}" for key, value in about.items() if value not in (None, ""))
    rows = "".join(
        f"<details><summary>{html.escape(part.section.title)}</summary><pre>{html.escape(json.dumps(part.provenance, indent=1, sort_keys=True))}</pre></details>"
        for part in parts if part.provenance
    )  # fmt: skip
    return f"""<section id="methods"><h2>Methods</h2>
<p>Seed {seed}. {html.escape(source)}. Intervals are 95% bootstrap intervals. Below each section stands the command that makes it again; here, with which versions and on which
tokens it was made.</p>{rows}</section>"""
