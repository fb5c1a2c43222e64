"""Run what a report needs and is not there yet, then write the page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from rich.console import Console

from interp import kept, results
from interp.errors import InterpError
from interp.files import writable
from interp.progress import track
from interp.report.page import Part, write
from interp.report.sections import Section, of_experiment, result_of, sections, told_apart
from interp.report.tokens import rows
from interp.tokens import check_seed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_WIDTH = 110
_PAGE = "report.html"


def report(
    model: TransformerBridge | str = "organism", out: str | Path = "results/report", *, seed: int = 0,
    add: Sequence[str | Callable[..., Any]] = (), said: Callable[[str], None] = lambda line: None,
) -> Path:  # fmt: skip
    """One self-contained HTML page on a model, `out/report.html`; what was run lies beside it, a folder per section.

    `add` takes experiments of your own (functions, or file.py:function): each gets a section. A section whose result is there already, of the same model, weights, code, seed
    and options, is not run again, so that an interrupted report goes on. A section that cannot be had (a model without a
    tokenizer has no census) says why in one line, which `said` is told, too. Raises `InterpError` where no section can be had, or nothing can
    be written.
    """
    from interp import figures, load, tables
    from interp.models import origin

    check_seed(seed)
    chosen = told_apart([*sections(), *map(of_experiment, add)])
    bridge = load(model) if isinstance(model, str) else model
    folder = writable(out)
    about = origin(bridge)
    name = str(about["name"])
    _clear(folder, about)
    found: dict[str, xr.Dataset] = {}
    parts = []
    for section in track(chosen, "sections", total=len(chosen)):
        try:
            result = part_of(section, bridge, folder / section.name, seed)
        except InterpError as error:
            said(f"{section.title}: {error}")
            parts.append(Part(section, section.command(about, seed), f"This part cannot be had: {error}", {}, {}))
            continue
        found[section.name] = result
        drawn = figures.figures_of(result)
        if section.shown is not None:
            drawn = {key: drawn[key] for key in section.shown if key in drawn}
        parts.append(
            Part(section, section.command(about, seed), _text(tables.story(result)), drawn, results.provenance(result))
        )
    if not found:
        raise InterpError(f"nothing can be said of '{name}': {parts[0].text.removeprefix('This part cannot be had: ')}")
    table, odd = rows(bridge, found, seed=seed)
    return write(folder / _PAGE, name, about, parts, table, odd, seed)


def _clear(folder: Path, about: dict[str, Any]) -> None:
    """Remove the page of another model: it would stand over this one's results, were we interrupted."""
    for mark in folder.glob(f"*/{kept.ASKED}"):
        try:
            other = json.loads(mark.read_text(encoding="utf-8"))["question"]["model"] != about
        except (OSError, ValueError, KeyError, TypeError):
            other = True
        if other:
            (folder / _PAGE).unlink(missing_ok=True)


def part_of(section: Section, model: TransformerBridge, folder: Path, seed: int) -> xr.Dataset:
    """The result of an earlier call where it is the same question, else a new one."""
    question = kept.about(section.experiment, model, options=section.options, pools=section.pools, seed=seed)
    return kept.answer(folder, question, lambda: result_of(section, model, folder, seed))


def _text(story: Any) -> str:
    console = Console(width=_WIDTH, file=io.StringIO(), record=True)
    for line in story:
        console.print(line)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip("\n")
