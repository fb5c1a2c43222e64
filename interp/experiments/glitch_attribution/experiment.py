"""Why does copying fail on these tokens? The deficit against ordinary ones, split into identity and stages, in nats."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.heads import classify_on_reference, heads_of_kind
from interp.hooks import Head, attention_layers
from interp.identities import require
from interp.progress import track
from interp.repairs.health import HEALTHY, Health, against_readout, decided, health, limit_of, safe_repairs
from interp.repairs.minimal_study import CONTROLS, UPSTREAM, MinimalStudy
from interp.repairs.ordinary_heads import OrdinaryHeads, ordinary_heads, without_values
from interp.repairs.shapley_values import shapley_bounds, subsets
from interp.repairs.study import QUANTITIES, REPAIRS, ROLES, RepairStudy, combination_name
from interp.repairs.unembedding import Unembedding
from interp.results import Keep, at_once, label
from interp.statistics import groups_differ_p, mean_interval, permutation_p
from interp.tokens import Draw, Pool
from interp.verdicts import verdict

STAGES = ("identity", *REPAIRS, "unexplained")
_GAIN = 2 * HEALTHY  # nats that more repairs must gain over fewer: two sets may differ by as much on ordinary tokens
_MOST_DRAWS = 32  # of ordinary tokens, until it is clear whether repairs leave them unchanged
BUDGETS = {"quick": {"batch": 8, "length": 10}, "thorough": {"batch": 256}}


def glitch_attribution(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    pairings: int = 2,
    fits: int = 4,
    repairs: Literal["minimal", "transplant"] = "minimal",
    seed: int = 0,
) -> xr.Dataset:
    """Split a pool's deficit against paired ordinary tokens (nats, where context determines the token) into causes.

    docs/causes.md describes the causes, their repairs, and when a stage counts as tested.

    Args:
        model: any loaded model with attention in every layer that neither caps nor scales its logits.
        pools: the tokens that are asked about.
        draw: draws sequences.
        keep: stores finished parts.
        reference: the pool of ordinary tokens to compare with (default: the model's).
        pairings: how many times each sequence is paired, a positive integer.
        fits: how many times as many other sequences readouts are fitted on, a positive integer; up to four times that,
            until each token is tested 16 times on average.
        repairs: "minimal" changes the heads of the copying circuit only, "transplant" carries over whole runs.
        seed: decides which ordinary tokens are drawn as controls.

    Returns:
        `deficit` [pool], nats: log p(c) - log p(t), positive where the pool's token t is predicted worse than the
        ordinary token c in its place. `share` [pool stage] sums to it: the identity, Shapley values of the four
        repairs, and what is `unexplained`. `..._low` and `..._high` are 95% intervals; NaN is a share that was not
        tested, for the `reason` [pool stage]. The attribute `verdict` says it in words; docs/causes.md lists the rest.

    Raises:
        InterpError: the model caps its logits, pools are too small to pair or drawn with replacement, or a number is
            not positive.

    Source:
        L. Shapley 1953, A Value for n-Person Games.

    Example:
        >>> few = dict(batch=4, pairings=1, fits=1, length=6, reference="33:65")
        >>> result = interp.run("glitch_attribution", "wired", "1:33", **few)
        >>> abs(result["deficit"].item()) < 0.1  # the hand-wired model copies all tokens alike
        True
    """
    if pairings < 1 or fits < 1:
        raise InterpError(f"pairings {pairings}, fits {fits}: use positive integers")
    require(model, "patterns", "heads", "residual", "readout")
    if len(attention_layers(model)) < model.cfg.n_layers:
        raise InterpError(
            "some layers of this model mix positions without attention, which no stage stands for: no causes can be "
            "given; use logit_lens or activation_patching"
        )
    unembedding = Unembedding(model)
    healthy, found = classify_on_reference(model, draw, keep, reference, seed=seed)
    for pool in pools:  # what cannot be paired is refused before anything is measured
        draw(healthy, paired_with=draw(pool))
    heads = {kind: sorted(heads_of_kind(found, kind)) for kind in ("induction", "previous")}
    study = RepairStudy(
        model, healthy, sorted({*heads["induction"], *heads["previous"]}), unembedding, draw, pairings, fits, seed
    )
    measured = _transplanted(study, pools, keep) if repairs == "transplant" else _minimal(study, heads, pools, keep)
    parts, sentences = [], []
    for pool, (own, of_pool) in zip(pools, measured, strict=True):
        part, sentence = _shares(own, of_pool, capped=repairs == "minimal")
        parts.append(part)
        sentences.append(f"{pool.name}: {sentence}")
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    data = xr.concat(parts, names, join="outer", fill_value={"member_id": -1}).assign(_between_pools(parts, names))
    return data.assign_attrs(verdict="\n".join(sentences), among=healthy.name)


def _transplanted(study: RepairStudy, pools: list[Pool], keep: Keep) -> list[tuple[xr.Dataset, Health]]:
    """The measurements of each pool with whole runs transplanted, and of ordinary tokens."""
    value = keep("ordinary tokens", study.measure_ordinary)["value"].mean(["pairing", "at"])
    # content inserts other tokens, so these must stay unchanged
    base = ["paired" if "content" in str(c) else "none" for c in value["combination"].values]
    moved = value - value.sel(combination=base).values  # [combination quantity]
    log_prob = moved.sel(quantity="log_prob")
    used = safe_repairs(log_prob, HEALTHY)
    reasons = {
        repair: f"its repair moves ordinary tokens by {float(log_prob.sel(combination=repair)):+.2f} nats, or with "
        f"others by more, and at most {HEALTHY} is allowed"
        for repair in REPAIRS
        if repair not in used
    }
    found = Health(moved, log_prob, log_prob, HEALTHY, reasons)
    listed = track(pools, "pools", total=len(pools))
    return [(keep(pool.name, partial(study.measure, pool)), found) for pool in listed]


def _minimal(
    study: RepairStudy, heads: Mapping[str, list[Head]], pools: list[Pool], keep: Keep
) -> list[tuple[xr.Dataset, Health]]:
    """The measurements of each pool with minimal repairs, and of ordinary tokens."""
    model, draw, healthy = study.model, study.draw, study.healthy
    absent = without_values(model, heads["induction"])
    of, told = None, 0.0
    if not absent:
        make = partial(ordinary_heads, model, heads["induction"], heads["previous"], draw, healthy)
        seen = keep("heads on ordinary tokens", make)
        of, told = OrdinaryHeads.of(model, seen), float(seen["told"].mean())
    shared = study.model, study.healthy, study.heads, study.unembedding, draw, study.pairings, study.fits, study.seed
    plain = MinimalStudy(*shared, of=of)
    if of is not None:
        of = dataclasses.replace(of, scale=float(keep("calibrated attention", plain.calibration)["scale"]))
        plain = MinimalStudy(*shared, of=of)
    limits = []
    for pool in pools:
        lacks = keep(f"{pool.name}: deficit", partial(plain.deficit, pool))
        limits.append(limit_of(float(lacks["paired"].mean() - lacks["none"].mean())))
    ordinary = _ordinary(plain, min(limits), keep)
    controls = None if absent else keep("controls on ordinary tokens", plain.ordinary_controls)["value"]
    found = []
    for pool, limit in track(zip(pools, limits, strict=True), "pools", total=len(pools)):
        of_pool = health(ordinary, controls, limit, absent, told)
        mine = MinimalStudy(*shared, of=of, upstream=tuple(r for r in UPSTREAM if r in of_pool.used))
        own = keep(pool.name, partial(mine.measure, pool))
        reason = against_readout(own, limit)
        found.append((own, of_pool.with_reason("readout", reason) if reason else of_pool))
    return found


def _ordinary(study: MinimalStudy, limit: float, keep: Keep) -> xr.DataArray:
    """Log-probs [combination at] of ordinary tokens with repairs, of as many sequences as the decision needs."""
    found: list[xr.DataArray] = []
    for number in track(range(_MOST_DRAWS), "ordinary tokens with repairs", total=_MOST_DRAWS):
        value = keep(f"ordinary tokens {number}", partial(study.ordinary_draw, number))["value"]
        found.append(value.assign_coords(sequence=value["sequence"] + (number << 20)))
        together = xr.concat(found, "at")
        if decided(together, limit):
            break
    return together


def _shares(own: xr.Dataset, of_ordinary: Health, *, capped: bool) -> tuple[xr.Dataset, str]:
    """The result of one pool, and the verdict on it.

    Args:
        own: what was measured on it.
        of_ordinary: which repairs may be used.
        capped: whether the value of a set of repairs is limited to that of the paired run.
    """
    mean, used = own["value"].mean("pairing"), of_ordinary.used
    cluster = mean.sel(quantity="cluster")
    paired, none = mean.sel(combination="paired"), mean.sel(combination="none")
    values, gains = _set_values(cluster, used)
    level = paired.sel(quantity="cluster").values
    overshoot = max(0.0, max(float(value.mean()) for value in values.values()) - float(level.mean()))
    if capped:  # at the paired run's level or, where that is lower, at the unrepaired one
        top = max(level, values[frozenset()], key=np.mean)
        values = {s: top if value.mean() > top.mean() else value for s, value in values.items()}
    lost = (mean.sel(quantity="log_prob") - cluster).transpose("at", "combination")  # log p(t | C)
    untested = [name for name in REPAIRS if name not in used]
    best = values[frozenset(used)]
    most = level if level.mean() > best.mean() else best
    ends = shapley_bounds(values, used, untested, most)
    identity = (lost.sel(combination="paired") - lost.sel(combination="none")).values
    ends["identity"] = identity, identity
    ends["unexplained"] = level - (most if untested else best), level - best
    bounds = [np.column_stack([ends[name][k] for name in STAGES]) for k in (0, 1)]  # [at stage]
    deficit = (paired - none).sel(quantity="log_prob").values
    return _summarised(own, of_ordinary, bounds, deficit, gains, lost, overshoot)


def _summarised(
    own: xr.Dataset,
    of_ordinary: Health,
    bounds: list[np.ndarray],
    deficit: np.ndarray,
    gains: Mapping[frozenset[str], float],
    lost: xr.DataArray,
    overshoot: float,
) -> tuple[xr.Dataset, str]:
    """Means and intervals of shares whose ends `bounds` [at stage] are given at each place, and the verdict."""
    sequence, token = own["sequence"].values, own["token"].values
    least, most = (_means(end, sequence) for end in bounds)  # [sequence stage]
    of_sequence = _means(deficit[:, None], sequence)
    sentence, largest = verdict(
        least, most=most, deficit=of_sequence[:, 0], gains=gains, stages=STAGES, repairs=REPAIRS,
        reasons=of_ordinary.reasons,
    )  # fmt: skip
    whole = mean_interval(of_sequence)[:, 0]
    middle, low, high = _share_intervals(least, most, of_ordinary)
    known = np.array([np.array_equal(*ends) for ends in zip(least.T, most.T, strict=True)])
    tested = np.array([name not in of_ordinary.reasons for name in STAGES])
    middle = np.where(known & tested, middle, np.nan)
    of_token = np.where(known & tested, _means(bounds[0], token), np.nan)
    data = _measured(own, of_ordinary, lost) | {
        "share": (middle, "stage"),
        "share_low": (np.where(tested, low, np.nan), "stage"),
        "share_high": (high, "stage"),
        "largest": (np.where(tested, largest, np.nan), "stage"),
        "token_share": (of_token, "member stage"),
        "token_deficit": (_means(deficit, token), "member"),
        "member_id": (np.unique(token), "member"),
    }
    by_place = np.column_stack([deficit, np.where(known & tested, bounds[0], np.nan)])
    p_values = _between_tokens(by_place, token, sequence)
    data |= {"tokens_deficit_p": (p_values[0], ""), "tokens_share_p": (p_values[1:], "stage")}
    coords: dict[str, Any] = {
        "stage": list(STAGES),
        "repair": list(REPAIRS),
        "combination": list(map(str, own["combination"].values)),
        "quantity": list(QUANTITIES),
        "role": list(ROLES),
        "member": np.arange(len(of_token)),
        "control": list(CONTROLS),
        **{name: own[name].values for name in ("component", "place", "depth", "way")},
    }
    dataset = xr.Dataset({name: label(name, array, dims, coords) for name, (array, dims) in data.items()})
    dataset["reason"] = ("stage", np.array([of_ordinary.reasons.get(name, "") for name in STAGES], dtype=object))
    dataset = dataset.assign({name: own[name] for name in ("attention", "cargo", "attention_scale") if name in own})
    single = {
        "deficit": whole[0], "deficit_low": whole[1], "deficit_high": whole[2], "overshoot": overshoot,
        "health_limit": of_ordinary.limit, "near_duplicates": float(own["alike"].mean()), "fitted": bool(own["fitted"]),
    }  # fmt: skip
    return dataset.assign({name: xr.DataArray(value) for name, value in single.items()}), sentence


def _between_tokens(values: np.ndarray, token: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """[...] p-values of differences between tokens of a pool, of values [at ...]."""
    both, index = np.unique(np.column_stack([sequence, token]), axis=0, return_inverse=True)
    sequence, token = both.T  # once, however often it is repeated there
    # single tokens among others have a sequence each
    blocks = sequence if len(np.unique(sequence)) < len(sequence) else np.zeros_like(sequence)
    return groups_differ_p(_means(values, index.ravel()), token, blocks)


def _between_pools(parts: Sequence[xr.Dataset], names: xr.DataArray) -> dict[str, xr.DataArray]:
    """p-values of differences between pools, from the values of each of their tokens; NaN for a pool and itself."""
    found = {}
    for name in ("deficit", "share"):
        of_pool = [part[f"token_{name}"].transpose("member", ...) for part in parts]
        shape = (len(parts), len(parts), *of_pool[0].shape[1:])
        p_values = np.full(shape, np.nan)
        for i, j in product(range(len(parts)), repeat=2):
            if i != j:
                p_values[i, j] = permutation_p(of_pool[i].values, of_pool[j].values)
        coords = {"pool": names.values, "other_pool": names.values, "stage": list(STAGES)}
        dims = "pool other_pool stage" if len(shape) > 2 else "pool other_pool"
        found[f"pools_{name}_p"] = label(f"pools_{name}_p", p_values, dims, coords)
    return found


def _share_intervals(
    least: np.ndarray, most: np.ndarray, of_ordinary: Health
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of shares [stage], and the ends of their intervals, with what repairs move ordinary tokens by in them."""
    middle, low, _ = mean_interval(least)
    top, _, high = mean_interval(most)
    # a bound that is the same in every sequence has no interval, and is the end itself
    if len(least) > 1:
        low = np.where(np.ptp(least, 0) > 0, low, middle)
        high = np.where(np.ptp(most, 0) > 0, high, top)
    for repair in of_ordinary.used:
        move = [float(end.sel(combination=repair)) for end in (of_ordinary.low, of_ordinary.high)]
        if move[0] < move[1]:  # where it has an interval
            at = STAGES.index(repair)
            low[at], high[at] = low[at] - max(0.0, move[1]), high[at] + max(0.0, -move[0])
    return middle, low, high


def _measured(
    own: xr.Dataset, of_ordinary: Health, lost: xr.DataArray
) -> dict[str, tuple[np.ndarray | list[Any], str]]:
    """The results of every combination and of the streams: arrays and their dimensions."""
    mean, sequence = own["value"].mean("pairing"), own["sequence"].values
    cluster = mean.sel(quantity="cluster")
    # means of sequences, as the shares are
    by_sequence = _means(mean.transpose("at", "combination", "quantity").values, sequence).mean(0)
    identity = _means(lost.values, sequence).mean(0)
    combinations = list(map(str, own["combination"].values))
    none = cluster.sel(combination="none").mean()
    moved = of_ordinary.moved
    if "quantity" not in moved.dims:
        moved = moved.expand_dims(quantity=["log_prob"]).reindex(quantity=list(QUANTITIES))
    moved = moved.transpose("combination", "quantity").reindex(combination=[*combinations, *CONTROLS])
    ends = [end.reindex(combination=combinations).values for end in (of_ordinary.low, of_ordinary.high)]
    return {
        "used": ([name in of_ordinary.used for name in REPAIRS], "repair"),
        "alone": ([float(cluster.sel(combination=name).mean() - none) for name in REPAIRS], "repair"),
        "value": (by_sequence, "combination quantity"),
        "identity_in": (identity[combinations.index("paired")] - identity, "combination"),
        "health": (moved.values[: len(combinations)], "combination quantity"),
        "health_low": (ends[0], "combination"),
        "health_high": (ends[1], "combination"),
        "control_health": (moved.values[len(combinations) :, 0], "control"),
        "against": (own["against"].values, "component"),
        "retrieval": (own["retrieval"].values, "role place depth way"),
        "chance": (own["chance"].values, "role"),
    }


def _set_values(
    cluster: xr.DataArray, used: tuple[str, ...]
) -> tuple[dict[frozenset[str], np.ndarray], dict[frozenset[str], float]]:
    """The value [at] of every set of repairs, and its mean gain: those of its smallest good subset.

    A repair that makes things worse is left out, by the mean over all places of `cluster` [combination at].
    """
    of = {frozenset(s): cluster.sel(combination=combination_name(s)) for s in subsets(used)}
    levels = {s: float(value.mean()) for s, value in of.items()}
    values, gains = {}, {}
    for chosen in of:
        within = sorted((s for s in of if s <= chosen), key=lambda s: (len(s), -levels[s]))
        most = max(levels[s] for s in within)
        best = next(s for s in within if levels[s] >= most - _GAIN)
        values[chosen], gains[chosen] = of[best].values, levels[best] - levels[frozenset()]
    return values, gains


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means of rows [row ...] over groups, [group ...], groups in sorted order."""
    _, index, count = np.unique(groups, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), *values.shape[1:]))
    np.add.at(total, index, values)
    return total / count.reshape(-1, *[1] * (values.ndim - 1))
