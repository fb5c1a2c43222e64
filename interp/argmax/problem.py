"""What is asked: rows and biases of an output layer, and the same classes as points whose shape is all that counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from interp.errors import InterpError

_ENDLESS = 1e-9  # of a state's norm, in even units: the least scale beside it
_RANK = 1e-11  # of the largest spread, below which points do not spread in a direction


def checked(weights: Any, bias: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows [class d_model] and biases [class] in float64, or None for no biases.

    Raises `InterpError` for anything that is no such matrix: not numbers, not finite, not two-dimensional, fewer than two classes,
    biases of another length.
    """
    rows = _numbers(weights, "the matrix")
    if rows.ndim != 2:
        raise InterpError(f"the matrix has shape {rows.shape}: it must be [classes, dimensions]")
    if rows.shape[0] < 2 or rows.shape[1] < 1:
        raise InterpError(f"the matrix has shape {rows.shape}: at least two classes and one dimension are needed")
    if bias is None:
        return rows, None
    offsets = _numbers(bias, "the bias")
    if offsets.shape != rows.shape[:1]:
        raise InterpError(f"the bias has shape {offsets.shape}: {rows.shape[0]} classes need ({rows.shape[0]},)")
    return rows, offsets


def _numbers(values: Any, what: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor; bfloat16 has no NumPy
        if values.is_complex() or values.is_sparse:
            raise InterpError(f"{what} is a complex or sparse tensor: real numbers, stored one by one, are needed")
        values = values.detach().cpu().double().numpy()
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise InterpError(f"{what} has rows of different lengths: one array of numbers is needed") from error
    if found.dtype.kind not in "fiu":
        raise InterpError(f"{what} holds {found.dtype}: numbers are needed")
    found = found.astype(np.float64) + 0.0  # -0.0 is 0.0
    if not np.isfinite(found).all():
        raise InterpError(f"{what} holds NaN or infinity: {int((~np.isfinite(found)).sum())} values are no numbers")
    return found


def groups(rows: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The first class of each set of equal rows and biases [group], and the group of every class [class]."""
    whole = np.ascontiguousarray(rows if bias is None else np.column_stack([rows, bias]))
    as_bytes = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).ravel()
    _, first, of = np.unique(as_bytes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    return first[order], rank[of.ravel()]


@dataclass(frozen=True)
class Points:
    """Classes as points in coordinates of even spread: scaling, shifting or rotating a matrix changes nothing here.

    `at` [class k]. A direction v [k] puts class i ahead of j by (at_i - at_j) . v, and is a state by `state`. With biases, a class's bias
    is one more coordinate, and only half of the directions are states: those with v . `ray` <= 0. No `ray` [k]: all are.
    """

    at: np.ndarray
    ray: np.ndarray | None
    _back: np.ndarray
    _free: np.ndarray | None
    _bias: np.ndarray | None
    _unit: float
    _wide: bool
    _columns: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, bias: np.ndarray | None) -> Points:
        """Points of classes [class d_model], [class], no two of them the same."""
        spreads = rows.std(0)
        # powers of two, so that nothing is rounded: columns of very different size count alike
        columns = 2.0 ** np.round(np.log2(np.where(spreads > 0, spreads, 1.0)))
        rows = rows / columns
        whole, unit = rows, 1.0
        if bias is not None:
            bias = bias - bias[0]
            spread = float(bias.std())
            unit = (float(np.sqrt(rows.var(0).mean())) or 1.0) / spread if spread > 0 else 0.0
            whole = np.column_stack([rows, unit * bias])
        centred = whole - whole.mean(0)
        triangle = scipy.linalg.qr(centred, mode="r", check_finite=False)[0][: centred.shape[1]]
        _, size, turn = np.linalg.svd(triangle, full_matrices=False)
        kept = turn[size > _RANK * max(float(size[0]), np.finfo(float).tiny)]
        back = kept.T / size[: len(kept)] * np.sqrt(len(rows))
        ray = free = None
        if bias is not None and unit > 0:
            last = np.zeros(whole.shape[1])
            last[-1] = 1.0
            free = last - kept.T @ (kept @ last)
            if np.linalg.norm(free) < 1e-6:  # else biases are a function of rows, and no direction is forbidden
                free, ray = None, -back[-1]
        return cls(centred @ back, ray, back, free, bias if unit > 0 else None, unit, bias is not None, columns)

    def states(self, directions: np.ndarray) -> np.ndarray:
        """[n d_model]: the states that directions [n k] stand for, of norm 1 where there are no biases that count."""
        found = directions @ self._back.T
        if self._bias is None:
            found = (found[:, :-1] if self._wide else found) / self._columns
            size = np.linalg.norm(found, axis=1, keepdims=True)
            return found / np.where(size > 0, size, 1.0)
        if self._free is not None:
            size = np.linalg.norm(found, axis=1)
            found = found + ((size - found[:, -1]) / self._free[-1])[:, None] * self._free
        scale = self._unit * found[:, -1]
        # at the edge of what is allowed a state is endless; it is made so long that biases hardly count
        longest = np.linalg.norm(found[:, :-1], axis=1) * self._unit * _ENDLESS
        scale = np.maximum(scale, np.where(longest > 0, longest, 1.0))
        return found[:, :-1] / self._columns / scale[:, None]
