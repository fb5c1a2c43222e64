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
    """Decide for every token whether some state puts it first, and by how much the tokens of each pool can lead.

    Args:
        model: any loaded model.
        pools: the groups of tokens whose margins are averaged.
        keep: stores the verdicts, so that an interrupted run resumes.

    Returns:
        `verdict` [question token], a code that the coordinate `verdicts` names (argmaxable, tied, unargmaxable,
        undecided), for any state and for the states after the last norm. `margin` [question token], logits by which
        the token leads: the witness's for any state, the largest one after the norm; negative where it is never first.
        `spacing` [dtype token], logits: the distance between neighbouring numbers of a format at the token's logit.
        `member` [pool token]; `pool_margin` [pool], the mean margin, with its 95% interval over tokens,
        `pool_margin_low` and `pool_margin_high`.

    Raises:
        InterpError: the weights of the output layer are not available, or are not finite.

    Source:
        Grivas, Bogoychev and Lopez 2022, Low-Rank Softmax Can Have Unargmaxable Classes, arXiv 2203.06462.

    Example:
        >>> result = interp.run("argmaxability", "wired", "1:65")
        >>> (result["verdict"].sel(question="any state") == 0).sum().item()  # of 65 tokens, all can be first
        65
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
