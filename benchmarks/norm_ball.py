"""How fast is the batched search after the norm, against an exact search per class, and in how much memory? Linux only.

    python benchmarks/norm_ball.py [--sizes 20000x256 49152x576] [--kin 1000] [--sample 20]
    python benchmarks/norm_ball.py --sizes 262144x640 --sample 0      # memory; half an hour and more on two cores

Gaussian rows of which `kin` lie close together, as those of untrained tokens do, and 20 are planted inside the
hull of the others. Batched: all classes. One at a time: a sample, the planted ones and kin in their true share. Memory
is the high-water mark of resident memory minus what was resident before. `agree`: of the sample, those whose batched
lead is clear of bfloat16 or at least 95% of the widest, and not more than it. Only ratios count: machines differ.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from interp.argmax import ball_search, norm_ball

PLANTED = 20


def ball_of(size, kin, seed=0):
    n, d = map(int, size.split("x"))
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, d))
    rows[:kin] = random.normal(size=d) + 0.02 * random.normal(size=(kin, d))
    inside = n - 1 - np.arange(PLANTED)
    proofs = {}
    for i in inside:
        others = random.permutation(n - PLANTED)[: 2 * d]
        rows[i] = rows[others].mean(0)
        proofs[int(i)] = (others, np.ones(len(others)))  # as the search for any state hands them over
    return norm_ball.NormBall(rows, np.zeros(n), float(np.sqrt(d))), proofs


def resident(what):
    """MB: `VmRSS` now, `VmHWM` at most."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["20000x256", "49152x576"])
    parser.add_argument("--kin", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20)
    options = parser.parse_args()
    print(f"{'matrix':14}{'batched CPU s':>15}{'MB':>8}{'one at a time':>15}{'ratio':>8}{'agree':>12}")
    for size in options.sizes:
        ball, proofs = ball_of(size, options.kin)
        Path("/proc/self/clear_refs").write_text("5")
        before, cpu = resident("VmRSS"), time.process_time()
        found = ball_search.margins_in_ball(ball, proofs=proofs, exact=False)
        cpu, peak = time.process_time() - cpu, resident("VmHWM") - before
        assert all(found.margin[i] <= 0 and found.bound[i] < 1e-6 for i in proofs), "a planted class is not found"
        count = len(ball.rows)
        ids, good = np.random.default_rng(1).permutation(count)[: options.sample], 0
        began = time.process_time()
        for i in ids:
            widest = norm_ball.margin_in_ball(ball, int(i)).margin
            clear = found.margin[i] >= 4 * ball_search.spacing(found.logit[i], 8)
            good += bool(found.margin[i] <= widest + 1e-5 and (clear or found.margin[i] >= 0.95 * widest - 1e-5))
        one = (time.process_time() - began) / max(len(ids), 1) * count
        print(f"{size:14}{cpu:15.0f}{peak:8.0f}{one:15.0f}{one / cpu:8.0f}{good:5} of {len(ids)}", flush=True)


if __name__ == "__main__":
    main()
