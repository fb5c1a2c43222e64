"""Which states put a class first? Guesses are reflected until they do, for many classes at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from interp.argmax.points import Points

_ROUNDS = 40  # of reflections
_TOGETHER = 512  # classes that are reflected together


def reflections(points: Points, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Search for directions that put classes first, by reflections in whitened coordinates.

    A direction that puts another class ahead is reflected in the plane on which the two are equal; one that is not a
    state is reflected in the boundary plane of the forbidden half. Finding none proves nothing.

    Args:
        points: all classes.
        ids: [class], the classes to search for.

    Yields:
        Some of `ids` and directions [class k] that, in single precision, put them first.

    Source:
        Braid reflection, Grivas et al. (2022), https://arxiv.org/abs/2203.06462.
    """
    single = points.at.astype(np.float32)
    ray = None if points.ray is None else points.ray.astype(np.float32)
    for start in range(0, len(ids), _TOGETHER):
        chosen = ids[start : start + _TOGETHER]
        own = single[chosen]
        v = own.copy()
        left = np.arange(len(chosen))
        for _ in range(_ROUNDS):
            scores = v[left] @ single.T
            scores[np.arange(len(left)), chosen[left]] = -np.inf
            rival = scores.argmax(1)
            allowed = np.ones(len(left), bool) if ray is None else v[left] @ ray <= 0
            done = ((own[left] * v[left]).sum(1) > scores[np.arange(len(left)), rival]) & allowed
            if done.any():
                yield chosen[left[done]], v[left[done]].astype(np.float64)
            if done.all():
                break
            left, rival, allowed = left[~done], rival[~done], allowed[~done]
            plane = own[left] - single[rival]
            if ray is not None:
                plane = np.where(allowed[:, None], plane, -ray)
            along = (plane * v[left]).sum(1, keepdims=True) / (plane * plane).sum(1, keepdims=True).clip(1e-30)
            # if the two are equal, a reflection would do nothing: push instead
            v[left] -= (2 * along - 1e-3 * (along > -1e-6)) * plane
            v[left] /= np.linalg.norm(v[left], axis=1, keepdims=True).clip(1e-30)
