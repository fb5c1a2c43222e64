"""How expensive are exact verdicts, against an approximate search and against one linear program per class? Linux only.

    python benchmarks/argmaxability.py [--sizes 2000x64 5000x128 1900x8 50257x768]

Gaussian rows (float32), and with rows planted deep inside their hull (mixtures of twice as many others as there are
dimensions). Three ways, each in a process of its own:

- `ours`: `interp.argmaxability`, every class, with all checks;
- `braid`: braid reflection as Grivas et al. (2022) describe it, in plain NumPy, one class at a time: x starts at the
  class's row and is reflected in the plane between the class and the one that is ahead, at most `PATIENCE` times (their
  code's default is 2500). It can find that a class can be first, and cannot find that it cannot. On large matrices, a
  sample of classes stands for all;
- `program`: the full linear program (Chebyshev centre; HiGHS through scipy), a sample of classes, not at the largest
  size, where one program is gigabytes.

All methods have the same number of threads (one, by default: idle ones count as CPU seconds, too). Memory is the
high-water mark of resident memory minus what was resident before. `agree` counts classes on which a method agrees with
ours (for braid: where it found a state, and ours says argmaxable; where it gave up, and ours says it cannot be). Only
ratios count: machines differ.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import linprog

from interp import argmax

PATIENCE = 2500
BUDGET = 60.0  # CPU seconds for the samples of a way
SAMPLE = {"braid": 2000, "program": 40}
PLANTED = 20


def matrix(size, planted, seed=0):
    """Rows in float32; which of them are planted."""
    n, d = map(int, size.split("x"))
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, d))
    inside = np.empty(0, int)
    if planted:
        inside = np.sort(random.permutation(n)[:PLANTED])
        others = np.setdiff1d(np.arange(n), inside)
        for i in inside:
            mixed = random.permutation(others)[: min(2 * d, len(others))]
            rows[i] = random.dirichlet(np.full(len(mixed), 4.0)) @ rows[mixed]
    return rows.astype(np.float32), inside


def ours(rows, ids):
    table = argmax.argmaxability(rows)
    return dict(enumerate(table["verdict"])), len(rows)


def braid(rows, ids):
    found = {}
    started = time.process_time()
    for i in ids:
        x = rows[i].copy()
        verdict = "unargmaxable"
        for _ in range(PATIENCE):
            j = int((rows @ x).argmax())
            if j == i:
                verdict = "argmaxable"
                break
            v = rows[i] - rows[j]
            v /= np.linalg.norm(v)
            x -= 2 * (v @ x) * v
        found[int(i)] = verdict
        if time.process_time() - started > BUDGET:
            break
    return found, len(found)


def program(rows, ids):
    found = {}
    started = time.process_time()
    for i in ids:
        apart = np.delete(rows, i, 0).astype(np.float64) - rows[i]
        norms = np.linalg.norm(apart, axis=1)
        d = rows.shape[1]
        result = linprog(
            np.append(np.zeros(d), -1.0),
            A_ub=np.column_stack([apart, norms]),
            b_ub=np.zeros(len(apart)),
            bounds=[(-100, 100)] * d + [(None, None)],
            method="highs",
        )
        found[int(i)] = "argmaxable" if -result.fun > 1e-6 else "unargmaxable"
        if time.process_time() - started > BUDGET:
            break
    return found, len(found)


WAYS = {"ours": ours, "braid": braid, "program": program}


def resident(what):
    """MB: `VmRSS` now, `VmHWM` at most."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) / 1024


def measure(way, size, planted):
    rows, _ = matrix(size, planted)
    random = np.random.default_rng(1)
    # planted classes are among those asked, in their true share
    ids = random.permutation(len(rows))[: SAMPLE.get(way, len(rows))]
    argmax.argmaxability(np.eye(3))  # without imports

    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, wall = resident("VmRSS"), time.process_time(), time.perf_counter()
    found, asked = WAYS[way](rows, ids)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    times = len(rows) / asked
    print(
        json.dumps(
            {
                "cpu": cpu * times,
                "wall": wall * times,
                "asked": asked,
                "memory": resident("VmHWM") - before,
                "found": found,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["2000x64", "5000x128", "1900x8", "50257x768"])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help="of every way")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    options = parser.parse_args()
    if options.one:
        way, size, planted = options.one
        measure(way, size, planted == "True")
        return
    print(f"{'matrix':22}{'way':>9}{'CPU s':>10}{'ratio':>8}{'wall s':>9}{'MB':>7}{'asked':>8}{'agree':>13}")
    for size in options.sizes:
        for planted in (False, True):
            own = None
            for way in options.ways:
                if way == "program" and int(size.split("x")[1]) > 256:
                    continue
                threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
                done = subprocess.run(
                    [sys.executable, __file__, "--one", way, size, str(planted)],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=os.environ | threads,
                )
                result = json.loads(done.stdout.splitlines()[-1])
                own = own or result
                agree = sum(
                    (own["found"][i] == "argmaxable") == (v == "argmaxable") for i, v in result["found"].items()
                )
                print(
                    f"{size + (' planted' if planted else ''):22}{way:>9}{result['cpu']:10.2f}"
                    f"{result['cpu'] / own['cpu']:8.1f}{result['wall']:9.1f}"
                    f"{result['memory']:7.0f}{result['asked']:8}{agree:7} of {len(result['found'])}",
                    flush=True,
                )
            if planted:
                inside = set(map(str, matrix(size, True)[1]))
                never = {i for i, v in own["found"].items() if v == "unargmaxable"}
                print(
                    f"{'':22}planted: {len(inside & never)} of {len(inside)} found, "
                    f"{len(never - inside)} others are inside, too"
                )


if __name__ == "__main__":
    main()
