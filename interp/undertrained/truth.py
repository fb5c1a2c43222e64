"""How good is an indicator, where the truth is known? Against exposure counts, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from interp.pools import ORDINARY_FROM, UNDERTRAINED_TO

MEASURES = ("auroc", "average_precision", "precision", "recall", "spearman")


def measures(
    values: np.ndarray,
    called: np.ndarray,
    exposure: np.ndarray,
    among: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """[measure, bound]: AUROC, average precision, precision and recall of the calls, Spearman correlation with exposure.

    Tokens exposed up to 10 times are positive, from 200 times negative, between them neither (left out of all but Spearman,
    where every token of `among` [token], bool, counts). Bounds are the value and its 95% bootstrap interval over
    tokens. NaN where there are no positives or no negatives.
    """
    chosen = np.flatnonzero(among & np.isfinite(values))
    rng = np.random.default_rng(seed)
    draws = [_once(values, called, exposure, rng.choice(chosen, len(chosen))) for _ in range(resamples)]
    point = _once(values, called, exposure, chosen)
    low, high = np.full((2, len(point)), np.nan)
    defined = np.isfinite(point)  # precision has no value where nothing is called
    if defined.any():
        low[defined], high[defined] = np.nanquantile(np.array(draws)[:, defined], [0.025, 0.975], axis=0)
    return np.stack([point, low, high], axis=1)


def _once(values: np.ndarray, called: np.ndarray, exposure: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    rare, common = exposure[chosen] <= UNDERTRAINED_TO, exposure[chosen] >= ORDINARY_FROM
    decided = chosen[rare | common]
    positive, call = exposure[decided] <= UNDERTRAINED_TO, called[decided]
    if positive.all() or not positive.any():
        return np.full(len(MEASURES), np.nan)
    scores: list[Callable[[], float]] = [
        lambda: roc_auc_score(positive, -values[decided]),
        lambda: average_precision_score(positive, -values[decided]),
        lambda: (positive & call).sum() / call.sum() if call.any() else np.nan,
        lambda: (positive & call).sum() / positive.sum(),
        lambda: spearmanr(values[chosen], exposure[chosen]).statistic,
    ]
    return np.array([score() for score in scores])
