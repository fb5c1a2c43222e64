"""Do the quick and the thorough budget agree within their intervals, and how much longer does the thorough one take?

    python benchmarks/budgets.py [--model smollm2] [--experiments repeated_tokens attention_scores] [--batch 64]

The quick run has other sequences (seed 3) than the thorough one, which has `batch` of them. Means over sequences that are
further apart than 95% intervals allow should be one in twenty. Pool: ordinary tokens.
"""

import argparse
import time

import numpy as np
import xarray as xr
from scipy.special import stdtrit

import interp
from interp.pool_names import ordinary_pool

# what each experiment's intervals are of
SAMPLED = {
    "repeated_tokens": "log_prob",
    "attention_scores": "score",
    "induction_heads": "score",
    "head_ablation": "lost",
    "logit_attribution": "by_head",
    "logit_lens": "log_prob_after",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="organism")
    parser.add_argument("--experiments", nargs="+", choices=SAMPLED, default=list(SAMPLED))
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    model = interp.load(asked.model)
    print(f"{'experiment':20}{'compared':>10}{'apart':>8}{'quick s':>9}{'thorough s':>12}{'ratio':>7}")
    for experiment in asked.experiments:
        found, seconds = [], []
        for budget, options in (("quick", {"seed": 3}), ("thorough", {"batch": asked.batch})):
            began = time.process_time()
            found.append(
                interp.run(experiment, model, [ordinary_pool(model)], budget=budget, **options)[SAMPLED[experiment]]
            )
            seconds.append(time.process_time() - began)
        one, two = (
            x.transpose("batch", ...).values.reshape(x.sizes["batch"], -1)
            for x in xr.align(*found, join="inner", exclude={"batch"})
        )
        kept = np.isfinite(one).all(0) & np.isfinite(two).all(0) & (two.std(0) > 1e-6)
        one, two = one[:, kept], two[:, kept]
        error = np.sqrt(one.var(0, ddof=1) / len(one) + two.var(0, ddof=1) / len(two))
        apart = np.abs(one.mean(0) - two.mean(0)) > stdtrit(len(one) - 1, 0.975) * error + 1e-5
        quick, thorough = seconds
        print(
            f"{experiment:20}{kept.sum():>10,}{apart.mean():>8.1%}{quick:>9.0f}{thorough:>12.0f}{thorough / quick:>7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
