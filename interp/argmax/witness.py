"""States that may put a class first: guesses that cost one product, and guesses that are reflected until they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from interp.argmax.problem import Points

_ROUNDS = 40  # of reflections
_TOGETHER = 512  # classes that are reflected together


def guesses(
    given: Callable[[], Points], rows: np.ndarray, bias: np.ndarray | None, left: Callable[[], np.ndarray]
) -> Iterator[np.ndarray]:
    """States [id d_model] for the classes that are `left` each time, the likeliest to put them first before others.

    A class's point taken as a direction (for given rows: the inverse covariance of the rows times the centred row), the centred
    row, the row itself. With biases, the winner depends on the length of a state: the same at several.
    """
    points = given()
    if bias is None:
        yield points.states(points.at[left()])
        yield rows[left()] - rows.mean(0)
        yield rows[left()]
        return
    inner = Points.of(rows, None)
    span = float(np.ptp(bias)) or 1.0
    yield points.states(points.at[left()])
    for times in (1e3, 10.0, 1.0):
        state = inner.states(inner.at[left()])
        own = np.abs((state * (rows[left()] - rows.mean(0))).sum(1, keepdims=True))
        yield state * (times * span / np.where(own > 0, own, 1.0))
    yield np.zeros((len(left()), rows.shape[1]))


def reflected(points: Points, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Classes of `ids` and directions [class k] that seem to put them first, after reflections (Grivas et al. 2022) in even coordinates.

    A direction that puts another class ahead is reflected in the plane on which the two are equal; one that is no state, in the
    plane of the forbidden half. That none is found says nothing.
    """
    single = points.at.astype(np.float32)
    for start in range(0, len(ids), _TOGETHER):
        chosen = ids[start : start + _TOGETHER]
        own = single[chosen]
        v = own.copy()
        left = np.arange(len(chosen))
        for _ in range(_ROUNDS):
            scores = v[left] @ single.T
            mine = (own[left] * v[left]).sum(1)
            scores[np.arange(len(left)), chosen[left]] = -np.inf
            rival = scores.argmax(1)
            allowed = np.ones(len(left), bool) if points.ray is None else v[left] @ points.ray.astype(np.float32) <= 0
            done = (mine > scores[np.arange(len(left)), rival]) & allowed
            if done.any():
                yield chosen[left[done]], v[left[done]].astype(np.float64)
            if done.all():
                break
            left, rival, allowed = left[~done], rival[~done], allowed[~done]
            plane = own[left] - single[rival]
            if points.ray is not None:
                plane = np.where(allowed[:, None], plane, -points.ray.astype(np.float32))
            along = (plane * v[left]).sum(1, keepdims=True) / (plane * plane).sum(1, keepdims=True).clip(1e-30)
            # where the two are equal, a reflection would do nothing: push instead
            v[left] -= (2 * along - 1e-3 * (along > -1e-6)) * plane
            v[left] /= np.linalg.norm(v[left], axis=1, keepdims=True).clip(1e-30)
