"""Which point of the hull of all other classes is nearest to a class? A positive distance gives a state, 0 a proof.

The minimum-norm point is found by non-negative least squares on a few classes; classes that the answer puts on the
wrong side are added until there are none. If the distance is zero, the class may still be first together with others:
every such state ties it with the classes of the mixture, so the question is asked again orthogonally to them, until a
state is found or nothing is left (facial reduction).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from interp.argmax.points import Points, Solution, most_violated

_NONE = 1e-9  # a distance in whitened coordinates that counts as zero
_WEIGHT = 1e-12  # a weight that counts as zero
_ADDED = 16  # classes added to the active set at a time


def solve(points: Points, which: int, *, near: int | None = None) -> Solution:
    """Decide whether some direction puts a class first, alone or with others.

    Args:
        points: all classes.
        which: the class.
        near: number of nearest classes in the initial active set; None: two more than twice the number of dimensions.

    Returns:
        A direction, or the convex weights that prove that none exists.

    Raises:
        RuntimeError: least squares does not converge.

    Source:
        Lawson & Hanson (1974), Solving Least Squares Problems.
    """
    ids, apart = points.differences(which)
    size = max(1.0, float(np.median(np.linalg.norm(apart, axis=1))))
    if points.ray is not None:  # one more point, not a class, that states must point away from; the last one
        apart = np.vstack([apart, size * points.ray / np.linalg.norm(points.ray)])
    basis = np.eye(apart.shape[1])
    support, weights = np.empty(0, int), np.empty(0)
    live = np.arange(len(apart))
    while basis.shape[1]:
        inner = apart[live] @ basis
        seen = np.linalg.norm(inner, axis=1) > _NONE * size
        live, inner = live[seen], inner[seen]
        if len(support) and len(apart) > len(ids) and len(ids) not in live[-1:]:
            # the ray is in the span of the tied classes, so no state of finite length is left: another mixture has a
            # higher bias than the class
            support, weights = _joined(apart, support, weights, np.array([len(ids)]), np.ones(1))
            break
        if not (live < len(ids)).any():
            break
        away, used, mix = _nearest(inner, near, size)
        if away is not None:
            return Solution.of_mixture(ids, support, weights, -(basis @ away))
        used = live[used]
        support, weights = _joined(apart, support, weights, used, mix)
        if (used >= len(ids)).any():  # the mixture's bias exceeds the class's own: the class is behind it everywhere
            break
        _, spread, turn = np.linalg.svd(apart[used] @ basis, full_matrices=True)
        basis = basis @ turn[int((spread > _NONE * size).sum()) :].T
    return Solution.of_mixture(ids, support, weights)


def _nearest(apart: np.ndarray, near: int | None, size: float) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The point nearest to 0 in the hull of `apart` [m k], or None for 0 itself; its support, and the weights."""
    width = apart.shape[1]
    active = np.argsort(np.linalg.norm(apart, axis=1))[: near or 2 * width + 2].tolist()
    while True:
        # min |sum u_j a_j|^2 + (1 - sum u_j)^2 has the nearest point's weights, up to a factor
        square = np.vstack([apart[active].T, np.ones(len(active))])
        found, _ = nnls(square, np.eye(width + 1)[-1], maxiter=50 * len(active))
        mix = found / found.sum()
        kept = mix > _WEIGHT
        point = mix @ apart[active]
        distance = float(np.linalg.norm(point))
        is_zero = distance <= _NONE * size
        bound = distance * distance * (1 - 1e-9) - 1e-13 * size * distance
        new = [] if is_zero else most_violated(apart @ point, bound, active, _ADDED)
        if not new:
            return None if is_zero else point, np.asarray(active)[kept], mix[kept]
        active += new  # none is ever removed, so this terminates


def _joined(
    apart: np.ndarray, support: np.ndarray, weights: np.ndarray, more: np.ndarray, mix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A mixture of both sets that is 0, all weights positive: `more` mixes to 0 modulo the span of `support`."""
    if not len(support):
        return more, mix
    square = np.vstack([apart[support].T, np.ones(len(support))])
    correction = np.linalg.lstsq(square, -np.append(mix @ apart[more], 1.0), rcond=None)[0]
    step = 0.5
    while step > 1e-9 and (weights + step * correction <= 0).any():
        step /= 2
    whole = np.maximum(np.concatenate([weights + step * correction, step * mix]), 0.0)
    return np.concatenate([support, more]), whole / whole.sum()
