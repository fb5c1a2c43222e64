"""Which repairs leave ordinary tokens unchanged, and which stages can therefore be tested?"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.repairs.minimal_study import CONTROLS, NOTHING, UNCARRIED, UPSTREAM
from interp.repairs.shapley_values import subsets
from interp.repairs.study import REPAIRS, combination_name
from interp.statistics import confidence_sequence

HEALTHY = 0.05  # nats by which a repair may move ordinary tokens, where a pool's deficit is small
_OF_DEFICIT = 0.02  # the same as a share of a pool's deficit, where that is more
_FEWEST = 16  # the fewest sequences by which ordinary tokens are judged
_SPECIFIC = 0.25  # share of the fitted rows' gain that they must lose where nothing of the token is carried
_ENOUGH_LOST = 5.0  # a loss, in nats, that is enough whatever the gain: less than one part in a hundred is left
_TOLD = 0.1  # share of the variance of held-out tokens' values that a map from their rows must explain
_REPAIRED = 0.5  # share of the cost of blinded values to ordinary tokens that a repair of content must recover


@dataclass(frozen=True)
class Health:
    """How far repairs move ordinary tokens.

    Attributes:
        moved: [combination], nats.
        low: [combination], the lower end of its interval; `moved` itself where there is none.
        high: [combination], the upper end.
        limit: nats, the largest permitted move.
        reasons: why stages cannot be tested.
    """

    moved: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray
    limit: float
    reasons: Mapping[str, str]

    @property
    def used(self) -> tuple[str, ...]:
        """The repairs that are used."""
        return tuple(name for name in REPAIRS if name not in self.reasons)

    def with_reason(self, stage: str, reason: str) -> "Health":
        """The same with one more stage that cannot be tested."""
        return Health(self.moved, self.low, self.high, self.limit, {**self.reasons, stage: reason})


def limit_of(deficit: float) -> float:
    """Nats by which a repair may move ordinary tokens: 0.05, or 2% of a pool's deficit where that is more."""
    return max(HEALTHY, _OF_DEFICIT * deficit)


def moves(ordinary: xr.DataArray) -> xr.Dataset:
    """How far repairs move ordinary tokens, with confidence sequences over the sequences drawn so far.

    Args:
        ordinary: [combination at], log-probs, `none` among the combinations; the coordinate `sequence` [at].

    Returns:
        `moved`, `low` and `high` [combination], nats: a move is shown to be within a limit when both ends are, by two
        one-sided tests at 5%, valid at any stopping time.
    """
    by = (ordinary - ordinary.sel(combination="none")).transpose("at", "combination").values
    _, index, count = np.unique(ordinary["sequence"].values, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), by.shape[1]))
    np.add.at(total, index, by)
    mean, low, high = confidence_sequence(total / count[:, None])
    coords = {"combination": ordinary["combination"].values}
    return xr.Dataset(
        {
            name: xr.DataArray(np.nan_to_num(end), dims="combination", coords=coords)
            for name, end in (("moved", mean), ("low", low), ("high", high))
        }
    )


def decided(ordinary: xr.DataArray, limit: float) -> bool:
    """Is it clear for every upstream repair whether it moves ordinary tokens by less than the limit?"""
    if len(np.unique(ordinary["sequence"].values)) < _FEWEST:
        return False
    found = moves(ordinary).sel(combination=[n for n in _upstream() if n in ordinary["combination"].values])
    less = (found["low"] > -limit) & (found["high"] < limit)
    more = (found["low"] > limit) | (found["high"] < -limit)
    return bool((less | more).all())


def health(
    ordinary: xr.DataArray, controls: xr.DataArray | None, limit: float, absent: str, told: float = 1.0
) -> Health:
    """Which upstream repairs may be used.

    Args:
        ordinary: as `moves` takes it, for the upstream repairs.
        controls: the same for `PARTS`, `CONTROLS` and `ROUTE`.
        limit: nats.
        absent: why no upstream repair can be made; "" where they can.
        told: the share of the variance of held-out tokens' values that the maps from rows explain.
    """
    found = moves(ordinary)
    if controls is not None:
        of_controls = moves(controls)
        found = xr.concat([found, of_controls.drop_sel(combination="none")], "combination")
    # read-out and suppression do nothing to tokens without a deficit
    upstream = [combination_name(tuple(r for r in s if r in UPSTREAM)) for s in subsets(REPAIRS)]
    names = [combination_name(s) for s in subsets(REPAIRS)]
    known = set(map(str, found["combination"].values))
    ends = {}
    for name in ("moved", "low", "high"):
        of = {c: float(found[name].sel(combination=c)) for c in known}
        values = [of.get(c, np.nan) for c in upstream]
        extra = [of[c] for c in sorted(known - set(names))]
        ends[name] = xr.DataArray(
            np.array([*values, *extra]),
            dims="combination",
            coords={"combination": [*names, *sorted(known - set(names))]},
        )
    whole = Health(ends["moved"], ends["low"], ends["high"], limit, {})
    if absent:
        return Health(whole.moved, whole.low, whole.high, limit, dict.fromkeys(UPSTREAM, absent))
    worst = xr.where(abs(whole.low) > abs(whole.high), whole.low, whole.high)
    used = safe_repairs(worst, limit, UPSTREAM)
    for repair in set(UPSTREAM) - set(used):
        whole = whole.with_reason(repair, _why(whole, repair, used))
    reason = "" if controls is None else _ineffective(controls, told)
    return whole.with_reason("content", reason) if reason and "content" in used else whole


def against_readout(own: xr.Dataset, limit: float) -> str:
    """Why fitted rows cannot test read-out on a pool; "" where they can.

    Args:
        own: what was measured on the pool.
        limit: nats by which a repair may move ordinary tokens.
    """
    if not bool(own["readable"]):
        return "the residual stream does not encode which token it is, so no row can be fitted"
    if not bool(own["fitted"]):
        return ""
    value = own["value"].mean("pairing")
    moved = (value.sel(combination="paired, other rows") - value.sel(combination="paired")).sel(quantity="log_prob")
    by = float(moved.mean())
    if abs(by) > limit:
        return f"fitted rows move the paired ordinary tokens by {by:+.2f} nats, and at most {limit:.2f} is allowed"
    cluster = value.sel(quantity="cluster").mean("at")
    at = {str(c): float(v) for c, v in zip(cluster["combination"].values, cluster.values, strict=True)}
    # rows are fitted without suppression, to unrepaired runs or, where those gain nothing, with everything repaired
    states = [(), tuple(r for r in UPSTREAM if not np.isnan(at[r]))]
    without, within = zip(*(_with_and_without_rows(state) for state in states), strict=True)
    k = 0 if at[within[0]] - at[without[0]] > 2 * HEALTHY else 1
    gained, lost = at[within[k]] - at[without[k]], at[within[k]] - at[NOTHING[-1]]
    carried = at["paired"] - at[UNCARRIED]
    if gained > 2 * HEALTHY and lost < min(_SPECIFIC * min(gained, carried), _ENOUGH_LOST):
        return (
            f"fitted rows gain {gained:.2f} nats and lose {max(0.0, lost):.2f} when the induction heads carry nothing "
            f"of the token (ordinary tokens lose {carried:.2f}), so they do not read what the heads carry"
        )
    return ""


def _with_and_without_rows(state: tuple[str, ...]) -> tuple[str, str]:
    """The names of some upstream repairs with that of suppression, without fitted rows and with them."""
    without = tuple(r for r in REPAIRS if r in (*state, "suppression"))
    within = tuple(r for r in REPAIRS if r in (*state, "suppression", "readout"))
    return combination_name(without), combination_name(within)


def safe_repairs(moved: xr.DataArray, limit: float, repairs: Sequence[str] = REPAIRS) -> tuple[str, ...]:
    """The repairs that leave ordinary tokens unchanged, alone and together; `moved` [combination], nats."""
    used = tuple(repairs)
    while True:
        by = {s: abs(float(moved.sel(combination=combination_name(s)))) for s in subsets(used)}
        drifting = [s for s in by if by[s] > limit]
        if not drifting:
            return used
        fewest = min(map(len, drifting))
        worst = max((s for s in drifting if len(s) == fewest), key=lambda s: by[s])
        # among several that fail only together, drop the one that fails most often
        drop = max(worst, key=lambda name: (sum(name in s for s in drifting), -REPAIRS.index(name)))
        used = tuple(name for name in used if name != drop)


def _upstream() -> list[str]:
    return [combination_name(s) for s in subsets(UPSTREAM)]


def _why(found: Health, repair: str, used: Collection[str]) -> str:
    """Why a repair is not used: how far it moves ordinary tokens alone or, if little, with the repairs in use."""
    for chosen in ((repair,), tuple(r for r in UPSTREAM if r in used or r == repair)):
        at = combination_name(chosen)
        moved, low, high = (float(end.sel(combination=at)) for end in (found.moved, found.low, found.high))
        if max(abs(low), abs(high)) > found.limit:
            break
    beside = "" if len(chosen) == 1 else " with the others"
    return (
        f"its repair{beside} moves ordinary tokens by {moved:+.2f} nats ({low:+.2f} .. {high:+.2f}), and at most "
        f"{found.limit:.2f} is allowed"
    )


def _ineffective(ordinary: xr.DataArray, told: float) -> str:
    """Why the repair of content is uninformative: it does not undo damage that it should undo; "" where it does."""
    if told < _TOLD:
        return f"input rows explain only {max(0.0, told):.0%} of what the induction heads carry of held-out tokens"
    means = ordinary.mean("at")
    none, blind, repaired = (float(means.sel(combination=c)) for c in ("none", *CONTROLS))
    cost = none - blind
    if cost < HEALTHY:
        return f"ordinary tokens hardly depend on what the induction heads carry ({cost:.2f} nats)"
    if repaired - blind < _REPAIRED * cost:
        return (
            f"its repair restores only {max(0.0, repaired - blind) / cost:.0%} of the {cost:.2f} nats that ordinary "
            "tokens lose when the induction heads carry the mean over all tokens"
        )
    return ""
