"""Can these tokens ever be the arg-max? Verdicts and widest margins of the output layer, by pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.results import Keep, at_once, label
from interp.tokens import Pool

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def argmaxability(model: TransformerBridge, pools: list[Pool], keep: Keep = at_once) -> xr.Dataset:
    """Ask of every token whether some state puts it first, and of each pool how wide its tokens' margins are.

    `verdict` [question token] is a code of the coordinate `verdicts` [code]: argmaxable, tied, unargmaxable, undecided (`interp.argmaxable`), for any
    state and for the states that the last norm can produce. `margin` [question token], in logits: the witness's for any state (of norm 1 where there
    are no biases), and the widest one behind the norm, below 0 where the token is never first (NaN for models whose last norm is unknown). `spacing` [dtype token] is
    the distance of neighbouring numbers of a format at the token's logit there: where the margin is smaller, such logits may not
    show it. `member` [pool token] says which tokens a pool has; `pool_margin` [pool], with `pool_margin_low` and `pool_margin_high`, is the mean margin behind the
    norm (in any state where there is none), and its 95% bootstrap interval over tokens.
    """
    from interp.argmax import argmaxable
    from interp.argmax.saved import dataset
    from interp.statistics import mean_interval

    every = keep("verdicts", lambda: dataset(argmaxable(model)))
    margins = every["margin"].values
    narrow = margins[1] if np.isfinite(margins[1]).any() else margins[0]
    found = [mean_interval(narrow[list(pool.ids)][:, None]) for pool in pools]
    coords = {"pool": [pool.name for pool in pools], "token": every["token"].values}
    member = np.stack([np.isin(every["token"].values, list(pool.ids)) for pool in pools])
    more = {"member": label("member", member, "pool token", coords)}
    for k, name in enumerate(("pool_margin", "pool_margin_low", "pool_margin_high")):
        more[name] = label(name, [float(values[k][0]) for values in found], "pool", coords)
    return every.assign(more)
