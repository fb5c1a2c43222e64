"""What do shares of a deficit say, in words, and how surely? NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_FEW = 8  # sequences below which nothing is said
_SLIGHT = 0.1  # nats below which there is nothing to explain
_MINOR = 0.25  # share of the deficit below which a stage is not named beside a larger one
_JOINT = 0.25  # of what two repairs gain together, that neither reaches alone


def verdict(
    shares: np.ndarray,
    deficit: np.ndarray,
    gains: Mapping[frozenset[str], float],
    stages: Sequence[str],
    repairs: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[str, np.ndarray]:
    """A sentence, and how often each stage is the largest in bootstrap samples of the sequences [stage].

    `shares` [sequence stage] and `deficit` [sequence] in nats; `gains` of every set of repairs. Named are the stages whose share is surely
    above a quarter of the deficit. Two that cannot be ranked, or of which neither repair does anything without the other, are
    said to be so. Where the deficit is not surely above 0.1 nats there is nothing to explain, and with fewer than eight
    sequences nothing is said.
    """
    count = len(shares)
    if count < _FEW:
        return f"cannot tell: {count} sequences, and {_FEW} are the least", np.full(len(stages), np.nan)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples) / count
    sampled, deficits = draws @ shares, draws @ deficit
    largest = np.bincount(sampled.argmax(1), minlength=len(stages)) / resamples
    low, high = np.quantile(deficits, [0.025, 0.975])
    mean, whole = shares.mean(0), float(deficit.mean())
    if high < _SLIGHT:
        return f"no deficit: {whole:.2f} nats ({low:.2f} .. {high:.2f})", largest
    if low < _SLIGHT:
        return (
            f"cannot tell: the deficit is {whole:.2f} nats ({low:.2f} .. {high:.2f}), not surely above {_SLIGHT}",
            largest,
        )
    order = [int(i) for i in np.argsort(-mean)]
    sure = [i for i in order if np.quantile(sampled[:, i], 0.025) > _MINOR * whole]
    if not sure:
        return f"cannot tell: no share is surely above a quarter of the deficit of {whole:.2f} nats", largest
    told = [f"{stages[i]} {mean[i]:.2f}" for i in sure]
    text = f"{', '.join(told)} of {whole:.2f} nats"
    first = sure[0]
    if len(sure) == 1:
        return f"{text} (the largest in {largest[first]:.0%} of samples)", largest
    pair = frozenset(stages[i] for i in sure[:2])
    joint = pair <= set(repairs) and pair in gains
    if joint:
        both = gains[pair]
        joint = both > _SLIGHT and all(gains[frozenset([name])] < _JOINT * both for name in pair)
    if joint:
        return f"{text}: both, jointly; not ranked", largest
    ranked = np.quantile(sampled[:, sure[0]] - sampled[:, sure[1]], 0.025) > 0
    return f"{text}" + (f" (the largest in {largest[first]:.0%} of samples)" if ranked else ": not ranked"), largest
