"""How fast are intervals of a detector's AUROC, average precision and Spearman correlation, against the libraries' own?

    python benchmarks/rank_statistics.py [--tokens 2048] [--resamples 200]

Both take the same resamples and give the same ends.
"""

import argparse
import time

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from interp.organisms import ORDINARY_FROM, UNDERTRAINED_TO
from interp.statistics import statistic_interval
from interp.undertrained import detection_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--resamples", type=int, default=200)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    exposure = np.exp(rng.uniform(0, 10, asked.tokens)).astype(int)
    values = np.log1p(exposure) + rng.normal(size=asked.tokens)
    every = np.ones(asked.tokens, bool)

    def libraries(chosen):
        decided = chosen[(exposure[chosen] <= UNDERTRAINED_TO) | (exposure[chosen] >= ORDINARY_FROM)]
        positive = exposure[decided] <= UNDERTRAINED_TO
        return [
            roc_auc_score(positive, -values[decided]),
            average_precision_score(positive, -values[decided]),
            spearmanr(values[chosen], exposure[chosen]).statistic,
        ]

    start = time.perf_counter()
    ours = detection_scores(values, values < 2, exposure, every, resamples=asked.resamples)
    middle = time.perf_counter()
    theirs = statistic_interval(libraries, np.flatnonzero(every), resamples=asked.resamples)
    end = time.perf_counter()
    apart = np.abs(ours[[0, 1, 4], 1:].T - theirs).max()
    print(f"{asked.tokens} tokens, {asked.resamples} resamples: by counting {middle - start:.2f} s, by the libraries")
    print(
        f"{end - middle:.2f} s ({(end - middle) / (middle - start):.0f} times as long); ends differ by at most {apart:.1e}"
    )


if __name__ == "__main__":
    main()
