"""Can each class of an output layer be first? A table of verdicts, each with a state or a proof that has been checked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.argmax import check
from interp.argmax.inside import mixture
from interp.argmax.nearest import Found, decide
from interp.argmax.problem import Points, checked, groups
from interp.argmax.programs import widest
from interp.argmax.witness import guesses, reflected
from interp.errors import InterpError
from interp.files import replacing, writable
from interp.progress import track

VERDICTS = ("argmaxable", "tied", "unargmaxable", "undecided")
_EXACT = 1e-11  # of how far the mixed rows (biases) are: a proof's residual that still counts as none
_ROUNDED = 1e-14  # of the mixed rows (biases): what rounding may leave
_WIDE = 256  # dimensions beyond which a class deep inside is mixed by maximum entropy first
_TRIED = 256  # classes by which the first guess is chosen
_NEAR = 128  # classes that are asked first there
_SAVED = 30.0  # seconds between two savings
_FORMAT = 1  # of what is kept


def argmaxable(
    source: Any, bias: Any = None, *, seconds: float | None = None, parts: Path | None = None
) -> pd.DataFrame:
    """For every class of an output layer: can some hidden state make it the arg-max of `weights @ state + bias`?

    `source` is a loaded model, the name of one, or the weights [class d_model] themselves (an array or a tensor), with `bias` [class]. They are
    taken as the numbers that they hold. One row per class:

    - `id`, `verdict`: *argmaxable*, some state puts it strictly first; *tied*, another class has the same row and bias, or some
      state puts it first together with others, ahead of at least one (the zero state, which ties all, does not count);
      *unargmaxable*, none does; *undecided*, only where `seconds` ran out or arithmetic in double precision cannot tell.
    - `witness` [d_model], the state; `margin`, by how much it leads (logits; 0 where no state leads), and `norm`, the state's (1 without biases).
    - `others` and `weights`: the convex combination of other rows that gives this one, biases not below its own. It proves that the class is
      never alone in front: no state of norm R leads by more than `residual` R + `slack`, two numbers at the size of rounding errors.
    - `twin`: the first other class with the same row and bias, or -1. `first`: can it be first, if only together with others?
    - `stage`, what decided it: guess, reflection, nearest point, maximum entropy, linear program.

    Of a model, also what its last norm allows and what logits of few bits tell apart (`interp.argmax.of_model`).

    All is checked in float64 against the matrix as given by `interp.argmax.check`, which shares no code with the search. `parts`: a folder in which
    what is decided is kept, so that an interrupted call goes on. Raises `InterpError` for what is no such matrix or model.
    """
    if isinstance(source, str) or hasattr(source, "original_model"):
        from interp import models
        from interp.argmax.of_model import of_model

        if bias is not None:
            raise InterpError("a model brings its own biases: leave bias out")
        model = models.load(source) if isinstance(source, str) else source
        return of_model(model, seconds=seconds, parts=parts)
    return of_matrix(source, bias, seconds=seconds, parts=parts)


def of_matrix(
    weights: Any, bias: Any = None, *, seconds: float | None = None, parts: Path | None = None
) -> pd.DataFrame:
    """`argmaxable` of an array or tensor."""
    rows, offsets = checked(weights, bias)
    if parts is not None:
        parts = writable(parts)
    if offsets is not None and not np.ptp(offsets):
        offsets = None  # the same for all: no state sees it
    unique, of = groups(rows, offsets)
    # powers of two, so that nothing is rounded and no square is out of range
    unit, unit_of_bias = _power_of_two(rows), 1.0 if offsets is None else _power_of_two(offsets)
    rows, offsets = rows / unit, None if offsets is None else offsets / unit_of_bias
    size = np.bincount(of)
    search = _Search(rows[unique], None if offsets is None else offsets[unique], seconds, parts)
    found = search.run()
    table = pd.DataFrame({"id": np.arange(len(rows))})
    for name in ("verdict", "margin", "norm", "residual", "slack", "stage", "witness"):
        table[name] = pd.Series([found[name][g] for g in of], dtype=object if name == "witness" else None)
    table["others"] = [unique[found["others"][g]] for g in of]
    table["weights"] = [found["weights"][g] for g in of]
    table["first"] = table["witness"].notna()
    table["twin"] = -1
    for g in np.flatnonzero(size > 1):
        same = np.flatnonzero(of == g)
        table.loc[same, "twin"] = [int(same[1] if i == same[0] else same[0]) for i in same]
        # one row twice: neither is ever alone
        table.loc[same, "verdict"] = "tied"
        table.loc[same, "margin"] = 0.0
    # back to the given sizes
    lengthened = 1.0 if offsets is None else unit_of_bias / unit
    table["margin"] *= unit if offsets is None else unit_of_bias
    table["norm"] *= lengthened
    table["residual"] *= unit
    table["slack"] *= unit_of_bias
    table["witness"] = pd.Series([None if x is None else x * lengthened for x in table["witness"]], dtype=object)
    columns = [
        "id",
        "verdict",
        "margin",
        "norm",
        "residual",
        "slack",
        "stage",
        "twin",
        "first",
        "others",
        "weights",
        "witness",
    ]
    return table[columns]


def _power_of_two(values: np.ndarray) -> float:
    """The one just above the largest of them."""
    largest = float(np.abs(values).max())
    return float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0


class _Search:
    """Stages, each for what the last left open; classes are all different here."""

    def __init__(self, rows: np.ndarray, bias: np.ndarray | None, seconds: float | None, parts: Path | None):
        self.rows, self.bias = rows, bias
        self.until = np.inf if seconds is None else time.monotonic() + seconds
        count = len(rows)
        self.found: dict[str, list[Any]] = {
            "verdict": ["undecided"] * count, "margin": [np.nan] * count, "norm": [np.nan] * count, "residual": [np.nan] * count,
            "slack": [np.nan] * count, "stage": [""] * count, "witness": [None] * count,
            "others": [np.empty(0, int)] * count, "weights": [np.empty(0)] * count,
        }  # fmt: skip
        self.parts = parts

    @cached_property
    def points(self) -> Points:
        return Points.of(self.rows, self.bias)

    def run(self) -> dict[str, list[Any]]:
        if len(self.rows) == 1:  # one row for all: they tie in every state
            self._set(0, verdict="tied", margin=0.0, stage="guess")
            return self.found
        open_ = np.arange(len(self.rows))
        for state in self._guesses(open_):
            open_ = self._judged(open_, state, "guess")
            if not len(open_) or time.monotonic() > self.until:
                break
            self._open = open_
        if len(open_) and time.monotonic() < self.until:
            for ids, directions in reflected(self.points, open_):
                self._judged(ids, self.points.states(directions), "reflection")
                if time.monotonic() > self.until:
                    break
            open_ = self._undecided()
        if len(open_):
            self._exactly(open_)
        return self.found

    def _guesses(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        self._open = ids
        if self.bias is None:
            centred = self.rows - self.rows.mean(0)
            few = ids[:: max(1, len(ids) // _TRIED)]
            if len(self._judged(few, centred[few], "guess")) < len(few) / 10:  # else even coordinates first
                yield centred
        yield from guesses(lambda: self.points, self.rows, self.bias, lambda: self._open)

    def _exactly(self, open_: np.ndarray) -> None:
        path = None if self.parts is None else self.parts / f"{self._key()}.parquet"
        if path is not None:
            open_ = np.setdiff1d(open_, self._read(path))
        done, saved = [], time.monotonic()
        try:
            for which in track(open_, "classes", total=len(open_)):
                if time.monotonic() > self.until:
                    break
                self._one(int(which))
                done.append(int(which))
                if path is not None and time.monotonic() - saved > _SAVED:
                    self._write(path)
                    saved = time.monotonic()
        finally:
            if path is not None and done:
                self._write(path)

    def _one(self, which: int) -> None:
        """Decide one class exactly, by the first way whose answer passes the check."""
        for stage, ask in (
            ("maximum entropy", self._mixed),
            ("nearest point", self._nearest),
            ("linear program", widest),
        ):
            try:
                found = ask(self.points, which)
            except RuntimeError:
                continue
            if found is not None and self._holds(which, found, stage):
                return

    @staticmethod
    def _mixed(points: Points, which: int) -> Found | None:
        if points.at.shape[1] < _WIDE:
            return None
        ids = np.delete(np.arange(len(points.at)), which)
        apart = points.at[ids] - points.at[which]
        if points.ray is not None:
            apart = np.vstack([apart, points.ray])
        found = mixture(apart)
        if found is None:
            return None
        chosen, weights = found
        kept = chosen < len(ids)
        return Found(None, False, ids[chosen[kept]], weights[kept] / weights[kept].sum())

    @staticmethod
    def _nearest(points: Points, which: int) -> Found:
        return decide(points, which, near=_NEAR if points.at.shape[1] >= _WIDE else None)

    def _holds(self, which: int, found: Found, stage: str) -> bool:
        """Check what was found; record it if it is what it claims to be."""
        proof: dict[str, Any] = {}
        if len(found.others):
            apart, spare, error = check.residual(self.rows, self.bias, which, found.others, found.weights)
            mixed = found.weights / found.weights.sum()
            away = mixed @ np.linalg.norm(self.rows[found.others] - self.rows[which], axis=1)
            size = mixed @ np.linalg.norm(self.rows[found.others], axis=1)
            if apart > max(_EXACT * away, _ROUNDED * size):
                return False
            if self.bias is not None:
                below = mixed @ np.abs(self.bias[found.others] - self.bias[which])
                size = mixed @ np.abs(self.bias[found.others]) + abs(self.bias[which])
                if -spare > max(_EXACT * below, _ROUNDED * size):
                    return False
            proof = {
                "others": found.others, "weights": found.weights, "residual": apart + error, "slack": max(0.0, error - spare) if self.bias is not None else 0.0,
            }  # fmt: skip
        if found.direction is None:
            if not proof:
                return False
            self._set(which, verdict="unargmaxable", margin=0.0, stage=stage, **proof)
            return True
        state = self.points.states(found.direction[None])
        if not found.tied:
            return not len(self._judged(np.array([which]), state, stage))
        if not proof or not check.tie(self.rows, self.bias, which, state[0]):
            return False
        self._set(
            which, verdict="tied", margin=0.0, norm=float(np.linalg.norm(state)), witness=state[0], stage=stage, **proof
        )
        return True

    def _judged(self, ids: np.ndarray, states: np.ndarray, stage: str) -> np.ndarray:
        """Record the classes whose states put them first, beyond rounding; return the others."""
        if self.bias is None:
            size = np.linalg.norm(states, axis=1, keepdims=True)
            states = states / np.where(size > 0, size, 1.0)
        states = np.asarray(states, dtype=np.float32).astype(np.float64) if states.size > 1 << 22 else states
        lead, error, _ = check.leads(self.rows, self.bias, ids, states)
        won = lead > error
        length = np.linalg.norm(states, axis=1)
        for i in np.flatnonzero(won):
            which = int(ids[i])
            self.found["verdict"][which], self.found["stage"][which] = "argmaxable", stage
            self.found["margin"][which], self.found["norm"][which] = float(lead[i]), float(length[i])
            self.found["witness"][which] = states[i]
        return ids[~won]

    def _set(self, which: int, **values: Any) -> None:
        for name, value in values.items():
            self.found[name][which] = value

    def _undecided(self) -> np.ndarray:
        return np.array([i for i, verdict in enumerate(self.found["verdict"]) if verdict == "undecided"], dtype=int)

    def _key(self) -> str:
        bits = hashlib.sha256(repr((self.rows.shape, self.bias is not None, _FORMAT)).encode())
        bits.update(np.ascontiguousarray(self.rows).data)
        bits.update(b"" if self.bias is None else np.ascontiguousarray(self.bias).data)
        return bits.hexdigest()[:16]

    def _write(self, path: Path) -> None:
        """Keep what the exact stages found."""
        mine = [i for i, stage in enumerate(self.found["stage"]) if stage not in ("", "guess", "reflection")]
        table = pd.DataFrame({"class": mine} | {name: [values[i] for i in mine] for name, values in self.found.items()})
        with replacing(path) as temporary:
            table.to_parquet(temporary)

    def _read(self, path: Path) -> np.ndarray:
        """Take over what an earlier call kept; which classes these are. A damaged file is as good as none."""
        if not path.exists():
            return np.empty(0, int)
        try:
            table = pd.read_parquet(path)
            if (
                not {"class", *self.found} <= set(table.columns)
                or not table["class"].between(0, len(self.rows) - 1).all()
            ):
                raise ValueError("another table")
        except Exception:  # of many kinds
            path.unlink()
            return np.empty(0, int)
        for row in table.to_dict("records"):
            which = int(row.pop("class"))
            row["others"] = np.asarray(row["others"], dtype=int)
            self._set(which, **row)
        return table["class"].to_numpy()
