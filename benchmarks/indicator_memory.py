"""How much memory do the indicators of under-trained tokens need, compared with the formulas on whole matrices?

    python benchmarks/indicator_memory.py [--tokens 262144] [--width 640]

Random rows, untied. `ours` is `interp.undertrained.indicators`; `naive` the same formulas on whole matrices in double
precision. Memory is the peak of what NumPy allocates meanwhile (tracemalloc), as multiples of one float32 matrix; the two
matrices themselves are not counted. Both must agree to 1e-6, or the benchmark fails.
"""

import argparse
import time
import tracemalloc

import numpy as np
from scipy.linalg import eigh

from interp.undertrained import indicators


def _from_reference(rows, unused):
    ids = np.asarray(unused)
    mean = rows[ids].mean(0)
    others = (rows[ids].sum(0) - rows[ids]) / (len(ids) - 1)
    norms = np.linalg.norm(rows, axis=1)
    cosine = 1 - rows @ mean / (norms * np.linalg.norm(mean))
    cosine[ids] = 1 - (rows[ids] * others).sum(1) / (norms[ids] * np.linalg.norm(others, axis=1))
    distance = np.linalg.norm(rows - mean, axis=1)
    distance[ids] = np.linalg.norm(rows[ids] - others, axis=1)
    return cosine, distance


def naive(inputs, outputs, unused):
    e, u = inputs.astype(np.float64), outputs.astype(np.float64)
    centred = u - u.mean(0)
    last = u.shape[1] - 1
    first = eigh(centred.T @ centred, subset_by_index=[last, last])[1][:, 0]
    return {
        "e_out_cosine": _from_reference(u, unused)[0],
        "e_out_cosine_no_pc": _from_reference(u - np.outer(u @ first, first), unused)[0],
        "e_out_cosine_centred": _from_reference(centred, unused)[0],
        "e_out_l2": _from_reference(u, unused)[1],
        "e_in_norm": np.linalg.norm(e, axis=1),
        "e_out_cosine_centred_no_pc": _from_reference(centred - np.outer(centred @ first, first), unused)[0],
        "e_out_centred_norm": np.linalg.norm(centred, axis=1),
        "e_in_cosine_centred": _from_reference(e - e.mean(0), unused)[0],
        "e_in_l2": _from_reference(e, unused)[1],
    }


def peak(compute, inputs, outputs, unused):
    """What is computed, the peak in float32 matrices, and seconds."""
    tracemalloc.start()
    start = time.perf_counter()
    found = compute(inputs, outputs, unused)
    seconds, most = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, most / outputs.nbytes, seconds


def main(tokens, width):
    """Both ways; returns the peak of each."""
    rng = np.random.default_rng(0)
    inputs, outputs = (rng.standard_normal((tokens, width), dtype=np.float32) + 0.3 for _ in range(2))
    unused = tuple(range(0, tokens, max(1, tokens // 500)))
    ours, our_peak, our_time = peak(indicators, inputs, outputs, unused)
    theirs, naive_peak, naive_time = peak(naive, inputs, outputs, unused)
    assert ours.keys() == theirs.keys()
    worst = max(float(abs(ours[name] - theirs[name]).max()) for name in ours)
    assert worst < 1e-6, f"the two ways differ by {worst:.1e}"
    print(f"{tokens:,} x {width}, {outputs.nbytes / 2**20:.0f} MB in float32; the two ways agree to {worst:.0e}")
    print(f"naive {naive_peak:.2f} times that ({naive_time:.1f} s), ours {our_peak:.2f} ({our_time:.1f} s)")
    print(f"ratio {naive_peak / our_peak:.0f}")
    return our_peak, naive_peak


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--width", type=int, default=640)
    options = parser.parse_args()
    main(options.tokens, options.width)
