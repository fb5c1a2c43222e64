"""What does each of several repairs contribute, averaged over the orders in which they can be made?"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from math import comb

import numpy as np


def subsets(of: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All subsets, from the empty one to the full one, smaller before larger."""
    return chain.from_iterable(combinations(of, size) for size in range(len(of) + 1))


def shapley(values: Mapping[frozenset[str], np.ndarray], repairs: Sequence[str]) -> dict[str, np.ndarray]:
    """Each repair's marginal gain, averaged over all orders.

    Args:
        values: an array for every subset of `repairs`.
        repairs: the repairs that share the gain.

    Returns:
        For each repair an array like those in `values`; they sum to the value of all repairs minus that of none.

    Source: L. Shapley, "A value for n-person games" (1953).
    """
    found = {}
    for repair in repairs:
        others = [name for name in repairs if name != repair]
        gains = []
        for before in map(frozenset, subsets(others)):
            weight = 1 / (len(repairs) * comb(len(others), len(before)))
            gains.append(weight * (values[before | {repair}] - values[before]))
        found[repair] = sum(gains[1:], gains[0])
    return found


def shapley_bounds(
    values: Mapping[frozenset[str], np.ndarray], tested: Sequence[str], untested: Sequence[str], most: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The smallest and largest possible Shapley value of each repair, where the values of some sets are unknown.

    Unknown values are bounded: a set's value is at least that of its tested part and at most `most`, and it does not
    decrease when repairs are added. Both bounds are attained by such a completion of the game (the largest: all sets
    with the repair have value `most`, all without it the value of their tested part; the smallest: all unknown sets
    have value `most` or, for a repair that is itself untested, the value of their tested part).

    Args:
        values: an array for every subset of `tested`; on average, adding repairs does not decrease it.
        tested: the repairs whose sets have known values.
        untested: the other players.
        most: an array like those in `values`, an upper bound of the value of any set.

    Returns:
        For each repair of either kind its two bounds, equal where nothing is untested.

    Source: L. Shapley, "A value for n-person games" (1953).
    """
    players, found = [*tested, *untested], {}
    for repair in players:
        others = [name for name in players if name != repair]
        least, slack = np.zeros_like(most), np.zeros_like(most)
        for before in map(frozenset, subsets(others)):
            weight = 1 / (len(players) * comb(len(others), len(before)))
            known = before & frozenset(tested)
            if before == known and repair in tested:
                least = least + weight * (values[before | {repair}] - values[before])
            else:
                slack = slack + weight * (most - values[known])
        found[repair] = least, least + slack
    return found
