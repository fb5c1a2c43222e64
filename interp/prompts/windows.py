"""How is a text divided into sequences? Into consecutive windows, read lazily: a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from interp.errors import InterpError

WIDTH = 64  # tokens of a window by default
_PIECE = 1 << 16  # characters that are read at a time


def windows(tokenizer: Any, file: str, width: int, most: int) -> list[list[int]]:
    """The first windows of a text.

    Args:
        tokenizer: the published one.
        file: a UTF-8 text.
        width: tokens in a window.
        most: the largest number of windows.

    Returns:
        The ids of each window, all of the same length; a shorter rest at the end is dropped.

    Raises:
        InterpError: the file cannot be read, or holds no window.
    """
    if width < 2 or most < 1:
        raise InterpError(f"length {width}, batch {most}: use a length of at least 2 and a batch of at least 1")
    found = list(islice(_windows(tokenizer, file, width), most))
    if not found:
        raise InterpError(f"{file} has fewer tokens than one window of {width}: give a longer text, or a length")
    return found


def _windows(tokenizer: Any, file: str, width: int) -> Iterator[list[int]]:
    ids: list[int] = []
    for piece in _pieces(file):
        ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        whole = len(ids) // width * width
        for start in range(0, whole, width):
            yield ids[start : start + width]
        ids = ids[whole:]


def _pieces(file: str) -> Iterator[str]:
    """A text in pieces that end at word boundaries."""
    kept = ""
    try:
        with Path(file).open(encoding="utf-8-sig") as opened:
            while read := opened.read(_PIECE):
                kept += read
                # a space belongs to the token of the next word, and spaces belong together
                tail = len(kept.rstrip()) and len(kept.rstrip()) - len(kept.rstrip().split()[-1])
                cut = len(kept[:tail].rstrip())
                if cut > 0:
                    yield kept[:cut]
                    kept = kept[cut:]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InterpError(f"cannot read {file} ({reason}): give a UTF-8 text file") from error
    if kept:
        yield kept
