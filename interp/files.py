"""How is a file written so that nobody ever reads a partial one?"""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil

from interp.errors import InterpError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it replaces `path`, on failure it is removed.

    Args:
        path: the file to write.

    Yields:
        A name unique to this process, so that two processes may write the same file: the last one wins. Temporary files
        that killed processes of this machine left there are removed.
    """
    path = Path(path)
    mine = f".{path.stem}.tmp-{platform.node()}-"
    for left in path.parent.glob(f"{escape(mine)}*{escape(path.suffix)}"):
        pid = left.name.removeprefix(mine).removesuffix(path.suffix)
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(
        f"{mine}{os.getpid()}{path.suffix}"
    )  # the suffix last: writers choose their format by it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def write_errors(what: str | Path) -> Iterator[None]:
    """Raise `InterpError` for an `OSError` of the block, with what could not be written: a file, or "to" a folder."""
    try:
        yield
    except OSError as error:
        raise InterpError(f"cannot write {what} ({error.strerror or error}): choose another --out") from error


def writable(folder: str | Path) -> Path:
    """The folder, created if missing. Raises `InterpError` if it cannot be written to."""
    folder = Path(folder)
    with write_errors(f"to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def user_cache() -> Path:
    """The folder for what can be deleted and recreated, such as checks that a model passed and fetched weights."""
    named = os.environ.get("INTERP_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"
