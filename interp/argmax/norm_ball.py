"""What does the last norm allow? The same question inside the ball that LayerNorm or RMSNorm can produce.

After the last norm a hidden state is h = gain * z + offset with |z| <= sqrt(d_model), and with a LayerNorm the entries
of z sum to 0. So class i leads j by a_j . z + c_j, with a_j = P (gain * (w_i - w_j)), where P subtracts the mean, and
c_j = (w_i - w_j) . offset + b_i - b_j. Finding the shortest z at which all of these reach a given margin is a
least-distance problem: one non-negative least squares. A class can be first if and only if the z of margin 0 is shorter
than the radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from interp.argmax.points import most_violated, output_layer
from interp.errors import InterpError
from interp.final_norm import last_norm
from interp.identities import require

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ADDED = 16  # constraints added at a time
_STEPS = 30  # of the search for the largest margin
_MEASURED = 1e-5  # share of the largest gain below which a measured offset counts as zero


@dataclass(frozen=True)
class NormBall:
    """An output layer as a function of the last norm's normalized state z.

    Attributes:
        rows: [class d_model], with the gain folded in, and centred if the norm subtracts the mean.
        offsets: [class].
        radius: the radius of the ball that contains z.
    """

    rows: np.ndarray
    offsets: np.ndarray
    radius: float

    @classmethod
    def of_model(cls, model: TransformerBridge) -> NormBall | None:
        """Measure a model's last norm; None if it is not LayerNorm or RMSNorm, or not what the unembedding reads."""
        try:
            require(model, "readout")
            gain, offset, centres = last_norm(model)
        except InterpError:
            return None
        rows, bias = output_layer(model)
        scale, shift = gain.cpu().double().numpy(), offset.cpu().double().numpy()
        shift = np.where(np.abs(shift) > _MEASURED * float(np.abs(scale).max()), shift, 0.0)
        scaled = rows * scale
        if centres:
            scaled = scaled - scaled.mean(1, keepdims=True)
        return cls(scaled, rows @ shift + (0.0 if bias is None else bias), float(np.sqrt(rows.shape[1])))


@dataclass(frozen=True)
class BallMargin:
    """A class's margin inside the ball.

    Attributes:
        least_norm: length of the shortest z of margin 0; infinite if there is none.
        margin: the largest margin inside the ball, negative if the class is never first.
        z: [d_model], where the margin is largest.
        others: [support] classes.
        weights: [support], the convex weights that prove `least_norm`.
    """

    least_norm: float
    margin: float
    z: np.ndarray
    others: np.ndarray
    weights: np.ndarray


def margin_in_ball(ball: NormBall, which: int) -> BallMargin:
    """Find the shortest z at which a class ties with the best, and the z in the ball at which its margin is largest.

    Args:
        ball: an output layer after a norm.
        which: the class.

    Returns:
        Both; if the first is longer than the radius, or does not exist, the largest margin is negative.

    Source:
        Least-distance programming: Lawson & Hanson (1974), Solving Least Squares Problems, chapter 23.
    """
    ids = np.delete(np.arange(len(ball.rows)), which)
    apart = ball.rows[which] - ball.rows[ids]
    spare = ball.offsets[which] - ball.offsets[ids]
    length = np.linalg.norm(apart, axis=1)
    unit = float(np.median(length)) or 1.0
    active = np.argsort(length + np.maximum(spare, 0.0) / ball.radius)[: 2 * apart.shape[1] + 2].tolist()
    least, z, mix = _shortest(apart / unit, -spare / unit, active)
    kept = mix > 0
    others, weights = ids[np.asarray(active)[kept]], mix[kept] / max(float(mix.sum()), 1e-300)
    # the length of the shortest z of margin m is convex and increasing in m: the largest margin inside the ball is
    # where it equals the radius (Newton, between bounds)
    low, high = float(spare.min()), float((spare + ball.radius * length).min())
    inside, margin, wanted = np.zeros(apart.shape[1]), low, (low + high) / 2
    for _ in range(_STEPS):
        norm, z, mix = _shortest(apart / unit, (wanted - spare) / unit, active)
        for factor in (1.0, ball.radius / norm if norm > 0 else 1.0):  # as found, and stretched to the radius
            if np.isfinite(norm) and norm * factor <= ball.radius * (1 + 1e-12):
                lead = float((apart @ (factor * z) + spare).min())
                if lead > margin:
                    inside, margin = factor * z, lead
        low, high = (wanted, high) if norm < ball.radius else (max(low, margin), min(high, wanted))
        slope = float(mix.sum()) / norm / unit if np.isfinite(norm) and norm > 0 else 0.0
        newton = wanted + (ball.radius - norm) / slope if slope > 0 else np.inf
        if high - low <= 1e-6 * max(abs(high), abs(low)) or abs(newton - wanted) <= 1e-6 * max(abs(wanted), 1e-12):
            break
        wanted = newton if low < newton < high else (low + high) / 2
    return BallMargin(least, margin, inside, others, weights)


def _shortest(apart: np.ndarray, wanted: np.ndarray, active: list[int]) -> tuple[float, np.ndarray, np.ndarray]:
    """The shortest z with apart . z >= wanted: its length, z, and the multipliers of `active`.

    Violated constraints are added to `active`; z is the sum of the multipliers times `apart`.
    """
    width = apart.shape[1]
    target = np.eye(width + 1)[-1]
    while True:
        size = max(1.0, float(np.abs(wanted[active]).max()))
        matrix = np.vstack([apart[active].T, wanted[active] / size])
        found, _ = nnls(matrix, target, maxiter=50 * len(active))
        left = matrix @ found - target
        if np.linalg.norm(left) <= 1e-9 or left[-1] > -1e-18:  # nothing satisfies them all
            return np.inf, np.zeros(width), found
        z = -left[:-1] / left[-1] * size
        new = most_violated(apart @ z - wanted, -1e-9 * (size + float(np.linalg.norm(z))), active, _ADDED)
        if not new:
            return float(np.linalg.norm(z)), z, -found / left[-1] * size
        active += new
