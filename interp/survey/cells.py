"""Which cells of a survey are finished, and what lies in its folder of each?

`cells/NAME/` holds `result.nc` and `request.json`, as `interp run --out` leaves them, and `cell.json`, written last.
Its key is made of all that decides the numbers, as that of the cache, but of the model's files in place of the
weights in memory, so that what is finished is told without loading a model. `failed/NAME.json` says why a cell failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from interp import cache, catalog, results
from interp.places import Place
from interp.request import Request

DONE, RESULT, PARTS = "cell.json", "result.nc", ".parts"
ATTEMPTS = 3
_PATIENCE = 2.0  # seconds that a worker waits for what another survey is making


@dataclass(frozen=True)
class Ticket:
    """What a worker is told of a cell. Plain values: a worker may run elsewhere.

    Attributes:
        name: of the cell.
        key: of its result; None where the code of the experiment cannot be told, so that it is always run.
        request: as JSON has it.
        address: of the survey's folder.
        directory: in which relative paths are meant.
        survey: tells attempts of this survey from those of earlier ones.
        share_after: seconds of work from which parts are shared.
    """

    name: str
    key: str | None
    request: dict[str, Any]
    address: str
    directory: str
    survey: str
    share_after: float

    def at(self, file: str) -> str:
        """The name of a file of this cell in the survey's folder."""
        return f"cells/{self.name}/{file}"

    @property
    def failure(self) -> str:
        """The name of the file that says why it failed."""
        return f"failed/{self.name}.json"


def key_of(
    request: Request, version: Mapping[str, str], codes: MutableMapping[str, str | None] | None = None
) -> str | None:
    """What decides the numbers of a cell: request, code, model, libraries, and the files that it names.

    Args:
        request: of the cell.
        version: of the model, as `interp.models.version_of` finds it.
        codes: the fingerprints of experiments that were read already, for many cells; others are added.

    Returns:
        A digest; None where the code of the experiment cannot be told.
    """
    codes = {} if codes is None else codes
    if request.experiment not in codes:
        codes[request.experiment] = _code_of(request.experiment)
    code = codes[request.experiment]
    if code is None:
        return None
    versions = {name: version for name, version in results.versions().items() if name != "commit"}
    asked = request.to_json()
    return cache.Key("cell").part(asked, dict(version), code, versions, _files_named(asked)).digest


def _code_of(experiment: str) -> str | None:
    try:
        return cache.code_fingerprint(catalog.find(experiment))
    except cache.UnknownCodeError:
        return None


def _files_named(value: Any) -> dict[str, str]:
    """The checksums of all files that texts in a request name, alone or as `kind:FILE`."""
    if isinstance(value, dict | list):
        entries = value.values() if isinstance(value, dict) else value
        return {name: digest for entry in entries for name, digest in _files_named(entry).items()}
    texts = (value, value.partition(":")[2]) if isinstance(value, str) else ()
    return {text: cache.file_sha256(text) for text in texts if _is_file(text)}


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except (OSError, ValueError):
        return False


def is_finished(ticket: Ticket, done: bytes | None, size: int | None) -> bool:
    """Is what lies in the folder the answer to this cell? By what `cell.json` holds and the size of its result."""
    if done is None or ticket.key is None:
        return False
    try:
        stored = json.loads(done)
        return bool(stored["key"] == ticket.key and stored["bytes"] == size)
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def held(place: Place, name: str) -> Iterator[bool]:
    """Have a cell, or a part of one, to oneself; whether that is so: another survey may be making it.

    The lock is the kernel's, and gone with the process that held it. Where there are none (objects in a store, a
    file system without locks) two surveys may make the same thing: the later one replaces it by the same.
    """
    if place.folder is None:
        yield True
        return
    folder = place.folder / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError):  # a file system without locks
        yield True
        return
    try:
        yield True
    finally:
        lock.release()
