"""How much is each of several repairs worth, whatever the order they are made in?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np


def shapley(values: Mapping[frozenset[str], np.ndarray], stages: Sequence[str]) -> dict[str, np.ndarray]:
    """Each stage's mean marginal worth over all orders (Shapley 1953); the shares sum to all less none.

    `values` holds an array for every subset of `stages`.
    """
    n = len(stages)
    found = {}
    for stage in stages:
        others = [s for s in stages if s != stage]
        total: Any = 0.0
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in combinations(others, size):
                subset = frozenset(chosen)
                total = total + weight * (values[subset | {stage}] - values[subset])
        found[stage] = total
    return found
