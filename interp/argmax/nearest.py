"""Which point of the hull of all other classes is nearest to a class? At a distance it is a state that wins, at none a proof that none does.

The nearest point of a hull is found by non-negative least squares (Lawson & Hanson 1974) on few classes, to which those that the answer
puts on the wrong side are added until there are none. Where the distance is none, the class may still be first together with
others: these are the classes that every such state leaves equal, and the same question is asked orthogonally to them, until a state
turns up or nothing is left (facial reduction).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from interp.argmax.problem import Points

_NONE = 1e-9  # a distance in even coordinates that is none
_WEIGHT = 1e-12  # a weight that is none
_ADDED = 16  # classes at a time


@dataclass(frozen=True)
class Found:
    """What is known of a class: a direction [k] that puts it first (alone, or `tied` with others), else a proof that none does.

    `others` [support] and `weights` [support] mix to the class's point. They are given for tied classes, too: they show that these are
    not first alone.
    """

    direction: np.ndarray | None
    tied: bool
    others: np.ndarray
    weights: np.ndarray


def decide(points: Points, which: int, *, near: int | None = None) -> Found:
    """Is there a direction that puts a class first, alone or with others? Raises `RuntimeError` where least squares does not end."""
    ids = np.delete(np.arange(len(points.at)), which)
    apart = points.at[ids] - points.at[which]
    size = max(1.0, float(np.median(np.linalg.norm(apart, axis=1))))
    if points.ray is not None:  # one more point that states look away from; last, and no class
        apart = np.vstack([apart, size * points.ray / np.linalg.norm(points.ray)])
    basis = np.eye(apart.shape[1])
    support, weights = np.empty(0, int), np.empty(0)
    live = np.arange(len(apart))
    while basis.shape[1]:
        inner = apart[live] @ basis
        seen = np.linalg.norm(inner, axis=1) > _NONE * size
        live, inner = live[seen], inner[seen]
        if len(support) and len(apart) > len(ids) and len(ids) not in live[-1:]:
            # what is left equal to the class leaves states no length: mixed otherwise, biases are to spare
            support, weights = _joined(apart, support, weights, np.array([len(ids)]), np.ones(1))
            break
        if not (live < len(ids)).any():
            break
        away, used, mix = _nearest(inner, near, size)
        if away is not None:
            return Found(-(basis @ away), len(support) > 0, *_classes(ids, support, weights))
        held = live[used]
        if len(support):
            support, weights = _joined(apart, support, weights, held, mix)
        else:
            support, weights = held, mix
        if (held >= len(ids)).any():  # biases to spare: it is behind a mixture everywhere
            break
        _, spread, turn = np.linalg.svd(apart[held] @ basis, full_matrices=True)
        basis = basis @ turn[int((spread > _NONE * size).sum()) :].T
    return Found(None, False, *_classes(ids, support, weights))


def _classes(ids: np.ndarray, support: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mixture without what is no class."""
    kept = support < len(ids)
    return ids[support[kept]], weights[kept] / weights[kept].sum() if kept.any() else weights[kept]


def _nearest(apart: np.ndarray, near: int | None, size: float) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The nearest point to 0 of the hull of `apart` [m k], or None for 0 itself; which of them mix to it, and their weights."""
    width = apart.shape[1]
    active = [int(j) for j in np.argsort(np.linalg.norm(apart, axis=1))[: near or 2 * width + 2]]
    known = set(active)
    target = np.zeros(width + 1)
    target[-1] = 1.0
    while True:
        # min |sum u_j a_j|^2 + (1 - sum u_j)^2 has the nearest point's weights, up to a factor
        found, _ = nnls(np.vstack([apart[active].T, np.ones(len(active))]), target, maxiter=50 * len(active))
        mix = found / found.sum()
        kept = mix > _WEIGHT
        point = mix @ apart[active]
        distance = float(np.linalg.norm(point))
        if distance <= _NONE * size:
            return None, np.asarray(active)[kept], mix[kept]
        ahead = apart @ point
        short = np.flatnonzero(ahead < distance * distance * (1 - 1e-9) - 1e-13 * size * distance)
        new = [int(j) for j in short[np.argsort(ahead[short])] if int(j) not in known][:_ADDED]
        if not new:
            return point, np.asarray(active)[kept], mix[kept]
        # all that were asked stay, so that it ends
        active += new
        known |= set(new)


def _joined(
    apart: np.ndarray, support: np.ndarray, weights: np.ndarray, more: np.ndarray, mix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A mixture to 0 of both sets, all weights above 0: `more` mixes to 0 only beside the span of `support`, whose weights mend that."""
    square = np.vstack([apart[support].T, np.ones(len(support))])
    mend = np.linalg.lstsq(square, -np.append(mix @ apart[more], 1.0), rcond=None)[0]
    step = 0.5
    while step > 1e-9 and (weights + step * mend <= 0).any():
        step /= 2
    whole = np.maximum(np.concatenate([weights + step * mend, step * mix]), 0.0)
    return np.concatenate([support, more]), whole / whole.sum()
