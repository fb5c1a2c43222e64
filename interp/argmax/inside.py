"""Classes deep among many dimensions: weights that mix all others to the class, by maximum entropy.

The sum over j of exp(v . (at_j - at_i)) has a least value exactly where class i is inside the hull of the others; there the terms are weights, all above
zero, that mix them to i (the dual of the maximum-entropy distribution with a given mean). Newton's method finds it in a few steps
of one d x d system each, where an active set would take as many steps as there are dimensions. Outside, v leads away without end and
is itself a direction that puts class i first: then nothing is returned.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

_STEPS = 60
_FAR = 60.0  # an exponent at which the class is taken for one that is not inside
_MIXED = 5  # classes per dimension that are mixed
_CLOSE = 1e-13
_LEAST = 1e-6  # of an even weight


def mixture(apart: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """Which of `apart` [m k] mix to 0, and their weights, all above 0; None where it is not surely inside them.

    A sample of them is enough where it holds 0: the nearest, and some drawn at random.
    """
    count, width = apart.shape
    size = np.linalg.norm(apart, axis=1)
    chosen = np.argsort(size)[: 2 * width]
    rest = np.setdiff1d(np.arange(count), chosen)
    drawn = np.random.default_rng(seed).permutation(rest)[: (_MIXED - 2) * width]
    chosen = np.concatenate([chosen, drawn])
    points = apart[chosen]
    if len(points) <= width:
        return None
    v = np.zeros(width)
    value, weights = _exponents(points, v)
    for _ in range(_STEPS):
        mean = weights @ points
        if np.linalg.norm(mean) <= _CLOSE * float(size.mean()):
            return _surely(chosen, weights)
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
        if value < -_FAR:
            return None
    # rounding is mended by the smallest change of weights
    mend = np.linalg.lstsq(np.vstack([points.T, np.ones(len(points))]), -np.append(weights @ points, 0.0), rcond=None)[
        0
    ]
    weights = weights + mend
    return _surely(chosen, weights / weights.sum())


def _surely(chosen: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """A mixture whose weights are well above 0: on a face, those of what lies off it come near 0, and are never it."""
    return (chosen, weights) if (weights > _LEAST / len(weights)).all() else None


def _exponents(points: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    """log of the mean of the exponentials, and their shares."""
    scores = points @ v
    top = float(scores.max())
    terms = np.exp(scores - top)
    return top + float(np.log(terms.mean())), terms / terms.sum()
