"""How does a model become a page? Run what a report needs and is still missing, then write it."""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import xarray as xr
from rich.console import Console
from transformer_lens.model_bridge import TransformerBridge

from interp import cache, catalog, views
from interp.budgets import Budget, budget_in_force
from interp.errors import InterpError
from interp.exhibits import ReportSection
from interp.files import writable, write_text
from interp.models import load, origin
from interp.progress import announce, track
from interp.prompts import spec_texts
from interp.report.page import QUESTION_ON_PROMPTS, Page, Part, described, write
from interp.report.sections import added_section, on_model, sections, sections_on_prompts, with_unique_names
from interp.report.tokens import TokenTable, token_table
from interp.request import Request
from interp.runner import run_request, to_stderr
from interp.tokens import check_seed

_WIDTH = 110  # width of tables, in characters
_TRACEBACK = "error.txt"
# forward passes of 1,024 tokens that take as long as a report: twice what SmolLM2 took with the quick budget; other
# budgets are scaled by their numbers of sequences, not measured
_PASSES = {"quick": 400, "standard": 4000, "thorough": 16_000}
T = TypeVar("T")


def report(
    model: TransformerBridge | str = "organism",
    out: str | Path = "results/report",
    *,
    seed: int = 0,
    budget: Budget = "auto",
    add: Sequence[str | Callable[..., Any] | Request] = (),
    prompts: Sequence[str] = (),
    metric: str = "log_prob",
    answer_tokens: str = "one",
    fresh: bool = False,
    log: cache.Log = to_stderr,
) -> Path:
    """Write one self-contained HTML page about a model, `out/report.html`.

    The results are stored beside it, one folder per section. A section that already has a result for the same request,
    model and code is not run again, so an interrupted report resumes. A section that fails says why on the page; for an
    error in an experiment's own code, the traceback is in its folder, in `error.txt`.

    Args:
        model: a loaded model, or the name of one.
        out: a folder for the page and the results.
        seed: decides every random draw.
        budget: of every section, as in `interp.run`.
        add: your own experiments, each of which gets a section: functions, requests, or texts as after `interp run`,
            with options: `"my_file.py:my_experiment --kind zero --batch 8"`.
        prompts: sets of prompts, as in `interp.run`: the page is about these instead of copying and the vocabulary.
        metric: the metric for prompts.
        answer_tokens: for prompts, as in `interp.run`.
        fresh: run again what is already there.
        log: receives one line for each section taken from an earlier run, and for each that failed, with the reason.

    Returns:
        The path of the page.

    Raises:
        InterpError: no section is available, an added experiment does not exist, or nothing can be written.
    """
    check_seed(seed)
    asked = spec_texts(prompts) if prompts else ()
    own = sections_on_prompts(asked, metric=metric, answer_tokens=answer_tokens) if asked else sections()
    chosen = with_unique_names([*own, *map(added_section, add)])
    bridge = load(model) if isinstance(model, str) else model
    about = origin(bridge)
    with cache.locked(out, log) as folder, cache.runs_below(folder):
        path = folder / "report.html"
        if path.exists() and described(about) not in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()  # another model's page: it would sit above this model's results if we were interrupted
        if not asked and not all((folder / section.name / "result.nc").exists() for section in chosen):
            announce(f"a report of {len(chosen)} sections on '{about['name']}', at most", _seconds(bridge, budget))
        changed = {} if budget == "auto" else {"budget": budget}
        if budget_in_force(budget, bridge) == "quick":
            chosen = [replace(section, request=section.quick or section.request) for section in chosen]
        parts = [
            _part(on_model(section, about, seed, **changed), bridge, folder / section.name, fresh, log)
            for section in track(chosen, "sections", total=len(chosen), even=False)
        ]
        found = {part.section.name: part.result for part in parts if part.result is not None}
        if not found:
            raise InterpError(f"no section is available for '{about['name']}': {parts[0].problem}")
        if asked:
            return write(path, Page(about, seed, parts, question=QUESTION_ON_PROMPTS))
        started = time.monotonic()
        title, make = "The table of tokens", partial(token_table, bridge, found, seed=seed)
        table, problem = _value_or_problem(title, make, folder / "found", log)
        seconds = time.monotonic() - started
        return write(path, Page(about, seed, parts, table or TokenTable(), problem, seconds))


def _seconds(model: TransformerBridge, budget: Budget) -> float:
    """Estimated time for a report from scratch, from one pass of 1,024 tokens on this machine."""
    import torch

    size = min(64, model.cfg.n_ctx)
    ids = torch.zeros((1024 // size, size), dtype=torch.long, device=model.cfg.device)
    with torch.no_grad():
        model(ids[:1], prepend_bos=False)
        started = time.monotonic()
        float(model(ids, prepend_bos=False)[0, 0, 0])
    return _PASSES[budget_in_force(budget, model)] * (time.monotonic() - started)


def _part(section: ReportSection, model: TransformerBridge, folder: Path, fresh: bool, log: cache.Log) -> Part:
    """Run a section and draw it. Any failure gives a part that reports it."""
    started, before = time.monotonic(), _modified(folder / "result.nc")
    (folder / _TRACEBACK).unlink(missing_ok=True)
    make = partial(run_request, section.request, model, out=folder, fresh=fresh, log=log, function=section.function)
    result, problem = _value_or_problem(section.title, make, folder, log)
    shown: tuple[str, dict[str, str], str] | None = None
    if result is not None:
        shown, problem = _value_or_problem(section.title, partial(_shown, section, result, folder, log), folder, log)
    text, drawn, note = shown or ("", {}, "")
    stored = result is not None and before is not None and before == _modified(folder / "result.nc")
    return Part(section, text, drawn, result, problem, note, None if stored else time.monotonic() - started)


def _value_or_problem(title: str, make: Callable[[], T], folder: Path, log: cache.Log) -> tuple[T | None, str]:
    """The result of `make`, or why it failed, in one line that also goes to `log`."""
    try:
        return make(), ""
    except InterpError as error:
        problem = str(error)
    except Exception:  # in a user's experiment, table or figure
        text = traceback.format_exc()
        problem = f"{text.strip().splitlines()[-1]} {_traceback_in(folder)}"
    log(f"{title}: {problem}")
    return None, problem


def _traceback_in(folder: Path) -> str:
    """Write the traceback of the current exception, and say where it is."""
    write_text(writable(folder) / _TRACEBACK, traceback.format_exc())
    return f"(see {folder.name}/{_TRACEBACK})"


def _modified(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _shown(section: ReportSection, result: xr.Dataset, folder: Path, log: cache.Log) -> tuple[str, dict[str, str], str]:
    """The tables of a result as text, its figures as Plotly JSON, and why these are plain ones, if they are."""
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(f"{line} {_traceback_in(folder)}")
        log(f"{section.title}: {notes[-1]}")

    user_view = views.own_view(section.function or catalog.find(section.request.experiment))
    console = Console(width=_WIDTH, file=io.StringIO(), record=True)
    for line in views.tables(result, user_view):
        console.print(line)
    text = "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip("\n")
    drawn = views.figures(result, user_view, log=note)
    names = drawn if section.figures is None or notes else [name for name in section.figures if name in drawn]
    return text, {name: drawn[name].to_json() for name in names}, "".join(notes)
