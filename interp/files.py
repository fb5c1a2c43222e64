"""How is a file written so that nobody ever meets half of it?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import InterpError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it replaces `path`, on failure it is removed."""
    path = Path(path)
    # the suffix stays last, because writers choose their format by it; always the same name, so that what a
    # killed process left is overwritten
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writable(folder: str | Path) -> Path:
    """The folder, made where it is missing. Raises `InterpError` where nothing can be written to it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".interp-probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have looked at the same time
    except OSError as error:
        raise InterpError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
    return folder
