"""How is every class decided? Search stages, each for what the previous ones left open; every answer is verified."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.argmax import maxent, min_norm_point, verification
from interp.argmax.linear_program import max_margin
from interp.argmax.passes import leads_in_parts
from interp.argmax.points import Points, Solution
from interp.argmax.reflections import reflections
from interp.files import replacing
from interp.progress import track

_EXACT = 1e-11  # largest residual of a proof, relative to the distance of the mixed rows (biases)
_ROUNDED = 1e-14  # rounding error allowed, relative to the size of the mixed rows (biases)
_WIDE = 256  # dimensions from which on maximum entropy is tried first
_TRIED = 256  # classes on which the first guess is chosen
_NEAR = 128  # nearest classes in the first active set in many dimensions
_SAVED = 30.0  # seconds between saves
_FORMAT = 1  # version of the saved files
_OPEN: dict[str, Any] = {
    "verdict": "undecided",
    "margin": np.nan,
    "norm": np.nan,
    "residual": np.nan,
    "slack": np.nan,
    "stage": "",
    "others": np.empty(0, int),
    "weights": np.empty(0),
    "witness": None,
}


class Search:
    """Verdicts for classes that are all different.

    Args:
        rows: [class d_model].
        bias: [class], not all equal, or None.
        seconds: how long to search; None: until all are decided.
        parts: a folder in which exact answers are saved, so that an interrupted search can resume.
    """

    def __init__(self, rows: np.ndarray, bias: np.ndarray | None, seconds: float | None, parts: Path | None):
        self.rows, self.bias, self.parts = rows, bias, parts
        self.until = np.inf if seconds is None else time.monotonic() + seconds
        self.found: dict[str, list[Any]] = {name: [value] * len(rows) for name, value in _OPEN.items()}
        self.open = np.arange(len(rows))

    @cached_property
    def points(self) -> Points:
        """The classes in whitened coordinates."""
        return Points.of(self.rows, self.bias)

    @property
    def _is_over(self) -> bool:
        return not len(self.open) or time.monotonic() > self.until

    def run(self) -> dict[str, list[Any]]:
        """Decide every class; the columns of `argmaxability` that need a search, each a list [class]."""
        if len(self.rows) == 1:  # one row for all: they tie in every state
            self._record(0, verdict="tied", margin=0.0, stage="guess")
            return self.found
        for states in self._guesses():
            self.open = self._judged(self.open, states, "guess")
            if self._is_over:
                break
        if not self._is_over:
            for ids, directions in reflections(self.points, self.open):
                self._judged(ids, self.points.states(directions), "reflection")
                if self._is_over:
                    break
        self._solve_all()
        return self.found

    def _guesses(self) -> Iterator[np.ndarray]:
        """States [class d_model] for the classes that are still open, the most promising guesses first.

        A class's point taken as a direction (in the given rows: the inverse covariance of the rows times the centred
        row), the centred row, the row itself. With biases, the winner depends on a state's length: several are tried.
        """
        centred = self.rows - self.rows.mean(0)
        if self.bias is None:
            few = self.open[:: max(1, len(self.open) // _TRIED)]
            if len(self._judged(few, centred[few], "guess")) < len(few) / 10:  # else whitened ones first
                yield centred
            yield self.points.states(self.points.at[self.open])
            yield centred[self.open]
            yield self.rows[self.open]
            return
        yield self.points.states(self.points.at[self.open])
        unbiased, span = Points.of(self.rows, None), float(np.ptp(self.bias))
        for times in (1e3, 10.0, 1.0):
            states = unbiased.states(unbiased.at[self.open])
            own = np.abs((states * centred[self.open]).sum(1, keepdims=True))
            yield states * (times * span / np.where(own > 0, own, 1.0))
        yield np.zeros((len(self.open), self.rows.shape[1]))

    def _solve_all(self) -> None:
        path = None if self.parts is None else self.parts / f"{self._key()}.parquet"
        if path is not None:
            self._read(path)
        self.open = np.flatnonzero(np.array(self.found["verdict"]) == "undecided")
        saved = time.monotonic()
        try:
            for which in track(self.open, "classes", total=len(self.open)):
                if self._is_over:
                    break
                self._solve(int(which))
                if path is not None and time.monotonic() - saved > _SAVED:
                    self._write(path)
                    saved = time.monotonic()
        finally:
            if path is not None and len(self.open):
                self._write(path)

    def _solve(self, which: int) -> None:
        """Decide one class exactly, by the first method whose answer passes verification."""
        wide = self.points.at.shape[1] >= _WIDE
        methods: dict[str, Callable[[Points, int], Solution | None]] = {
            "maximum entropy": maxent.solve,
            "nearest point": partial(min_norm_point.solve, near=_NEAR if wide else None),
            "linear program": max_margin,
        }
        for stage in list(methods) if wide else list(methods)[1:]:
            with suppress(RuntimeError):
                solution = methods[stage](self.points, which)
                if solution is not None and self._accepted(which, solution, stage):
                    return

    def _accepted(self, which: int, solution: Solution, stage: str) -> bool:
        """Verify a solution; record it if it holds."""
        states = None if solution.direction is None else self.points.states(solution.direction[None])
        if states is not None and not len(solution.others):
            return not len(self._judged(np.array([which]), states, stage))
        proof = self._proof(which, solution)
        if not proof or (states is not None and not verification.is_tied(self.rows, self.bias, which, states[0])):
            return False
        tie = {} if states is None else {"norm": float(np.linalg.norm(states)), "witness": states[0]}
        self._record(which, verdict="tied" if tie else "unargmaxable", margin=0.0, stage=stage, **proof, **tie)
        return True

    def _proof(self, which: int, solution: Solution) -> dict[str, Any]:
        """A mixture with its residuals; empty if there is none, or if these exceed rounding."""
        others, weights = solution.others, solution.weights
        apart, spare, error = verification.residual(self.rows, self.bias, which, others, weights)
        mixed = weights / weights.sum()
        offsets = np.zeros(len(self.rows)) if self.bias is None else self.bias
        away = mixed @ np.linalg.norm(self.rows[others] - self.rows[which], axis=1)
        size = mixed @ np.linalg.norm(self.rows[others], axis=1)
        below = mixed @ np.abs(offsets[others] - offsets[which])
        highest = mixed @ np.abs(offsets[others]) + abs(offsets[which])
        if apart > max(_EXACT * away, _ROUNDED * size) or -spare > max(_EXACT * below, _ROUNDED * highest):
            return {}
        slack = 0.0 if self.bias is None else max(0.0, error - spare)
        return {"others": others, "weights": weights, "residual": apart + error, "slack": slack}

    def _judged(self, ids: np.ndarray, states: np.ndarray, stage: str) -> np.ndarray:
        """Record the classes whose states put them first, beyond rounding; return the others."""
        if self.bias is None:
            size = np.linalg.norm(states, axis=1, keepdims=True)
            states = states / np.where(size > 0, size, 1.0)
        states = np.asarray(states, dtype=np.float32).astype(np.float64) if states.size > 1 << 22 else states
        lead, error = leads_in_parts(self.rows, self.bias, ids, states, "classes in any state", self.parts)
        won, norms = lead > error, np.linalg.norm(states, axis=1)
        for i in np.flatnonzero(won):
            best = {"margin": float(lead[i]), "norm": float(norms[i]), "witness": states[i]}
            self._record(ids[i], verdict="argmaxable", stage=stage, **best)
        return ids[~won]

    def _record(self, which: int, **values: Any) -> None:
        for name, value in values.items():
            self.found[name][which] = value

    def _key(self) -> str:
        """A cache key for rows and biases, used as a file name."""
        digest = hashlib.sha256(repr((self.rows.shape, self.bias is not None, _FORMAT)).encode())
        for values in (self.rows, self.bias):
            digest.update(b"" if values is None else np.ascontiguousarray(values).data)
        return digest.hexdigest()[:16]

    def _write(self, path: Path) -> None:
        """Save what the exact stages found."""
        table = pd.DataFrame({"class": range(len(self.rows))} | self.found)
        with replacing(path) as temporary:
            table[~table["stage"].isin(["", "guess", "reflection"])].to_parquet(temporary)

    def _read(self, path: Path) -> None:
        """Resume from what an earlier call saved; a damaged file is ignored."""
        with suppress(Exception):  # of many kinds
            for row in pd.read_parquet(path).to_dict("records"):
                self._record(row.pop("class"), **row)
