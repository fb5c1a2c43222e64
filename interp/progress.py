"""How far along is it? A bar in a terminal and in a notebook; a plain line every minute in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_EVERY = 60.0  # seconds of silence in a log
_LINE = "{desc}{n_fmt} of {total_fmt}, {remaining} left"
_LINE_WITHOUT_END = "{desc}{n_fmt}"

_running: list[str] = []  # ongoing work, the outermost first: one line reports all of it
_last_line = 0.0
_last_step = -_EVERY


def track(items: Iterable[T], what: str, *, total: int | None = None, done: int = 0, even: bool = True) -> Iterator[T]:
    """Yield `items`, showing progress and the time left.

    A terminal and a notebook show a bar, which disappears at the end. Elsewhere (a file, a batch system) a line goes to
    stderr after the first step, with the estimated total time, and then once a minute; nothing for work of less than a
    minute.

    Args:
        items: the items to process.
        what: the activity, for example "scoring heads".
        total: how many there are, including those `done`; without it, no time left is shown.
        done: how many were finished earlier.
        even: whether all take about the same time, so that the first predicts the total.
    """
    if sys.stderr.isatty() or _in_notebook():
        yield from tqdm(items, what, total, initial=done, leave=False)
    else:
        yield from _logged(items, what, total, done, even)


@contextmanager
def shown(state: Callable[[], tuple[int, int, str]], what: str) -> Iterator[None]:
    """Show how far work is that is done elsewhere: a bar that is renewed each second, or a line a minute in a log.

    Args:
        state: says how many are done, of how many, and what else there is to say.
        what: is counted, for example "cells".
    """
    done, total, _ = state()
    over, began = threading.Event(), time.monotonic()
    bar = tqdm(total=total, desc=what, initial=done, leave=False) if sys.stderr.isatty() or _in_notebook() else None

    def show() -> None:
        while not over.wait(_EVERY if bar is None else 1.0):
            now, _, said = state()
            if bar is not None:
                bar.n = now
                bar.set_postfix_str(said)
            else:
                line = tqdm.format_meter(
                    now, total, time.monotonic() - began, prefix=f"{what}: ", initial=done, bar_format=_LINE
                )
                print(f"{line}; {said}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if bar is not None:
            bar.close()


def announce(what: str, seconds: float) -> None:
    """Report on stderr how long work will take, measured on a part of it; nothing below a minute."""
    if seconds >= _EVERY:
        print(f"{what}: about {seconds / 60:.0f} min", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration in the unit that suits it: seconds, minutes from 90 seconds on, hours from 90 minutes on."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


def _logged(items: Iterable[T], what: str, total: int | None, done: int, even: bool) -> Iterator[T]:
    global _last_line, _last_step
    began = time.monotonic()
    if not _running and began - _last_step >= _EVERY:  # otherwise many short pieces of one long work would say nothing
        _last_line = began
    level = len(_running)
    _running.append("")
    try:
        for finished, item in enumerate(items, start=done):
            now = time.monotonic()
            if total and even and finished == done + 1:
                announce(what, (now - began) * (total - done))
            _running[level] = tqdm.format_meter(
                finished,
                total,
                now - began,
                prefix=f"{what}: ",
                initial=done,
                bar_format=_LINE if total else _LINE_WITHOUT_END,
            )
            if now - _last_line >= _EVERY:
                _last_line = now
                print("; ".join(_running), file=sys.stderr, flush=True)
            _last_step = now
            yield item
    finally:
        del _running[level:]
