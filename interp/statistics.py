"""How sure is a mean? NumPy only, so that figures can be drawn without torch."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

BOUNDS = ("mean", "low", "high")


def mean_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Mean over the first axis and the ends of its percentile bootstrap interval (Efron 1979).

    `values` [sample, ...] gives [3, ...]: mean, low, high. NaN samples (nothing measured) are left out.
    Fewer than two samples have no interval: its ends are NaN.
    """
    array = np.asarray(values, dtype=float)
    valid = ~np.isnan(array)
    n = len(array)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    filled = np.where(valid, array, 0.0)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing measured at all: NaN is the right answer
        mean = filled.sum(0) / valid.sum(0)
        means = np.tensordot(draws, filled, 1) / np.tensordot(draws, valid.astype(float), 1)
        low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    few = valid.sum(0) < 2
    return np.stack([mean, np.where(few, np.nan, low), np.where(few, np.nan, high)])
