"""Is a class deep inside the convex hull of many others, in many dimensions? Proofs by maximum-entropy weights.

The sum over j of exp(v . (at_j - at_i)) has a minimum exactly if class i is inside the hull of the others; at the
minimum the terms are positive weights whose mixture is class i (the dual of the maximum-entropy distribution with a
given mean). Newton's method finds it in a few steps of one d x d system each, whereas an active set would take as many
steps as there are dimensions. Outside, v grows without bound and is itself a direction that puts class i first.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.special import logsumexp, softmax

from interp.argmax.points import Points, Solution

_STEPS = 60
_DIVERGED = 60.0  # exponent beyond which the class is taken to be outside
_MIXED = 5  # classes per dimension in the mixture
_CLOSE = 1e-13
_SMALLEST = 1e-6  # relative to an even weight


def solve(points: Points, which: int) -> Solution | None:
    """Prove that a class is inside the hull of the others; None if it is not clearly inside."""
    ids, apart = points.differences(which)
    found = convex_weights(apart if points.ray is None else np.vstack([apart, points.ray]))
    return None if found is None else Solution.of_mixture(ids, *found)


def convex_weights(apart: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """Find convex weights whose mixture of points is 0.

    A sample of the points, the nearest ones and some drawn at random, is enough if its hull contains 0.

    Args:
        apart: [m k] points.
        seed: decides the sample.

    Returns:
        Which points are mixed [support], and their weights [support], all positive; None if 0 is not clearly inside the
        hull: if it is on a face, the weights of points off the face approach 0 without reaching it.
    """
    width = apart.shape[1]
    size = np.linalg.norm(apart, axis=1)
    nearest, rest = np.split(np.argsort(size), [2 * width])
    drawn = np.random.default_rng(seed).permutation(np.sort(rest))[: (_MIXED - 2) * width]
    chosen = np.concatenate([nearest, drawn])
    points = apart[chosen]
    if len(points) <= width:
        return None
    v = np.zeros(width)
    value, weights = _exponents(points, v)
    for _ in range(_STEPS):
        mean = weights @ points
        if np.linalg.norm(mean) <= _CLOSE * float(size.mean()):
            break
        spread = (points * weights[:, None]).T @ points - np.outer(mean, mean)
        try:
            step = scipy.linalg.solve(spread + 1e-14 * np.trace(spread) * np.eye(width), -mean, assume_a="pos")
        except (np.linalg.LinAlgError, ValueError):
            return None
        slope, length = float(mean @ step), 1.0
        while length > 1e-6:
            new, new_weights = _exponents(points, v + length * step)
            if new <= value + 1e-4 * length * slope or abs(slope) < 1e-12:
                break
            length /= 2
        v, value, weights = v + length * step, new, new_weights
        if value < -_DIVERGED:
            return None
    else:  # the smallest change of weights that corrects rounding
        square = np.vstack([points.T, np.ones(len(points))])
        weights = weights + np.linalg.lstsq(square, -np.append(weights @ points, 0.0), rcond=None)[0]
        weights = weights / weights.sum()
    return (chosen, weights) if (weights > _SMALLEST / len(weights)).all() else None


def _exponents(points: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    """The log of the mean of exp(points . v), and each point's share of it."""
    scores = points @ v
    return float(logsumexp(scores) - np.log(len(scores))), softmax(scores)
