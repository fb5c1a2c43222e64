"""How does a survey become results? What is missing goes to a Dask scheduler; what comes back is counted and said."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

from distributed import Client, Future, KilledWorker, as_completed

from interp import cache
from interp.errors import InterpError, first_line
from interp.models import version_of
from interp.places import Place
from interp.progress import shown
from interp.request import ModelRequest
from interp.runner import to_stderr
from interp.survey import cluster, worker
from interp.survey.cells import ATTEMPTS, DONE, RESULT, Ticket, is_finished, key_of
from interp.survey.spec import Cell, Spec

_KILLED = 10  # times that a task may be among those of a worker that died, guilty or not
_LATER = -1  # the priority of what another survey is making


@dataclass(frozen=True)
class Survey:
    """What came of a survey.

    Attributes:
        cells: all that were asked for.
        found: the names of those that were there.
        made: of those that this call ran.
        failed: of those that could not be run, each with its one line.
    """

    cells: tuple[Cell, ...]
    found: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


def survey(
    spec: Spec,
    out: str | Path,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    log: cache.Log = to_stderr,
) -> Survey:
    """Run every cell of a survey that is not in its folder yet.

    Args:
        spec: what is asked.
        out: a folder that all workers see, or an address of fsspec.
        scheduler: the address of a Dask scheduler; None: worker processes on this machine.
        workers: how many of these.
        log: is told, in a line each, what failed and why, and where the dashboard is.

    Returns:
        What was there, what was made, what failed. Failed cells are in `failed/`, and are tried again by the next call.

    Raises:
        InterpError: a model does not exist, nothing can be written, or the scheduler is lost; what is finished stays.
    """
    place = Place(out)
    cells = spec.cells()
    tickets = tickets_of(cells, place, spec.share_after)
    found = finished(place, tickets)
    for name in found:
        place.remove(f"failed/{name}.json")
    missing = [cell for cell in cells if cell.name not in found]
    result = Survey(tuple(cells), tuple(found))
    if not missing:
        return result
    offered = Counter[str]()
    for cell in missing:
        offered |= Counter(cell.resources)  # the most of each
    try:
        with cluster.connected(scheduler, workers, offered, log) as client:
            work = _Work(client, place, log)
            with shown(lambda: (len(work.made) + len(found), len(cells), work.said()), "cells"):
                work.run([(cell, tickets[cell.name]) for cell in missing])
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(cache.GOES_ON) from error
    finally:
        place.remove(f"attempts/{next(iter(tickets.values())).survey}")
    return Survey(tuple(cells), tuple(found), tuple(work.made), work.failed)


def tickets_of(cells: Sequence[Cell], place: Place, share_after: float) -> dict[str, Ticket]:
    """What workers are told of each cell, by its name. Raises `InterpError` for a model that does not exist."""
    versions: dict[ModelRequest, dict[str, str]] = {}
    codes: dict[str, str | None] = {}
    found, survey_id = {}, uuid.uuid4().hex[:12]
    for cell in cells:
        request, model = cell.request, cell.request.model
        if model not in versions:
            versions[model] = version_of(model.name, model.revision, model.checkpoint)
        key = key_of(request, versions[model], codes)
        about = (request.to_json(), place.address, str(Path.cwd()), survey_id, share_after)
        found[cell.name] = Ticket(cell.name, key, *about)
    return found


def finished(place: Place, tickets: dict[str, Ticket]) -> list[str]:
    """The names of the cells whose results are there, of the same request, code and model."""
    done = place.read_all(f"cells/*/{DONE}")
    return [
        name
        for name, ticket in tickets.items()
        if ticket.at(DONE) in done and is_finished(ticket, done[ticket.at(DONE)], place.size(ticket.at(RESULT)))
    ]


class _Work:
    """The tasks of a survey: a cell is one, or one for each of its parts and one more."""

    def __init__(self, client: Client, place: Place, log: cache.Log):
        self.client, self.place, self.log = client, place, log
        self.made: list[str] = []
        self.failed: dict[str, str] = {}
        self.tasks: dict[Future, tuple[Cell, Ticket, tuple[str, ...]]] = {}
        self.parts_left: Counter[str] = Counter()
        self.killed: Counter[tuple[str, ...]] = Counter()
        self.numbers = iter(range(10**12))
        self.completed = as_completed(loop=client.loop, raise_errors=False)

    def said(self) -> str:
        """What is running and what has failed."""
        try:
            threads = [int(one["nthreads"]) for one in self.client.scheduler_info(n_workers=-1)["workers"].values()]
        except Exception:  # whatever Dask raises of a scheduler that is gone: `run` says so
            return "the scheduler does not answer"
        running = min(sum(threads), len(self.tasks))
        return f"{running} running on {len(threads)} workers, {len(self.failed)} failed"

    def run(self, missing: Sequence[tuple[Cell, Ticket]]) -> None:
        """Run cells until each is made or has failed. Raises `InterpError` where the scheduler is lost."""
        for cell, ticket in missing:
            self._submit(cell, ticket)
        for future in self.completed:
            cell, ticket, part = self.tasks.pop(future)
            try:
                if future.status == "error":
                    self._erred(cell, ticket, part, future.exception())
                else:
                    self._answered(cell, ticket, part, future.result())
            except (CancelledError, OSError) as error:
                raise InterpError(
                    f"the scheduler is gone; {len(self.made)} cells were made, and the same command goes on from these"
                ) from error

    def _submit(self, cell: Cell, ticket: Ticket, part: tuple[str, ...] = (), priority: int = 0) -> None:
        future = self.client.submit(
            worker.run_part if part else worker.run_cell,
            ticket,
            *part,
            key=(f"{cell.request.experiment}{': part' if part else ''}", ticket.name, next(self.numbers)),
            priority=priority,
            resources=cell.resources or None,
            retries=ATTEMPTS - 1,
            pure=False,
        )
        self.tasks[future] = (cell, ticket, part)
        self.completed.add(future)

    def _answered(self, cell: Cell, ticket: Ticket, part: tuple[str, ...], answer: worker.Answer) -> None:
        name = ticket.name
        if name in self.failed:
            return
        if answer.state == "busy":
            self._submit(cell, ticket, part, _LATER)
        elif answer.state == "shared":
            self.parts_left[name] = len(answer.parts)
            for one in answer.parts.items():
                self._submit(cell, ticket, one, priority=1)
        elif not part:
            self.made.append(name)
        else:
            self.parts_left[name] -= 1
            if not self.parts_left[name]:
                self._submit(cell, ticket, priority=2)

    def _erred(self, cell: Cell, ticket: Ticket, part: tuple[str, ...], error: BaseException | None) -> None:
        """Record a failure; a task that a dying worker only held is given to another."""
        name = ticket.name
        if name in self.failed:
            return
        if isinstance(error, KilledWorker):
            self.killed[name, *part] += 1
            if self.killed[name, *part] < _KILLED:
                self._submit(cell, ticket, part, _LATER)
                return
        said = str(error) if isinstance(error, InterpError) else first_line(error or InterpError("unknown"))
        self.failed[name] = said
        self.log(f"{name}: {said}")
        about = {"request": ticket.request, "said": said, "traceback": "".join(getattr(error, "__notes__", []))}
        self.place.write(ticket.failure, (json.dumps(about, sort_keys=True, indent=1) + "\n").encode())
