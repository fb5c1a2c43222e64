"""How far is it? A progress bar on stderr or below a notebook's cell, silent where nobody watches."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_REDRAWN = 0.3  # seconds


def track(items: Iterable[T], what: str, *, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield `items`, showing `what` and the time left; `done` of `total` were finished earlier.

    Shown in a terminal and in a notebook, and nowhere else, so that logs stay clean; gone when it is over.
    """
    if _in_notebook():
        yield from _in_cell(items, what, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


def _in_notebook() -> bool:
    """Does this run in a kernel that shows HTML?"""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _in_cell(items: Iterable[T], what: str, total: int | None, done: int) -> Iterator[T]:
    """A bar below the cell, redrawn a few times a second; bars within bars stand below each other."""
    from IPython.display import HTML, display

    started = drawn = time.monotonic()
    place = display(HTML(""), display_id=True)
    try:
        for finished, item in enumerate(items, start=done):
            now = time.monotonic()
            if now - drawn > _REDRAWN or finished == done:
                drawn = now
                left = (
                    (now - started) / max(finished - done, 1) * (total - finished)
                    if total and finished > done
                    else None
                )
                words = (
                    f"{what} {finished}"
                    + (f" of {total}" if total else "")
                    + (f", {left:.0f} s left" if left is not None else "")
                )
                place.update(HTML(f'<progress value="{finished}" max="{total or 0}"></progress> {html.escape(words)}'))
            yield item
    finally:
        place.update(HTML(""))
