"""What is every class's largest margin in the norm's ball? Guesses for all at once, then batches, then one at a time.

The largest margin of a class is max over |z| <= radius of min_j (a_j . z + c_j). By duality it is the minimum of
radius |sum_j w_j a_j| + sum_j w_j c_j over convex weights w: any weights bound the margin from above, and the best ones
give the z that attains it. Batches solve this by accelerated gradient steps for a few rivals of each class, evaluate
all classes at the z found, and add those that are furthest ahead as rivals.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from interp.argmax import verification
from interp.argmax.norm_ball import NormBall, margin_in_ball
from interp.argmax.passes import key_of, leads_in_parts
from interp.files import replacing
from interp.progress import track

_ALL = 4096  # number of classes up to which the largest margin is found exactly for all
_CLEAR = 4.0  # spacings of bfloat16 logits beyond which a margin is clearly resolved in bfloat16
_NEAR = 0.95  # share of the largest margin that is close enough beyond `_ALL` classes
_BITS = 8  # of a bfloat16's significand
_RANK = 1e-10  # share of the largest variance below which rows count as flat in a direction
_TOGETHER = 64  # classes in a batch
_ROUNDS = 10
_ADDED = 64  # rivals added at a time
_STEPS = (100, 100, 100, 100, 400)  # gradient steps in each round; the last number is for all later rounds
_WEIGHT = 1e-7  # weight below which a rival is dropped
_LEVEL = 1e-6  # share of radius times row below which a gap counts as zero: norms are measured to this precision
_SAVED = 30.0  # seconds between saves
_OPEN, _TRIED, _SETTLED = range(3)
Proof = tuple[np.ndarray, np.ndarray]  # which others, and their convex weights
Proofs = Mapping[int, Proof]


@dataclass(frozen=True)
class BallMargins:
    """Margins of classes inside the ball.

    Attributes:
        margin: [class] the lead at the best z found, in logits, verified.
        error: [class] a bound on its rounding error.
        bound: [class] a verified upper bound over all z; infinite where nothing was proven.
        least: [class] length of the shortest z at which the class ties with the best, in radii; NaN if not computed.
        logit: [class] the class's logit at its z.
    """

    margin: np.ndarray
    error: np.ndarray
    bound: np.ndarray
    least: np.ndarray
    logit: np.ndarray

    def columns(self) -> list[np.ndarray]:
        """All of them, in order."""
        return [getattr(self, field.name) for field in fields(self)]


def spacing(logits: np.ndarray, bits: int) -> np.ndarray:
    """The distance between neighbouring numbers with `bits` of significand at each logit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2.0 ** (np.floor(np.log2(np.abs(logits))) - bits + 1)


def margins_in_ball(
    ball: NormBall, *, proofs: Proofs | None = None, exact: bool | None = None, parts: Path | None = None
) -> BallMargins:
    """Find every class's margin inside the ball.

    Args:
        ball: an output layer after a norm.
        proofs: known proofs: convex weights of other classes whose mixture is the class.
        exact: find the largest margin of every class; by default for up to 4,096 classes. Otherwise a margin is one
            that bfloat16 clearly resolves, or at least 95% of the largest, or within rounding of its bound.
        parts: a folder in which finished parts are kept, so that an interrupted call can resume.

    Returns:
        Margins and bounds, both verified in float64.
    """
    count = len(ball.rows)
    exact = count <= _ALL if exact is None else exact
    guess = _guesses(ball)
    found = _guessed(ball, guess, proofs or {}, parts)
    path = None if parts is None else parts / f"ball-{key_of(ball.rows, ball.offsets)}.npz"
    state = _Progress.read(path, found)
    if not exact:
        state.settle(_is_settled(ball, state.found, np.arange(count)))
        single, open_ = ball.rows.astype(np.float32), state.at(_OPEN)
        batches = [open_[i : i + _TOGETHER] for i in range(0, len(open_), _TOGETHER)]
        for part in track(batches, "classes after the norm, in batches", total=len(batches)):
            _take(ball, state.found, part, *_batch(ball, single, part, guess[part].astype(np.float64)))
            settled = _is_settled(ball, state.found, part)
            state.keep(part[settled], part[~settled])
    left = state.at(_OPEN, _TRIED)
    twins = _first_of_equals(ball, left)
    firsts = np.unique(twins)
    for which in track(firsts, "classes after the norm, one at a time", total=len(firsts)):
        one = margin_in_ball(ball, int(which))
        _take(ball, state.found, np.array([which]), one.z[None], [(one.others, one.weights)])
        state.found.least[which] = one.least_norm / ball.radius
        same = left[twins == which]
        for values in state.found.columns():
            values[same] = values[which]
        state.keep(same, left[:0])
    return state.found


@dataclass
class _Progress:
    """Results so far, the stage that each class has reached, and the file that keeps them."""

    found: BallMargins
    stage: np.ndarray
    path: Path | None
    saved: float

    @classmethod
    def read(cls, path: Path | None, found: BallMargins) -> _Progress:
        """Resume from what an earlier call kept; a damaged file is ignored."""
        state = cls(found, np.full(len(found.margin), _OPEN), path, time.monotonic())
        if path is not None and path.is_file():
            with suppress(Exception):  # of many kinds
                held = np.load(path)
                if held["stage"].shape == state.stage.shape:
                    names = [field.name for field in fields(BallMargins)]
                    state = cls(BallMargins(*(held[name] for name in names)), held["stage"], path, time.monotonic())
        return state

    def at(self, *stages: int) -> np.ndarray:
        """The classes at these stages."""
        return np.flatnonzero(np.isin(self.stage, stages))

    def settle(self, which: np.ndarray) -> None:
        """Mark classes [class] as settled."""
        self.stage[which] = _SETTLED

    def keep(self, settled: np.ndarray, tried: np.ndarray) -> None:
        """Record the stage that classes have reached, and save from time to time."""
        self.stage[settled], self.stage[tried] = _SETTLED, _TRIED
        if self.path is not None and time.monotonic() - self.saved > _SAVED:
            arrays: dict[str, Any] = {"stage": self.stage} | vars(self.found)
            with replacing(self.path) as temporary:
                np.savez(temporary, **arrays)
            self.saved = time.monotonic()


def _guessed(ball: NormBall, guess: np.ndarray, proofs: Proofs, parts: Path | None) -> BallMargins:
    """Leads at the guesses, or at the ball's centre where those are larger, and bounds from proofs."""
    count = len(ball.rows)
    margin, error = leads_in_parts(ball.rows, _biases(ball), np.arange(count), guess, "classes after the norm", parts)
    logit = np.einsum("ij,ij->i", ball.rows, guess) + ball.offsets
    highest = np.sort(ball.offsets)[-2:]
    centre = ball.offsets - np.where(ball.offsets == highest[1], highest[0], highest[1])  # 0 if two tie for highest
    better = centre > margin
    found = BallMargins(
        np.where(better, centre, margin),
        error,
        np.full(count, np.inf),
        np.full(count, np.nan),
        np.where(better, ball.offsets, logit),
    )
    for which, (others, weights) in proofs.items():
        found.bound[which] = _bound(ball, which, others, weights)
    return found


def _guesses(ball: NormBall) -> np.ndarray:
    """A z of the ball's radius for each class: the direction of its row after the rows are whitened.

    Float32, and shortened by the rounding error.
    """
    mean = ball.rows.mean(0)
    spread, turn = np.linalg.eigh(ball.rows.T @ ball.rows / len(ball.rows) - np.outer(mean, mean))
    kept = spread > _RANK * max(float(spread[-1]), np.finfo(float).tiny)
    even = (turn[:, kept] / np.sqrt(spread[kept])) @ turn[:, kept].T
    found = np.empty(ball.rows.shape, np.float32)
    for start in range(0, len(found), _ALL):
        part = slice(start, start + _ALL)
        z = (ball.rows[part] - mean) @ even
        found[part] = z * (ball.radius * (1 - 1e-6) / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-30))
    return found


def _take(ball: NormBall, found: BallMargins, ids: np.ndarray, z: np.ndarray, proofs: Sequence[Proof]) -> None:
    """Measure leads and bounds by `verification`, and keep those that improve on what was known."""
    lead, error, _ = verification.leads(ball.rows, _biases(ball), ids, z)
    better = lead > found.margin[ids]
    at = ids[better]
    found.margin[at], found.error[at] = lead[better], error[better]
    found.logit[at] = (ball.rows[at] * z[better]).sum(1) + ball.offsets[at]
    for which, (others, weights) in zip(ids, proofs, strict=True):
        used = weights > 0
        found.bound[which] = min(found.bound[which], _bound(ball, int(which), others[used], weights[used]))


def _biases(ball: NormBall) -> np.ndarray | None:
    return ball.offsets if ball.offsets.any() else None  # without them, verification is twice as fast


def _bound(ball: NormBall, which: int, others: np.ndarray, weights: np.ndarray) -> float:
    """An upper bound on the class's margin in the ball, proven by the weights."""
    apart, spare, doubt = verification.residual(ball.rows, ball.offsets, which, others, weights)
    return (apart + doubt) * ball.radius - spare + doubt if np.isfinite(apart) else np.inf


def _is_settled(ball: NormBall, found: BallMargins, ids: np.ndarray) -> np.ndarray:
    """Is the margin clear, close to the largest, or at its bound up to rounding?"""
    margin, bound = found.margin[ids], found.bound[ids]
    close, clear = margin >= _NEAR * bound, margin >= _CLEAR * spacing(found.logit[ids], _BITS)
    level = bound - margin <= _LEVEL * ball.radius * np.linalg.norm(ball.rows[ids], axis=1)
    return level | ((margin > 0) & (close | clear))


def _first_of_equals(ball: NormBall, ids: np.ndarray) -> np.ndarray:
    """For each class the first of `ids` with the same row and offset: they share all results."""
    whole = np.column_stack([ball.rows[ids], ball.offsets[ids]])
    _, first, group = np.unique(whole, axis=0, return_index=True, return_inverse=True)
    return ids[first[group.reshape(-1)]]


# --- batches ----------------------------------------------------------------------------------------------------------


def _batch(ball: NormBall, single: np.ndarray, ids: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, list[Proof]]:
    """Improve the z [n d_model] of a batch of classes: the best z of each, and the proof of its smallest bound."""
    count, at = len(ball.rows), np.arange(len(ids))
    added = min(_ADDED, count - 1)
    offsets, radius = ball.offsets.astype(np.float32), ball.radius
    best, lead, bound = z.copy(), np.full(len(ids), -np.inf), np.full(len(ids), np.inf)
    rivals, weights = np.zeros((len(ids), 0), int), np.zeros((len(ids), 0), np.float32)
    proofs: list[Proof] = [(rivals[0], weights[0])] * len(ids)
    still = at
    for step in range(_ROUNDS):
        chosen = ids[still]
        logits = z[still].astype(np.float32) @ single.T + offsets
        own = (z[still] * ball.rows[chosen]).sum(1) + ball.offsets[chosen]
        logits[np.arange(len(still)), chosen] = -np.inf
        leads = own - logits.max(1)
        better = leads > lead[still]
        best[still[better]], lead[still[better]] = z[still[better]], leads[better]
        near = (lead[still] > 0) & (lead[still] >= _NEAR * bound[still])
        going = ~near & (lead[still] < _CLEAR * spacing(own, _BITS))
        still, logits, rivals, weights = still[going], logits[going], rivals[going], weights[going]
        if not len(still):
            break
        rivals, weights = _with_new_rivals(logits, rivals, weights, added)
        own_rows, own_offsets = ball.rows[ids[still], None], ball.offsets[ids[still], None]
        apart, spare = own_rows - ball.rows[rivals], own_offsets - ball.offsets[rivals]
        weights = _dual(apart, spare, radius, weights, _STEPS[min(step, len(_STEPS) - 1)])
        exact = weights.astype(np.float64) / weights.sum(1, keepdims=True, dtype=np.float64)
        mixed = np.einsum("nk,nkd->nd", exact, apart)
        length = np.linalg.norm(mixed, axis=1)
        value = radius * length + (exact * spare).sum(1)
        z[still] = mixed * (radius / length.clip(1e-300))[:, None]
        for k in np.flatnonzero(value < bound[still]):
            bound[still[k]], proofs[still[k]] = value[k], (rivals[k], exact[k])
    return best, proofs


def _with_new_rivals(
    logits: np.ndarray, rivals: np.ndarray, weights: np.ndarray, added: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rivals with weight, and the classes now furthest ahead; new ones have weight 0 (at first: even)."""
    kept = int((weights > _WEIGHT).sum(1).max(initial=0))
    top = np.argsort(-weights, axis=1)[:, :kept]
    rivals, weights = np.take_along_axis(rivals, top, 1), np.take_along_axis(weights, top, 1)
    np.put_along_axis(logits, rivals, -np.inf, 1)
    new = np.argpartition(-logits, added - 1, axis=1)[:, :added]
    ahead = np.take_along_axis(logits, new, 1)
    new = np.where(np.isfinite(ahead), new, new[np.arange(len(new)), ahead.argmax(1)][:, None])  # few classes
    share = np.full(new.shape, 0.0 if kept else 1 / added, np.float32)
    return np.concatenate([rivals, new], 1), np.concatenate([weights, share], 1)


def _dual(apart: np.ndarray, spare: np.ndarray, radius: float, weights: Any, steps: int) -> np.ndarray:
    """Convex weights [n rival] with a small radius |weights . apart| + weights . spare.

    Source:
        Beck & Teboulle (2009), A fast iterative shrinkage-thresholding algorithm; restarts: O'Donoghue & Candes (2015).
    """
    unit = float(np.abs(apart).max()) or 1.0
    points = (apart / unit).astype(np.float32)
    gram, offsets = points @ points.transpose(0, 2, 1), (spare / (unit * radius)).astype(np.float32)
    steepest = _largest_curvature(gram)
    ahead: Any = weights
    momentum: Any = np.ones((len(weights), 1), np.float32)
    for _ in range(steps):
        slope = (gram @ ahead[:, :, None])[:, :, 0]
        length = np.sqrt(np.maximum((slope * ahead).sum(1, keepdims=True), 1e-20))
        new = _on_simplex(ahead - (slope + length * offsets) / steepest)
        overshot = ((ahead - new) * (new - weights)).sum(1, keepdims=True) > 0
        momentum = np.where(overshot, np.float32(1), momentum)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - weights)
        weights, momentum = new, following
    return weights


def _largest_curvature(gram: np.ndarray) -> np.ndarray:
    """An upper estimate of Gram matrices' largest eigenvalue [n 1] among directions that keep the weights' sum."""
    centred = gram - gram.mean(2, keepdims=True)
    centred -= centred.mean(1, keepdims=True)
    vector = np.random.default_rng(0).normal(size=(*gram.shape[:2], 1)).astype(np.float32)
    size = np.ones((len(gram), 1, 1), np.float32)
    for _ in range(8):
        vector = centred @ vector
        size = np.linalg.norm(vector, axis=1, keepdims=True).clip(1e-30)
        vector /= size
    return 1.2 * size[:, :, 0]


def _on_simplex(values: np.ndarray) -> np.ndarray:
    """The convex weights nearest to each row. Source: Held, Wolfe & Crowder (1974)."""
    ranked = -np.sort(-values, axis=1)
    level = (np.cumsum(ranked, 1) - 1) / np.arange(1, values.shape[1] + 1, dtype=np.float32)
    count = (ranked > level).sum(1)
    return np.maximum(values - level[np.arange(len(values)), count - 1][:, None], 0)
