"""What does the last norm allow? The same question for hidden states inside the ball that LayerNorm or RMSNorm can produce.

Behind the last norm a hidden state is h = gain * z + offset with |z| <= sqrt(d_model), and with a LayerNorm the entries of z sum to 0. So
class i leads j by a_j . z + c_j, with a_j = P (gain * (w_i - w_j)), P taking out the mean, and c_j = (w_i - w_j) . offset + b_i - b_j. The
shortest z for which all these reach a wanted margin is a least-distance problem (Lawson & Hanson 1974, chapter 23): one
non-negative least squares. A class can be first exactly if the z of margin 0 is shorter than the ball's radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

_ADDED = 16
_ROOTS = 30


@dataclass(frozen=True)
class Ball:
    """Rows and offsets as the last norm's output meets them, [class d_model] and [class], and the ball's radius."""

    rows: np.ndarray
    offsets: np.ndarray
    radius: float

    @classmethod
    def of(cls, rows: np.ndarray, bias: np.ndarray | None, gain: np.ndarray, offset: np.ndarray, centres: bool) -> Ball:
        """Of an output layer behind a norm; `centres`: the norm subtracts the mean over features."""
        seen = rows * gain
        if centres:
            seen = seen - seen.mean(1, keepdims=True)
        constant = rows @ offset + (0.0 if bias is None else bias)
        return cls(seen, constant, float(np.sqrt(rows.shape[1])))


@dataclass(frozen=True)
class Reach:
    """How far a class reaches: the shortest z of margin 0 (infinite: there is none) and the weights that prove it, and the widest margin inside."""

    least: float
    margin: float
    z: np.ndarray
    others: np.ndarray
    weights: np.ndarray


def reach(ball: Ball, which: int) -> Reach:
    """The shortest z [d_model] with which a class is level with the best, and the z inside the ball with which it leads by most.

    Where the first is longer than the radius, or there is none, that lead is below zero.
    """
    ids = np.delete(np.arange(len(ball.rows)), which)
    apart = ball.rows[which] - ball.rows[ids]
    spare = ball.offsets[which] - ball.offsets[ids]
    length = np.linalg.norm(apart, axis=1)
    unit = float(np.median(length)) or 1.0
    active = list(np.argsort(length + np.maximum(spare, 0.0) / ball.radius)[: 2 * apart.shape[1] + 2])
    least, z, mix = _shortest(apart / unit, -spare / unit, active)
    kept = mix > 0
    others, weights = ids[np.asarray(active)[kept]], mix[kept] / max(float(mix.sum()), 1e-300)
    # the shortest z of margin m grows with m, convexly: the widest margin inside the ball is where it has the radius (Newton, between bounds)
    low, high = float(spare.min()), float((spare + ball.radius * length).min())
    inside, margin, wanted = np.zeros(apart.shape[1]), low, (low + high) / 2
    for _ in range(_ROOTS):
        norm, z, mix = _shortest(apart / unit, (wanted - spare) / unit, active)
        for factor in (1.0, ball.radius / norm if norm > 0 else 1.0):  # as it is, and as long as may be
            if np.isfinite(norm) and norm * factor <= ball.radius * (1 + 1e-12):
                lead = float((apart @ (factor * z) + spare).min())
                if lead > margin:
                    inside, margin = factor * z, lead
        low, high = (wanted, high) if norm < ball.radius else (max(low, margin), min(high, wanted))
        if high - low <= 1e-6 * max(abs(high), abs(low)):
            break
        slope = float(mix.sum()) / norm / unit if np.isfinite(norm) and norm > 0 else 0.0
        newton = wanted + (ball.radius - norm) / slope if slope > 0 else np.inf
        if abs(newton - wanted) <= 1e-6 * max(abs(wanted), 1e-12):
            break
        wanted = newton if low < newton < high else (low + high) / 2
    return Reach(least, margin, inside, others, weights)


def _shortest(apart: np.ndarray, wanted: np.ndarray, active: list[int]) -> tuple[float, np.ndarray, np.ndarray]:
    """The shortest z with apart . z >= wanted: its length, z, and the multipliers of `active`, to which what is broken is added; z is the sum of these times `apart`."""
    width = apart.shape[1]
    target = np.zeros(width + 1)
    target[-1] = 1.0
    known = set(active)
    while True:
        size = max(1.0, float(np.abs(wanted[active]).max()))
        matrix = np.vstack([apart[active].T, wanted[active] / size])
        found, _ = nnls(matrix, target, maxiter=50 * len(active))
        left = matrix @ found - target
        if np.linalg.norm(left) <= 1e-9 or left[-1] > -1e-18:  # nothing satisfies them all
            return np.inf, np.zeros(width), found
        z = -left[:-1] / left[-1] * size
        found = -found / left[-1] * size
        ahead = apart @ z - wanted
        broken = np.flatnonzero(ahead < -1e-9 * (size + np.linalg.norm(z)))
        new = [int(j) for j in broken[np.argsort(ahead[broken])] if int(j) not in known][:_ADDED]
        if not new:
            return float(np.linalg.norm(z)), z, found
        active += new
        known |= set(new)
