"""What do shares of a deficit say, in words, and how reliably? NumPy only."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np

from interp.statistics import mean_interval, resampling_weights

_FEWEST = 8  # minimum number of sequences for a verdict
_SLIGHT = 0.1  # nats below which there is nothing to explain
_SLIGHT_SHARE = 0.02  # the same, as a share of the deficit
_MINOR = 0.25  # share of the deficit below which a stage is not named next to a larger one
_JOINT = 0.25  # share of the joint gain of two repairs that neither reaches alone


def verdict(
    shares: np.ndarray,
    deficit: np.ndarray,
    gains: Mapping[frozenset[str], float],
    stages: Sequence[str],
    repairs: Sequence[str],
    *,
    most: np.ndarray | None = None,
    reasons: Mapping[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[str, np.ndarray]:
    """A sentence that names the stages whose share is significantly above a quarter of the deficit.

    It says where two stages cannot be ranked, or where neither repair does anything without the other. Where some
    stages were not tested, shares are intervals, and a stage comes first only if its interval is above all others. If
    the deficit is not significantly above 0.1 nats there is nothing to explain, and with fewer than eight sequences
    there is no verdict.

    Args:
        shares: [sequence stage], nats; their lower bounds.
        deficit: [sequence], nats.
        gains: the gain of every set of repairs, nats.
        stages: the names of the stages.
        repairs: the stages that have a repair.
        most: [sequence stage], the upper bounds of the shares; default: the shares are exact.
        reasons: for stages that were not tested, why.
        resamples: bootstrap samples of the sequences.
        seed: determines these.

    Returns:
        The sentence, and the share of bootstrap samples in which each stage is the largest, whatever the untested ones
        are [stage]; NaN with fewer than eight sequences.
    """
    count, most, reasons = len(shares), shares if most is None else most, reasons or {}
    untested = "".join(f"; {stage} is not testable: {reason}" for stage, reason in reasons.items())
    if count < _FEWEST:
        return f"cannot tell: {count} sequences, and at least {_FEWEST} are needed", np.full(len(stages), np.nan)
    largest = _largest(shares, most, resamples, seed)
    bounds = partial(mean_interval, resamples=resamples, seed=seed)
    total, low, high = map(float, bounds(deficit))
    if not np.isfinite(low):
        return f"cannot tell: the deficit is {total:.2f} nats in every sequence, so it has no interval", largest
    interval = f"{total:.2f} nats ({low:.2f} .. {high:.2f})"
    if high < _SLIGHT:
        return f"no deficit: {interval}", largest
    if low < _SLIGHT:
        return f"cannot tell: the deficit is {interval}, not significantly above {_SLIGHT}", largest
    mean, lows, _ = bounds(shares)
    # a share that is equal in every sequence, while the deficit varies, is a constant of the model (the log of a count)
    lows = np.where(np.ptp(shares, axis=0) == 0, mean, lows)
    named = [int(i) for i in np.argsort(-mean) if lows[i] > _MINOR * total]
    rest = _unexplained(shares, most, total, bounds, stages, {stages[i] for i in named}) + untested
    highs = np.where(np.ptp(most, axis=0) == 0, most.mean(0), bounds(most)[2])
    if untested:
        return _among_intervals(lows, highs, total, stages) + rest, largest
    if not named:
        return (
            f"cannot tell: no share is significantly above a quarter of the deficit of {total:.2f} nats{rest}",
            largest,
        )
    text = f"{', '.join(f'{stages[i]} {mean[i]:.2f}' for i in named)} of {total:.2f} nats"
    if len(named) > 1:
        first, second = named[:2]
        pair = frozenset([stages[first], stages[second]])
        both = gains.get(pair, 0.0) if pair <= set(repairs) else 0.0
        if both > _SLIGHT and all(gains[frozenset([name])] < _JOINT * both for name in pair):
            return f"{text}: both, jointly; not ranked{rest}", largest
        if not bounds(shares[:, first] - shares[:, second])[1] > 0:
            return f"{text}: not ranked{rest}", largest
    return f"{text} (the largest in {largest[named[0]]:.0%} of samples){rest}", largest


def _largest(least: np.ndarray, most: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often the lower bound of a stage is above the upper bounds of all others [stage]."""
    draws = resampling_weights(len(least), resamples=resamples, seed=seed) / len(least)
    low, high = draws @ least, draws @ most
    if np.array_equal(least, most):
        return np.bincount(low.argmax(1), minlength=low.shape[1]) / resamples
    others = np.stack([np.delete(high, i, 1).max(1) for i in range(low.shape[1])], 1)
    return (low > others).mean(0)


def _among_intervals(lows: np.ndarray, highs: np.ndarray, total: float, stages: Sequence[str]) -> str:
    """The stage whose interval is above all others, or those that may come first."""
    first = int(lows.argmax())
    rivals = [i for i in range(len(stages)) if i != first and highs[i] >= lows[first]]
    if lows[first] > _MINOR * total and not rivals:
        return f"{stages[first]} {lows[first]:.2f} .. {highs[first]:.2f} of {total:.2f} nats"
    able = [i for i in (first, *rivals) if highs[i] > _MINOR * total]
    if not able:
        return f"cannot tell: no share is significantly above a quarter of the deficit of {total:.2f} nats"
    between = ", ".join(f"{stages[i]} {max(0.0, lows[i]):.2f} .. {highs[i]:.2f}" for i in able)
    return f"cannot tell: {' or '.join(stages[i] for i in able)} ({between} of {total:.2f} nats)"


def _unexplained(
    shares: np.ndarray,
    most: np.ndarray,
    total: float,
    bounds: Callable[[np.ndarray], np.ndarray],
    stages: Sequence[str],
    named: Collection[str],
) -> str:
    """What all repairs together leave, or gain beyond the deficit, where that is more than slight."""
    if "unexplained" not in stages or "unexplained" in named:
        return ""
    at = list(stages).index("unexplained")
    mean, low, _ = map(float, bounds(shares[:, at]))
    high = float(bounds(most[:, at])[2])
    slight = max(_SLIGHT, _SLIGHT_SHARE * total)
    if low > slight:
        return f"; {mean:.2f} nats ({low:.2f} .. {high:.2f}) are left unexplained"
    if high < -slight:
        return f"; repairs gain {-mean:.2f} nats ({-high:.2f} .. {-low:.2f}) more than the deficit"
    return ""
