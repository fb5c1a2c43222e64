"""How does a worker run a cell, or a part of one? As a serial run does: the same calls, and the same parts.

A worker keeps the model that it loaded last, and the parts of the last cell that it shares with others. Whatever it
finishes lies in the survey's folder at once: a worker that is killed loses the part under way.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import xarray as xr

from interp import cache, results
from interp.errors import InterpError, first_line
from interp.models import LOADED, origin, weights_state
from interp.organisms import HAND_WIRED
from interp.places import Place
from interp.request import ModelRequest, Request
from interp.runner import Asked, asked_of, load_as_asked
from interp.survey.cells import ATTEMPTS, DONE, PARTS, RESULT, Ticket, held, is_finished, key_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Makes = Mapping[str, Callable[[], xr.Dataset]]
_ONE_AT_A_TIME = threading.Lock()  # a worker of several threads has one device and one current folder, too


@dataclass(frozen=True)
class Answer:
    """What a worker says of a task.

    Attributes:
        state: "finished"; "shared", where `parts` are left to all workers; or "busy", where another survey has it.
        parts: the files and names of the parts that are to be made.
    """

    state: str
    parts: dict[str, str] = field(default_factory=dict)


class Shared(BaseException):
    """Leaves an experiment at parts that are made elsewhere: no experiment is to catch it."""

    def __init__(self, files: dict[str, str], makes: Makes):
        self.files, self.makes = files, makes


@dataclass
class _Kept:
    """What a worker keeps from task to task."""

    model: tuple[ModelRequest, str, TransformerBridge] | None = None
    shared: tuple[Ticket, Shared] | None = None


_KEPT = _Kept()


def run_cell(ticket: Ticket) -> Answer:
    """Run a cell, or what of it is missing.

    Returns:
        That it is finished; or which parts are left to be made, where what is left takes long and can be shared.

    Raises:
        InterpError: it cannot be run, in one line; its note is the traceback.
    """
    with _task(ticket, ticket.name) as (place, folder):
        if is_finished(ticket, place.read(ticket.at(DONE)), place.size(ticket.at(RESULT))):
            return Answer("finished")
        with held(place, ticket.name) as mine:
            if not mine:
                return Answer("busy")
            with _attempt(place, ticket, ticket.name):
                began = time.monotonic()
                asked = _asked(ticket)
                parts = SharedParts(folder, asked, place, ticket)
                try:
                    result = asked.result(parts)
                except Shared as shared:
                    _KEPT.shared = (ticket, shared)
                    return Answer("shared", shared.files)
                _store(ticket, asked, parts.key, result, place, folder, time.monotonic() - began)
    return Answer("finished")


def run_part(ticket: Ticket, file: str, name: str) -> Answer:
    """Make one part of a cell, which is stored in a file; returns and raises as `run_cell`."""
    with _task(ticket, f"{ticket.name}-{file}") as (place, folder):
        if place.size(ticket.at(f"{PARTS}/{file}")) is not None:
            return Answer("finished")
        with held(place, f"{ticket.name}-{file}") as mine:
            if not mine:
                return Answer("busy")
            with _attempt(place, ticket, f"{ticket.name}-{file}"):
                import torch

                with torch.inference_mode(False), torch.no_grad():
                    part = _reached(ticket, file, place, folder).makes[name]()
                results.save(results.stamp(part, {"part": name}), folder / file)
                place.write(ticket.at(f"{PARTS}/{file}"), (folder / file).read_bytes())
    return Answer("finished")


class SharedParts(cache.Parts):
    """The parts of a cell, which all workers find in the survey's folder.

    Args:
        folder: of this task.
        asked: the run.
        place: the survey's folder.
        ticket: of the cell.
        until: leave the experiment where it comes to the part in this file; None: where sharing pays.
    """

    def __init__(self, folder: Path, asked: Asked, place: Place, ticket: Ticket, until: str | None = None):
        super().__init__(folder, asked.key(_no_log), asked.request.to_json())
        self.asked, self.place, self.ticket, self.until = asked, place, ticket, until

    def get_or_compute(self, name: str, compute: Callable[[], xr.Dataset], key: cache.Key | None = None) -> xr.Dataset:
        """As in a run into a folder; what is made is there for all others, too."""
        if self.folder is None:
            return compute()
        file = self.file(name, key or self.key)
        if self.place.fetch(self.ticket.at(f"{PARTS}/{file}"), self.folder / file):
            with contextlib.suppress(InterpError):  # damaged
                return results.load(self.folder / file)
            (self.folder / file).unlink()
        part = super().get_or_compute(name, compute, key)
        self.place.write(self.ticket.at(f"{PARTS}/{file}"), (self.folder / file).read_bytes())
        return part

    def keeper(self, key: cache.Key) -> results.Keep:
        """A `keep` that shares parts which do not depend on one another."""
        return _SharingKeep(self, key)

    @staticmethod
    def file(name: str, key: cache.Key) -> str:
        """Where a part lies."""
        return f"{key.part(name).digest}.nc"

    def share(self, makes: Makes, key: cache.Key) -> None:
        """Raise `Shared` where parts are to be made elsewhere; make the first, to know how long they take."""
        model = self.asked.source.model
        # what was changed in this process, others have not
        if self.folder is None or cache.has_hooks(model) or weights_state(model) != LOADED.get(model):
            return
        files = {self.file(name, key): name for name in makes}
        if self.until is not None:
            if self.until in files:
                raise Shared(files, makes)
            return
        left = {f: name for f, name in files.items() if self.place.size(self.ticket.at(f"{PARTS}/{f}")) is None}
        if len(left) < 2:
            return
        first, began = next(iter(left)), time.monotonic()
        self.get_or_compute(left[first], makes[left[first]], key)
        del left[first]
        if (time.monotonic() - began) * len(left) > self.ticket.share_after:
            raise Shared(left, makes)


@dataclass(frozen=True)
class _SharingKeep:
    parts: SharedParts
    key: cache.Key

    def __call__(self, name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
        return self.parts.get_or_compute(name, make, self.key)

    def together(self, makes: Makes) -> None:
        self.parts.share(makes, self.key)


# --- one task ---------------------------------------------------------------------------------------------------------


@contextmanager
def _task(ticket: Ticket, name: str) -> Iterator[tuple[Place, Path]]:
    """The survey's folder and one of this task; every mistake as one line, with the traceback as a note."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="interp-", ignore_cleanup_errors=True))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # the survey shows how far it is
        # else xarray asks the scheduler for a lock for each file that it writes, and this process alone writes them
        stack.enter_context(dask.config.set(scheduler="synchronous"))
        if Path(ticket.directory).is_dir():
            stack.enter_context(contextlib.chdir(ticket.directory))
        try:
            yield Place(ticket.address), Path(folder)
        except Exception as error:
            said = str(error) if isinstance(error, InterpError) else f"{type(error).__name__}: {first_line(error)}"
            plain = InterpError(said)
            plain.add_note(traceback.format_exc())
            raise plain from None


@contextmanager
def _attempt(place: Place, ticket: Ticket, name: str) -> Iterator[None]:
    """Count the processes that die over a task, whichever tasks a scheduler holds for guilty.

    Raises:
        InterpError: so many did in this survey that it is not tried again.
    """
    file = f"attempts/{ticket.survey}/{name}"
    died = int(place.read(file) or 0)
    if died >= ATTEMPTS:
        raise InterpError(f"the process died {died} times over it: out of memory, or a crash of a library")
    place.write(file, str(died + 1).encode())
    try:
        yield
    finally:
        place.remove(file)


def _asked(ticket: Ticket) -> Asked:
    """The run that a cell asks for. Raises `InterpError` where its model or code are not those that were asked for."""
    request = Request.from_json(ticket.request)
    model = _model(request.model, ticket.directory)
    about = origin(model)
    known = () if request.model.name in HAND_WIRED else ("sha256", "revision")
    version = {name: str(about[name]) for name in known if name in about}
    if ticket.key is not None and key_of(request, version) != ticket.key:
        raise InterpError(
            "this worker has other files of the model, or another version of interp, its libraries or the experiment, "
            "than the machine that asks: install the same, and start the worker again"
        )
    return asked_of(request, model, _no_log)


def _model(asked: ModelRequest, directory: str) -> TransformerBridge:
    """The model that was loaded last, if it is the one and as it was; else it, loaded."""
    if _KEPT.model is not None:
        request, where, model = _KEPT.model
        unchanged = not cache.has_hooks(model) and weights_state(model) == LOADED.get(model)
        if (request, where) == (asked, directory) and unchanged:
            return model
        del model
    forget()
    model = load_as_asked(asked.name, **asked.model_dump(exclude={"name"}))
    _KEPT.model = (asked, directory, model)
    return model


def forget() -> None:
    """Let go of the model and of shared parts, so that there is room for the next."""
    import torch

    _KEPT.model = _KEPT.shared = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reached(ticket: Ticket, file: str, place: Place, folder: Path) -> Shared:
    """What makes the part in a file, and those beside it: kept from the last task, or reached again."""
    if _KEPT.shared is not None:
        known, shared = _KEPT.shared
        if known == ticket and file in shared.files:
            return shared
    asked = _asked(ticket)
    try:
        asked.result(SharedParts(folder, asked, place, ticket, until=file))
    except Shared as shared:
        _KEPT.shared = (ticket, shared)
        return shared
    raise InterpError("a part that was to be made elsewhere is not reached again: the model or its files changed")


def _store(
    ticket: Ticket, asked: Asked, key: cache.Key, result: xr.Dataset, place: Place, folder: Path, seconds: float
) -> None:
    """Write a finished cell, what says so last."""
    import torch

    cache.put(folder, asked.whole(key), result, asked.request.to_json())
    content = (folder / RESULT).read_bytes()
    place.write(ticket.at(RESULT), content)
    if (folder / cache.REQUEST_FILE).is_file():
        place.write(ticket.at(cache.REQUEST_FILE), (folder / cache.REQUEST_FILE).read_bytes())
    model = asked.source.model
    done: dict[str, Any] = {"key": ticket.key, "bytes": len(content), "request": ticket.request}
    done |= {"seconds": round(seconds, 2), "threads": torch.get_num_threads(), "device": str(model.cfg.device)}
    place.write(ticket.at(DONE), (json.dumps(done, sort_keys=True, indent=1) + "\n").encode())
    place.remove(ticket.at(PARTS))
    place.remove(ticket.failure)


def _no_log(line: str) -> None:
    """What a run would say goes into its record, or nowhere: nobody looks at a worker."""
