"""The judge: is a state's winner, or a proof that a class never wins, what it is said to be? It knows nothing of how they were found.

Everything is asked of the matrix as it was given. Leads are float64 numbers with a bound on their rounding error; single precision serves to
rule out classes that cannot be among the first, by the bound on its own error (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 3.1: a dot product of length n errs by at most n u / (1 - n u) times the product of the norms).
"""

from __future__ import annotations

import numpy as np

_BLOCK = 1 << 18  # logits at a time, which a cache holds
_LEAST = 128  # states at a time, or products are slow
_LEVEL = 1e-8
_MANY = 64  # candidates beyond which all classes are asked in double precision


def leads(
    rows: np.ndarray, bias: np.ndarray | None, ids: np.ndarray, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much each class [n] leads all others at its state [n d_model], the error of that at most, and the class behind it.

    The lead is logit(id) - max of the others (negative: it does not win); `rows` [class d_model], `bias` [class] or None.
    """
    count, width = rows.shape
    offsets = np.zeros(count) if bias is None else bias
    scale = 2.0 ** np.ceil(np.log2(max(float(np.abs(rows).max()), np.finfo(float).tiny)))
    single = (rows / scale).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1)
    longest, highest = float(norms.max()), float(np.abs(offsets).max())
    rough, fine = (_gamma(width + 3, float(np.finfo(t).eps) / 2) for t in (np.float32, np.float64))
    lead, error, behind = np.empty(len(ids)), np.empty(len(ids)), np.empty(len(ids), dtype=int)
    size = max(_LEAST, _BLOCK // count)
    for start in range(0, len(ids), size):
        part = slice(start, start + size)
        chosen, state = ids[part], states[part].astype(np.float64)
        lengths = np.linalg.norm(state, axis=1)
        unit = state / np.where(lengths > 0, lengths, 1.0)[:, None]
        with np.errstate(over="ignore", under="ignore"):
            logits = unit.astype(np.float32) @ single.T
        if bias is not None:
            logits = logits.astype(np.float64) * (scale * lengths)[:, None] + offsets
            doubt = (rough * longest * lengths + 2e-15 * (highest + longest * lengths)) * 2
        else:
            doubt = np.full(len(chosen), 2 * rough * longest / scale)
        at = np.arange(len(chosen))
        logits[at, chosen] = -np.inf
        rival = logits.argmax(1)
        close = (logits >= (logits[at, rival] - doubt)[:, None]).sum(1)
        own = (rows[chosen] * state).sum(1) + offsets[chosen]
        lead[part], behind[part] = own - ((rows[rival] * state).sum(1) + offsets[rival]), rival
        for k in np.flatnonzero(close > 1):  # single precision cannot say which is ahead
            among = np.flatnonzero(logits[k] >= logits[k, rival[k]] - doubt[k])
            if len(among) > _MANY:
                among = np.delete(np.arange(count), chosen[k])
            exact = rows[among] @ state[k] + offsets[among]
            best = int(exact.argmax())
            lead[start + k], behind[start + k] = own[k] - exact[best], among[best]
        error[part] = 2 * (fine * longest * lengths + np.finfo(float).eps * highest) + np.finfo(float).tiny
    return lead, error, behind


def tie(rows: np.ndarray, bias: np.ndarray | None, which: int, state: np.ndarray) -> bool:
    """Does a state [d_model] put a class level with the best, and ahead of at least one? Level: to 1e-8 of what two classes are apart."""
    apart = rows[which] - np.delete(rows, which, 0)
    spare = np.zeros(len(apart)) if bias is None else bias[which] - np.delete(bias, which)
    ahead = apart @ state + spare
    length = float(np.linalg.norm(state))
    level = _LEVEL * (np.linalg.norm(apart, axis=1) * length + np.abs(spare))
    offsets = np.zeros(len(rows)) if bias is None else np.abs(bias)
    size = np.linalg.norm(rows, axis=1) * length + offsets
    level = level + 1e-14 * (np.delete(size, which) + size[which])  # rounding
    return bool((ahead >= -level).all() and (ahead > level).any())


def residual(
    rows: np.ndarray, bias: np.ndarray | None, which: int, others: np.ndarray, weights: np.ndarray
) -> tuple[float, float, float]:
    """Of a claim that a class is a convex combination of others: |sum of weights . rows - row|, what the biases spare, and their error.

    By `r`, `s` and the error `e` of both, no state x leads with that class by more than (r + e) |x| - s + e: each lead over the
    `others` [support] is at least the least of all, and their `weights` [support], which must not be negative and sum to 1, mix them.
    """
    if len(weights) == 0 or (weights < 0).any() or which in others:
        return np.inf, -np.inf, 0.0
    shares = weights / weights.sum()
    apart = shares @ (rows[others] - rows[which])
    spare = 0.0 if bias is None else float(shares @ (bias[others] - bias[which]))
    top = float(np.abs(rows[others]).max() + np.abs(rows[which]).max())
    error = _gamma(len(others) + 3, np.finfo(float).eps / 2) * top * np.sqrt(rows.shape[1])
    if bias is not None:
        error = max(error, _gamma(len(others) + 3, np.finfo(float).eps / 2) * float(np.abs(bias).max()) * 2)
    return float(np.linalg.norm(apart)), spare, float(error)


def _gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit)
