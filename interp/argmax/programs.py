"""The same question as a linear program, for what least squares leaves open: the widest lead, with constraints added as they are broken."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from interp.argmax.nearest import Found
from interp.argmax.problem import Points

_LEAST = 1e-9  # a lead in even coordinates that is none
_ADDED = 64  # constraints at a time


def _level(apart: np.ndarray, rays: np.ndarray) -> np.ndarray | None:
    """A direction that puts none of `apart` [m k] ahead, and some behind; None where there is none."""
    matrix = np.vstack([apart, rays])
    found = linprog(apart.sum(0), A_ub=matrix, b_ub=np.zeros(len(matrix)), bounds=(-1, 1), method="highs")
    return found.x if found.status == 0 and found.fun < -1e-3 else None


def widest(points: Points, which: int) -> Found | None:
    """The direction in the unit box that leads by most, or the dual weights where none leads; None where HiGHS gives up.

    Maximises r subject to (at_which - at_j) . v >= r for all j, v . ray <= 0 and |v| <= 1 (REFERENCES: Grivas et al. 2022, without the
    rows' lengths, which only weigh the leads). Where none leads, a direction in which none is ahead, and some are behind, is a tie.
    """
    ids = np.delete(np.arange(len(points.at)), which)
    apart = points.at[ids] - points.at[which]
    width = apart.shape[1]
    active = list(np.argsort(np.linalg.norm(apart, axis=1))[: 2 * width + 2])
    extra = np.zeros((0, width + 1)) if points.ray is None else np.append(points.ray, 0.0)[None]
    while True:
        matrix = np.vstack([np.column_stack([apart[active], np.ones(len(active))]), extra])
        found = linprog(
            np.append(np.zeros(width), -1.0), A_ub=matrix, b_ub=np.zeros(len(matrix)),
            bounds=[(-1, 1)] * width + [(None, 1)], method="highs",
        )  # fmt: skip
        if found.status != 0:
            return None
        v, lead = found.x[:-1], float(found.x[-1])
        if lead <= _LEAST:
            weights = np.maximum(-found.ineqlin.marginals[: len(active)], 0.0)
            kept = weights > 0
            if not kept.any():
                return None
            level = _level(apart, extra[:, :-1])
            return Found(level, level is not None, ids[np.asarray(active)[kept]], weights[kept] / weights.sum())
        ahead = apart @ v
        broken = np.flatnonzero(ahead > -lead + 1e-7)
        known = set(active)
        new = [j for j in broken[np.argsort(-ahead[broken])] if j not in known][:_ADDED]
        if not new:
            return Found(v, False, np.empty(0, int), np.empty(0))
        active += new
