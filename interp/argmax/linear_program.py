"""Which direction gives the largest margin? The question as a linear program, for what least squares leaves open."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from interp.argmax.points import Points, Solution, most_violated

_LEAD = 1e-9  # a margin in whitened coordinates that counts as zero
_BEHIND = 1e-3  # total amount by which the others must be behind in a tie
_BROKEN = 1e-7  # tolerance of a constraint
_ADDED = 64  # constraints added at a time


def max_margin(points: Points, which: int) -> Solution | None:
    """Find the direction in the unit box with the largest margin.

    Maximises r subject to (at_which - at_j) . v >= r for all j, v . ray <= 0 and |v| <= 1, with constraints added as
    they are violated. If no direction leads, one in which no class is ahead and some are behind is a tie.

    Args:
        points: all classes.
        which: the class.

    Returns:
        The direction, or the dual weights if none leads; None if HiGHS fails.

    Source:
        Grivas et al. (2022), https://arxiv.org/abs/2203.06462, without the rows' lengths, which only weight the leads.
    """
    ids, apart = points.differences(which)
    width = apart.shape[1]
    active = np.argsort(np.linalg.norm(apart, axis=1))[: 2 * width + 2].tolist()
    rays = np.zeros((0, width)) if points.ray is None else points.ray[None]
    while True:
        matrix = np.vstack([np.column_stack([apart[active], np.ones(len(active))]), np.pad(rays, ((0, 0), (0, 1)))])
        found = linprog(
            np.append(np.zeros(width), -1.0),
            A_ub=matrix,
            b_ub=np.zeros(len(matrix)),
            bounds=[(-1, 1)] * width + [(None, 1)],
            method="highs",
        )
        if found.status != 0:
            return None
        v, lead = found.x[:-1], float(found.x[-1])
        if lead <= _LEAD:
            weights = np.maximum(-found.ineqlin.marginals[: len(active)], 0.0)
            kept = weights > 0
            # a direction with no class ahead and some behind
            matrix = np.vstack([apart, rays])
            level = linprog(apart.sum(0), A_ub=matrix, b_ub=np.zeros(len(matrix)), bounds=(-1, 1), method="highs")
            direction = level.x if level.status == 0 and level.fun < -_BEHIND else None
            support = np.asarray(active)[kept]
            return Solution.of_mixture(ids, support, weights[kept], direction) if kept.any() else None
        new = most_violated(-(apart @ v), lead - _BROKEN, active, _ADDED)
        if not new:
            return Solution(v, np.empty(0, int), np.empty(0))
        active += new
