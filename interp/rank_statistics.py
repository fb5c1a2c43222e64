"""How are rank statistics of many bootstrap resamples computed fast? Values are sorted once, and each resample is
counted.

scikit-learn and SciPy give the same numbers (tests/test_undertrained.py); for two thousand tokens they take ten times
as long, nearly all of it for input checks (benchmarks/rank_statistics.py).
"""

from __future__ import annotations

import numpy as np


def rank_codes(values: np.ndarray) -> np.ndarray:
    """[sample], integers from 0 in the order of the values; equal values share one."""
    return np.unique(values, return_inverse=True)[1].reshape(np.shape(values))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation.

    Args:
        x: [sample], `rank_codes` of all samples, indexed by those drawn.
        y: [sample], the same for the other variable.

    Returns:
        -1..1; NaN where either is constant.
    """
    a, b = _mean_ranks(x), _mean_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def ranking_scores(codes: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision of a detector for which low values are suspicious.

    Args:
        codes: [sample], `rank_codes` of the detector's values.
        positive: [sample], bool: what it should find.

    Returns:
        Both 0..1; NaN where there are no positives or no negatives. Ties count half for the area.
    """
    hits = np.bincount(codes[positive], minlength=int(codes.max()) + 1)
    misses = np.bincount(codes[~positive], minlength=len(hits))
    found, called = hits.cumsum(), (hits + misses).cumsum()
    if not hits.any() or not misses.any():
        return float("nan"), float("nan")
    area = (misses * (found - hits / 2)).sum() / (hits.sum() * misses.sum())
    precision = (hits * found / np.maximum(called, 1)).sum() / hits.sum()
    return float(area), float(precision)


def _mean_ranks(codes: np.ndarray) -> np.ndarray:
    """Ranks [sample], from 1; ties share the mean of their ranks."""
    counts = np.bincount(codes)
    return (counts.cumsum() - (counts - 1) / 2)[codes]
