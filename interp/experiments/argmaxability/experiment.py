"""Can these tokens ever be the arg-max? Verdicts and widest margins of the output layer, by pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp import argmax
from interp.results import Keep, at_once, label
from interp.statistics import mean_interval
from interp.tokens import Pool

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def argmaxability(model: TransformerBridge, pools: list[Pool], keep: Keep = at_once) -> xr.Dataset:
    """Decide for every token whether some state puts it first, and measure how widely each pool's tokens can lead.

    Args:
        model: any loaded model.
        pools: the groups of tokens whose margins are averaged.
        keep: stores the verdicts, so that an interrupted run goes on.

    Returns:
        `verdict` [question token], a code of the coordinate `verdicts` [code]: argmaxable, tied, unargmaxable or
        undecided (`interp.argmaxability`), for any state and for the states that the last norm can produce. `margin`
        [question token], logits: the witness's for any state (of norm 1 where there are no biases), and the widest one
        behind the norm, below 0 where the token is never first (NaN for models whose last norm is unknown). `spacing`
        [dtype token], logits: the distance of neighbouring numbers of a format at the token's logit there; a smaller
        margin may not show. `member` [pool token]: which tokens a pool has. `pool_margin` [pool], logits, with
        `pool_margin_low` and `pool_margin_high`: the mean margin behind the norm (in any state where there is none),
        and its 95% bootstrap interval over tokens.
    """
    # without the attribute `stages`, which is about the search
    result = keep("verdicts", lambda: argmax.dataset(argmax.argmaxability(model)).drop_attrs(deep=False))
    any_state, behind_norm = result["margin"].values
    margin = behind_norm if np.isfinite(behind_norm).any() else any_state
    coords = {"pool": [pool.name for pool in pools], "token": result["token"].values}
    member = np.stack([np.isin(result["token"], pool.ids) for pool in pools])
    intervals = np.stack([mean_interval(margin[list(pool.ids)]) for pool in pools], axis=1)
    names = ("pool_margin", "pool_margin_low", "pool_margin_high")
    by_pool = {name: label(name, values, "pool", coords) for name, values in zip(names, intervals, strict=True)}
    return result.assign(by_pool | {"member": label("member", member, "pool token", coords)})
