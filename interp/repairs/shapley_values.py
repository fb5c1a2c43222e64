"""What does each of several repairs contribute, whatever the order they are made in?"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from math import comb

import numpy as np


def subsets(of: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All subsets, the empty one first, the smaller before the larger."""
    return chain.from_iterable(combinations(of, size) for size in range(len(of) + 1))


def shapley(values: Mapping[frozenset[str], np.ndarray], repairs: Sequence[str]) -> dict[str, np.ndarray]:
    """Each repair's marginal gain, averaged over all orders.

    Args:
        values: an array for every subset of `repairs`.
        repairs: the repairs to share the gain among.

    Returns:
        For each repair an array like those of `values`; they sum to the value of all repairs minus that of none.

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
    """The least and the largest Shapley value of each repair, where the values of some sets are not known.

    What is not known is bounded: a set's value is at least that of its tested part, at most `most`, and more repairs
    are worth no less. Both ends are reached by such a completion of the game (of the largest: all sets with the repair
    are worth `most`, all without it what their tested part is worth; of the least: all unknown sets are worth `most`
    or, for a repair that is not tested itself, what their tested part is).

    Args:
        values: an array for every subset of `tested`; more repairs are worth no less, on average.
        tested: the repairs whose sets have known values.
        untested: the other players.
        most: an array like those of `values`, the most that any set is worth.

    Returns:
        For each repair of either kind the two ends, equal where nothing is untested.

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
