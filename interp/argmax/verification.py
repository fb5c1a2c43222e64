"""Does a state really put its class first, and does a proof really show that a class never wins?

Verification shares no code with the search and uses the matrix as it was given. Leads are float64 numbers with a bound
on their rounding error; single precision only serves to rule out classes that cannot be first, by the bound on its own
error (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1: a dot product of length n errs by at
most n u / (1 - n u) times the product of the norms).
"""

from __future__ import annotations

import numpy as np

_BLOCK = 1 << 18  # logits at a time, to fit into the CPU cache
_STATES = 128  # states at a time, at least: smaller products are slow
_LEVEL = 1e-8  # a lead that counts as a tie, relative to the distance of the two classes
_CANDIDATES = 64  # number of candidates beyond which all classes are computed in double precision
_EPS = float(np.finfo(float).eps)


def leads(
    rows: np.ndarray, bias: np.ndarray | None, ids: np.ndarray, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure by how much each class leads all others at its state.

    Args:
        rows: [class d_model].
        bias: [class], or None.
        ids: [n] the classes to measure.
        states: [n d_model].

    Returns:
        The lead [n], logit(id) - max of the others (negative: it does not win); a bound on its rounding error [n]; and
        the class that is next or ahead [n].
    """
    count, width = rows.shape
    offsets = np.zeros(count) if bias is None else bias
    scale = 2.0 ** np.ceil(np.log2(max(float(np.abs(rows).max()), np.finfo(float).tiny)))
    single = (rows / scale).astype(np.float32)
    longest, highest = float(np.linalg.norm(rows, axis=1).max()), float(np.abs(offsets).max())
    rough, fine = (_gamma(width + 3, float(np.finfo(t).eps) / 2) for t in (np.float32, np.float64))
    lead, error, behind = np.empty(len(ids)), np.empty(len(ids)), np.empty(len(ids), dtype=int)
    size = max(_STATES, _BLOCK // count)
    for start in range(0, len(ids), size):
        part = slice(start, start + size)
        chosen, state = ids[part], states[part].astype(np.float64)
        lengths = np.linalg.norm(state, axis=1)
        unit = state / np.where(lengths > 0, lengths, 1.0)[:, None]
        with np.errstate(over="ignore", under="ignore"):
            logits = unit.astype(np.float32) @ single.T
        doubt = np.full(len(chosen), 2 * rough * longest / scale)
        if bias is not None:
            logits = logits.astype(np.float64) * (scale * lengths)[:, None] + offsets
            doubt = (rough * longest * lengths + 2e-15 * (highest + longest * lengths)) * 2
        at = np.arange(len(chosen))
        logits[at, chosen] = -np.inf
        rival = logits.argmax(1)
        close = (logits >= (logits[at, rival] - doubt)[:, None]).sum(1)
        own = (rows[chosen] * state).sum(1) + offsets[chosen]
        lead[part], behind[part] = own - ((rows[rival] * state).sum(1) + offsets[rival]), rival
        for k in np.flatnonzero(close > 1):  # single precision does not resolve which is ahead
            among = np.flatnonzero(logits[k] >= logits[k, rival[k]] - doubt[k])
            if len(among) > _CANDIDATES:
                among = np.delete(np.arange(count), chosen[k])
            exact = rows[among] @ state[k] + offsets[among]
            lead[start + k], behind[start + k] = own[k] - exact.max(), among[exact.argmax()]
        error[part] = 2 * (fine * longest * lengths + _EPS * highest) + np.finfo(float).tiny
    return lead, error, behind


def is_tied(rows: np.ndarray, bias: np.ndarray | None, which: int, state: np.ndarray) -> bool:
    """Does a state [d_model] tie a class with the best (to 1e-8 of their distance), ahead of at least one other?"""
    offsets = np.zeros(len(rows)) if bias is None else bias
    apart, spare = (values[which] - np.delete(values, which, 0) for values in (rows, offsets))
    ahead = apart @ state + spare
    length = float(np.linalg.norm(state))
    size = np.linalg.norm(rows, axis=1) * length + np.abs(offsets)
    rounding = 1e-14 * (np.delete(size, which) + size[which])
    level = _LEVEL * (np.linalg.norm(apart, axis=1) * length + np.abs(spare)) + rounding
    return bool((ahead >= -level).all() and (ahead > level).any())


def residual(
    rows: np.ndarray, bias: np.ndarray | None, which: int, others: np.ndarray, weights: np.ndarray
) -> tuple[float, float, float]:
    """Measure how well a class is a convex combination of others.

    With residual r, bias surplus s and rounding error e, the class's lead at any state x is at most
    (r + e) |x| - s + e: its lead over all classes is at most the weighted mean of its leads over the `others`.

    Args:
        rows: [class d_model].
        bias: [class], or None.
        which: the class.
        others: [support] classes.
        weights: [support], non-negative; they are normalized to sum to 1.

    Returns:
        |sum of weights . rows - row|, infinite if this is not a convex combination of others; by how much the biases'
        combination exceeds the class's own; and a bound on the rounding error of either.
    """
    if len(weights) == 0 or (weights < 0).any() or which in others:
        return np.inf, -np.inf, 0.0
    shares = weights / weights.sum()
    apart = shares @ (rows[others] - rows[which])
    spare = 0.0 if bias is None else float(shares @ (bias[others] - bias[which]))
    top = float(np.abs(rows[others]).max() + np.abs(rows[which]).max())
    highest = 0.0 if bias is None else float(np.abs(bias).max())
    gamma = _gamma(len(others) + 3, _EPS / 2)
    return float(np.linalg.norm(apart)), spare, float(max(gamma * top * np.sqrt(rows.shape[1]), gamma * highest * 2))


def _gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit)
