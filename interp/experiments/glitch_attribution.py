"""Why does copying fail on these tokens? The deficit against ordinary tokens, split into identity and stages, in nats."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import called, on_reference
from interp.results import Keep, at_once, label
from interp.stages import QUANTITIES, REPAIRS, ROLES, Study, Unembedding, named, shapley, subsets
from interp.statistics import mean_interval
from interp.tokens import Draw, Pool
from interp.verdicts import verdict

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

STAGES = ("identity", *REPAIRS, "unexplained")
HEALTHY = 0.05  # nats by which a repair may move ordinary tokens
_GAIN = 2 * HEALTHY  # nats that more repairs must gain over fewer: two sets may differ by as much on ordinary tokens


def glitch_attribution(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    pairings: int = 2,
    fits: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Split what a pool's tokens lack of paired ordinary ones (nats, where context can tell them) into causes.

    `deficit` [pool] is log p(c) - log p(t), t a tested token and c the ordinary one in its place in a paired sequence. `share`
    [pool stage] sums to it: `identity`, what log p(t | C) lacks, C being t and its near-duplicates (`stages.near_duplicates`); the
    Shapley values, for log p(C), of four repairs; and what all repairs together leave, `unexplained`. The repairs:

    - `matching`: attention in all heads is that of the paired sequence, with a little of another pairing's: a single one's costs
      ordinary tokens up to 0.04 nats, and the mean of two helps them as much. `value` has it for the called heads only, too.
    - `content`: the paired sequence is run, under the attention of the pool's own run (or with matching, its own), and the end of the
      residual stream is re-addressed from c to t. Where several near-duplicates stand in the sequence, any of their images counts.
    - `readout`: t is read by a row fitted on other sequences (`stages.Reader`), where this repairs at least half of what is
      missing; then content is addressed to that row, too.
    - `suppression`: components that write against the pool beyond chance have the mean write that they have in the paired runs.

    A repair that moves ordinary tokens (studied in the same way; of these nothing is missing, so that no rows are fitted and nothing is
    found against them) by more than 0.05 nats, alone or
    with others, is not used: `used` [pool repair], `health` [pool combination quantity]; with content, which puts other
    ordinary tokens in, the move is from these. A repair that makes things worse is left out: the
    value of a set of repairs is that of its smallest subset which comes within 0.1 nats of the best: so far may two be apart on ordinary tokens. `value` [pool combination quantity] is what was measured: log-prob of the
    token, of its cluster, and log-odds. `alone` [pool repair] is what each repair gains by itself.

    `deficit_low`, `deficit_high`, `share_low`, `share_high` are 95% intervals over sequences and their `pairings`; `fits` times
    as many other sequences (and up to four times that, until a token is tested 16 times on average) fit readers and find what is written against a pool. `largest` [pool stage] is the share of bootstrap
    samples in which a stage is the largest; the attribute `verdict` says it in words. `token_deficit` [pool member] and `token_share` [pool
    member stage] are the same per token (`member_id`). `identity_in` [pool combination] is the identity lost with repairs
    made. In `value`, `paired` is the paired run, and `paired, other rows` the same with the pool's rows fitted. `retrieval` [pool role place depth way] is how often the residual stream tells which token it is, at its source
    and where it is predicted (chance: `chance` [pool role]), of the tokens that the other sequences hold, beside as many ordinary ones. `against` [pool component] are logits written against the pool.

    Raises `InterpError` where the model caps its logits, and for pools too small to pair.
    """
    if pairings < 1 or fits < 1:
        raise InterpError(f"pairings {pairings}, fits {fits}: use whole numbers from 1 up")
    unembedding = Unembedding(model)
    healthy, found = on_reference(model, draw, keep, reference, seed=seed)
    heads = sorted({at for kind in ("induction", "previous") for at in called(found, kind)})
    study = Study(model, healthy, heads, unembedding, draw, pairings, fits, seed)
    ordinary = keep("ordinary tokens", study.health)
    parts, words = [], []
    for pool in pools:
        of_pool, said_of = _shares(keep(pool.name, partial(study.of, pool)), ordinary["value"])
        parts.append(of_pool)
        words.append(f"{pool.name}: {said_of}")
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    data = xr.concat(parts, names, join="outer", fill_value={"member_id": -1})
    return data.assign_attrs(verdict="\n".join(words), among=healthy.name)


def _shares(own: xr.Dataset, ordinary: xr.DataArray) -> tuple[xr.Dataset, str]:
    """The result of one pool, and the verdict on it; `ordinary`, what was measured on ordinary tokens."""
    mean = own["value"].mean("pairing")
    moved = ordinary.mean(["pairing", "at"])
    # content puts other tokens in: what it leaves as it is are these
    base = ["paired" if "content" in str(c) else "none" for c in moved["combination"].values]
    health = moved - moved.sel(combination=base).values
    used = _healthy(health.sel(quantity="log_prob"))
    # a repair that makes things worse is left out: the smallest good subset, by the mean over all places
    cluster = mean.sel(quantity="cluster")
    levels = {frozenset(s): float(cluster.sel(combination=named(s)).mean()) for s in subsets(used)}
    best = {}
    for chosen in levels:
        within = sorted((t for t in levels if t <= chosen), key=lambda t: (len(t), -levels[t]))
        most = max(levels[t] for t in within)
        best[chosen] = next(t for t in within if levels[t] >= most - _GAIN)
    values = {s: cluster.sel(combination=named(_ordered(best[s]))).values for s in levels}  # [at]
    worth = shapley(values, used)
    paired = mean.sel(combination="paired")
    none = mean.sel(combination="none")
    nothing = np.zeros(cluster.sizes["at"])
    identity = _lost(paired) - _lost(none)
    every = {"identity": identity} | {name: worth.get(name, nothing) for name in REPAIRS}
    every["unexplained"] = paired.sel(quantity="cluster").values - values[frozenset(used)]
    shares = np.stack([every[name] for name in STAGES], -1)  # [at stage]
    deficit = (paired - none).sel(quantity="log_prob").values
    of_sequence = _means(np.column_stack([shares, deficit]), own["sequence"].values)
    of_token = _means(np.column_stack([shares, deficit]), own["token"].values)
    middle, low, high = mean_interval(of_sequence)
    alone = [float(cluster.sel(combination=name).mean() - cluster.sel(combination="none").mean()) for name in REPAIRS]
    gains = {s: levels[best[s]] - levels[frozenset()] for s in levels}
    words, largest = verdict(of_sequence[:, :-1], of_sequence[:, -1], gains, STAGES, REPAIRS)
    coords: dict[str, Any] = {
        "stage": list(STAGES), "repair": list(REPAIRS), "combination": list(map(str, own["combination"].values)),
        "quantity": list(QUANTITIES), "role": list(ROLES), "member": np.arange(len(of_token)),
        **{name: own[name].values for name in ("component", "place", "depth", "way")},
    }  # fmt: skip
    weight = np.bincount(np.unique(own["sequence"].values, return_inverse=True)[1])
    if len(set(weight)) > 1:  # sequences with more places count for more in a mean over places, not here
        middle = of_sequence.mean(0)
    in_each = {
        c: _means(_lost(mean.sel(combination=c))[:, None], own["sequence"].values).mean() for c in coords["combination"]
    }
    by_sequence = {  # means of sequences, as the shares are
        c: _means(mean.sel(combination=c).transpose("at", "quantity").values, own["sequence"].values).mean(0)
        for c in coords["combination"]
    }
    data = {
        "deficit": xr.DataArray(middle[-1]), "deficit_low": xr.DataArray(low[-1]), "deficit_high": xr.DataArray(high[-1]),
        "share": label("share", middle[:-1], "stage", coords),
        "share_low": label("share_low", low[:-1], "stage", coords), "share_high": label("share_high", high[:-1], "stage", coords),
        "largest": label("largest", largest, "stage", coords),
        "used": label("used", [name in used for name in REPAIRS], "repair", coords),
        "alone": label("alone", alone, "repair", coords),
        "value": label("value", np.stack(list(by_sequence.values())), "combination quantity", coords),
        "identity_in": label("identity_in", [in_each["paired"] - v for v in in_each.values()], "combination", coords),
        "health": label("health", health.transpose("combination", "quantity").values, "combination quantity", coords),
        "token_share": label("token_share", of_token[:, :-1], "member stage", coords),
        "token_deficit": label("token_deficit", of_token[:, -1], "member", coords),
        "member_id": label("member_id", np.unique(own["token"].values), "member", coords),
        "near_duplicates": xr.DataArray(float(own["alike"].mean())),
        "against": label("against", own["against"].values, "component", coords),
        "retrieval": label("retrieval", own["retrieval"].values, "role place depth way", coords),
        "chance": label("chance", own["chance"].values, "role", coords),
        "fitted": xr.DataArray(bool(own["fitted"])),
    }  # fmt: skip
    return xr.Dataset({name: value.drop_attrs() if name != "share" else value for name, value in data.items()}), words


def _healthy(moved: xr.DataArray) -> tuple[str, ...]:
    """The repairs that leave ordinary tokens as they are, alone and together."""
    used: tuple[str, ...] = REPAIRS
    while True:
        sick = {s: abs(float(moved.sel(combination=named(s)))) for s in subsets(used)}
        sick = {s: by for s, by in sick.items() if by > HEALTHY}
        if not sick:
            return used
        fewest = min(map(len, sick))
        worst = max((s for s in sick if len(s) == fewest), key=lambda s: sick[s])
        # of several that fail only together, the one that fails most often
        drop = max(worst, key=lambda name: (sum(name in s for s in sick), -REPAIRS.index(name)))
        used = tuple(name for name in used if name != drop)


def _ordered(repairs: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in REPAIRS if name in repairs)


def _lost(values: xr.DataArray) -> np.ndarray:
    """[at]: log p(t | C)."""
    return values.sel(quantity="log_prob").values - values.sel(quantity="cluster").values


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means of rows [row ...] over groups, [group ...], groups in sorted order."""
    _, index = np.unique(groups, return_inverse=True)
    total = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(total, index, values)
    return total / np.bincount(index)[:, None]
