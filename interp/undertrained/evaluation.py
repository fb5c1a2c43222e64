"""How good is a detector when the truth is known? Scored against exposure counts, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

from interp.organisms import ORDINARY_FROM, UNDERTRAINED_TO
from interp.rank_statistics import rank_codes, ranking_scores, spearman
from interp.statistics import statistic_interval

MEASURES = ("auroc", "average_precision", "precision", "recall", "spearman")


def detection_scores(
    values: np.ndarray,
    detected: np.ndarray,
    exposure: np.ndarray,
    among: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """AUROC, average precision, precision and recall of a detector, and its Spearman correlation with exposure.

    Tokens exposed up to 10 times are positive, from 200 times negative, between them neither (left out of all but
    Spearman, where every token counts).

    Args:
        values: [token], the detector's indicator; low is suspicious.
        detected: [token], bool: the tokens that it detects.
        exposure: [token], how often each was trained on.
        among: [token], bool: the tokens to score.
        resamples: number of bootstrap resamples of the tokens.
        seed: decides these draws.

    Returns:
        [measure bound]: `MEASURES`, each with its value and the ends of its 95% bootstrap interval over tokens. NaN
        where there are no positives or no negatives; precision has no value where nothing is detected.
    """
    order, doses = rank_codes(values), rank_codes(exposure)

    def scores(chosen: np.ndarray) -> np.ndarray:
        decided = chosen[(exposure[chosen] <= UNDERTRAINED_TO) | (exposure[chosen] >= ORDINARY_FROM)]
        positive, found = exposure[decided] <= UNDERTRAINED_TO, detected[decided]
        if positive.all() or not positive.any():
            return np.full(len(MEASURES), np.nan)
        right = (positive & found).sum()
        return np.array(
            [
                *ranking_scores(order[decided], positive),
                right / found.sum() if found.any() else np.nan,
                right / positive.sum(),
                spearman(order[chosen], doses[chosen]),
            ]
        )

    tokens = np.flatnonzero(among & np.isfinite(values))
    point = scores(tokens)
    ends = statistic_interval(scores, tokens, resamples=resamples, seed=seed)
    return np.stack([point, *np.where(np.isfinite(point), ends, np.nan)], axis=1)
