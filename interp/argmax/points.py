"""Which coordinates leave only what matters? The classes of an output layer as points in whitened coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.linalg

from interp.errors import InterpError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ENDLESS = 1e-9  # smallest scale relative to a state's norm, in whitened units
_RANK = 1e-11  # share of the largest spread below which points count as flat in a direction


def checked(weights: Any, bias: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert an output layer to float64.

    Args:
        weights: [class d_model], an array, a tensor or nested lists.
        bias: [class], or None.

    Returns:
        The rows [class d_model] and the biases [class], or None for no biases.

    Raises:
        InterpError: not numbers, not finite, not two-dimensional, fewer than two classes, or biases of another length.
    """
    rows = _numbers(weights, "the matrix")
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
        wanted = "it must be [classes, dimensions], with at least two classes and one dimension"
        raise InterpError(f"the matrix has shape {rows.shape}: {wanted}")
    offsets = None if bias is None else _numbers(bias, "the bias")
    if offsets is not None and offsets.shape != rows.shape[:1]:
        raise InterpError(f"the bias has shape {offsets.shape}: {rows.shape[0]} classes need ({rows.shape[0]},)")
    return rows, offsets


def _numbers(values: Any, what: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor; bfloat16 has no NumPy
        if values.is_complex() or values.is_sparse:
            raise InterpError(f"{what} is a complex or sparse tensor: real numbers, stored one by one, are needed")
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InterpError(f"{what} has rows of different lengths: one array of numbers is needed") from error
    if array.dtype.kind not in "fiu":
        raise InterpError(f"{what} holds {array.dtype}: numbers are needed")
    array = array.astype(np.float64) + 0.0  # -0.0 is 0.0
    if not np.isfinite(array).all():
        raise InterpError(f"{what} holds NaN or infinity: {int((~np.isfinite(array)).sum())} values are not finite")
    return array


def output_layer(model: TransformerBridge) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a model's unembedding as it is stored.

    Args:
        model: any loaded model.

    Returns:
        Rows [class d_model] and biases [class] in float64; None if there are no biases or all are zero.
    """
    head = model.original_model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    rows = head.weight.detach().cpu().double().numpy()
    return rows, bias.detach().cpu().double().numpy() if bias is not None and bool(bias.detach().any()) else None


def groups(rows: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Find classes with equal rows and biases.

    Args:
        rows: [class d_model], without negative zeros.
        bias: [class], or None.

    Returns:
        The first class of each group [group], in order, and the group of every class [class].
    """
    whole = rows if bias is None else np.column_stack([rows, bias])
    group = pd.factorize(np.array([row.tobytes() for row in whole], dtype=object))[0]
    return np.unique(group, return_index=True)[1], group


def most_violated(values: np.ndarray, bound: float, active: Sequence[int], limit: int) -> list[int]:
    """Choose the constraints to add to an active set.

    Args:
        values: [constraint], required to be at least `bound`.
        bound: see `values`.
        active: constraints that are already in the set.
        limit: the largest number to add.

    Returns:
        Violated constraints that are not active, worst first.
    """
    violated = np.flatnonzero(values < bound)
    ranked = violated[np.argsort(values[violated])]
    return ranked[~np.isin(ranked, active)][:limit].tolist()


@dataclass(frozen=True)
class Solution:
    """What is known about a class: a direction that puts it first, a proof that it is never first alone, or both.

    Attributes:
        direction: [k], or None if there is none.
        others: [support] classes whose mixture is the class's point, which proves that it is never first alone.
        weights: [support] the convex weights of the mixture.
    """

    direction: np.ndarray | None
    others: np.ndarray
    weights: np.ndarray

    @classmethod
    def of_mixture(
        cls, ids: np.ndarray, support: np.ndarray, weights: np.ndarray, direction: np.ndarray | None = None
    ) -> Solution:
        """Take a mixture of the classes `ids`; entries of `support` beyond them are not classes and are dropped."""
        kept = support < len(ids)
        weights = weights[kept]
        return cls(direction, ids[support[kept]], weights / weights.sum() if len(weights) else weights)


@dataclass(frozen=True)
class Points:
    """Classes as points in whitened coordinates: scaling, shifting or rotating a matrix changes nothing here.

    A direction v [k] puts class i ahead of j by (at_i - at_j) . v; `states` converts it to a hidden state. With biases,
    a class's bias is one more coordinate, and only half of the directions are states: those with v . ray <= 0.

    Attributes:
        at: [class k].
        ray: [k], or None if all directions are states.
    """

    at: np.ndarray
    ray: np.ndarray | None
    _back: np.ndarray
    _free: np.ndarray | None
    _unit: float | None
    _columns: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, bias: np.ndarray | None) -> Points:
        """Place classes in whitened coordinates.

        Args:
            rows: [class d_model].
            bias: [class], not all equal, or None. No two classes may agree in both.
        """
        spreads = rows.std(0)
        # powers of two, so that nothing is rounded: columns of very different scales count equally
        columns = 2.0 ** np.round(np.log2(np.where(spreads > 0, spreads, 1.0)))
        whole, unit = rows / columns, None
        if bias is not None:
            bias = bias - bias[0]
            unit = (float(np.sqrt(whole.var(0).mean())) or 1.0) / float(bias.std())
            whole = np.column_stack([whole, unit * bias])
        centred = whole - whole.mean(0)
        triangle = scipy.linalg.qr(centred, mode="r", check_finite=False)[0][: centred.shape[1]]
        _, size, turn = np.linalg.svd(triangle, full_matrices=False)
        kept = turn[size > _RANK * max(float(size[0]), np.finfo(float).tiny)]
        back = kept.T / size[: len(kept)] * np.sqrt(len(rows))
        ray = free = None
        if unit is not None:
            free = np.eye(whole.shape[1])[-1] - kept.T @ kept[:, -1]
            if np.linalg.norm(free) < 1e-6:  # otherwise biases are a function of rows, and no direction is forbidden
                free, ray = None, -back[-1]
        return cls(centred @ back, ray, back, free, unit, columns)

    def differences(self, which: int) -> tuple[np.ndarray, np.ndarray]:
        """Subtract a class's point from all others: their ids [other] and the differences [other k]."""
        ids = np.delete(np.arange(len(self.at)), which)
        return ids, self.at[ids] - self.at[which]

    def states(self, directions: np.ndarray) -> np.ndarray:
        """Convert directions [n k] to hidden states [n d_model], of norm 1 if there are no biases."""
        found = directions @ self._back.T
        if self._unit is None:
            found = found / self._columns
            size = np.linalg.norm(found, axis=1, keepdims=True)
            return found / np.where(size > 0, size, 1.0)
        if self._free is not None:
            size = np.linalg.norm(found, axis=1)
            found = found + ((size - found[:, -1]) / self._free[-1])[:, None] * self._free
        # at the boundary of the allowed half a state is infinitely long; make it so long that biases hardly matter
        longest = np.linalg.norm(found[:, :-1], axis=1) * self._unit * _ENDLESS
        scale = np.maximum(self._unit * found[:, -1], np.where(longest > 0, longest, 1.0))
        return found[:, :-1] / self._columns / scale[:, None]
