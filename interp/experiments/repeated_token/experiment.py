"""Does a model that reads one token again and again lose count of it, because each repeat looks like a first token?

With nothing in front, a model with rotary positions cannot tell A A A from A: every key holds the same value,
so that whatever attention does, each position carries on what the first one does. Behind BOS, and with learned
positions, it is a question.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.repeated_token.runs import SPECIAL, Drawn, Sink, measured, ordinary_positions
from interp.first_token import first_token
from interp.heads import reference_pool
from interp.models import token_texts
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.statistics import mean_interval
from interp.tokens import Pool

LONGEST = 256  # default number of repeats, if the context has room
SHARE = 0.5  # share of the first position's norm from which a repeat counts as like it
SLIGHT = 0.1  # nats below which a fall counts as none
CLEAR = 1.0  # nats below the peak at which the model has lost count
BUDGETS = {"quick": {"members": 4}, "thorough": {"members": 32}}


def repeated_token(
    model: TransformerBridge,
    pools: list[Pool],
    keep: Keep = at_once,
    *,
    members: int = 8,
    longest: int = 0,
    block: int = 8,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Feed one token n times in a row: is it predicted once more, and do its repeats look like a first token?

    Massive dimensions, and the first layer's output, are changed at the repeats, each beside a control.

    Args:
        model: any loaded model.
        pools: the tokens that are asked about.
        keep: stores finished parts.
        members: how many tokens of each pool, or as many as the smallest has; a positive integer.
        longest: the largest n; 0: 256, or as many as the context has room for.
        block: tokens in the repeated blocks of the same total length, for comparison.
        reference: the pool of ordinary tokens (default: the model's).
        seed: decides which tokens are taken.

    Returns:
        `log_prob` [change front pool member repeats], nats, of the same token after n of it; `block_log_prob` [front
        pool member repeats], nats, of the right token after n tokens of a repeated block. `norm` [front pool member
        layer repeats] and `first_norm`, of the residual stream. `share` [change front pool member]: the norm of the
        last repeat over that of the first position. `fall` [front pool member], nats from the peak to the last n;
        positive: the model loses count. docs/repeated_token.md lists the rest.

    Raises:
        InterpError: there are more repeats than the context has room for, no ordinary tokens, or a size is not
            positive.

    Source:
        Yona et al. 2025, Interpreting the Repeated Token Phenomenon, arXiv 2503.08908; Xiao et al. 2023, arXiv
        2309.17453.

    Example:
        >>> result = interp.run("repeated_token", "wired", "1:65", members=2, longest=8)
        >>> result["repeats"].values.tolist()
        [1, 2, 3, 4, 6, 8]
    """
    context = int(model.cfg.n_ctx)
    if longest > context - 1:
        raise InterpError(
            f"{longest} repeats and what stands first do not fit the context of {context}: use a longest of "
            f"{context - 1} or less"
        )
    if members < 1 or block < 2 or longest < 0 or longest == 1:
        raise InterpError(
            f"members {members}, block {block}, longest {longest}: use a positive integer, 2 or more, and 2 or more "
            "(0: what the context has room for)"
        )
    length = longest or min(LONGEST, context - 1)
    grid = log_grid(length)
    members = min([members, *map(len, pools)])
    ordinary = reference_pool(model, reference, seed=seed)
    bos = first_token(model).id
    fronts: dict[str, int | None] = {"nothing": None} | ({} if bos is None else {"BOS": bos})
    drawn = Drawn(model, ordinary, members, length, block, seed)
    found, special, layers, massive = [], [], [], []
    for name, front in fronts.items():
        about = keep(f"ordinary tokens after {name}", partial(ordinary_positions, drawn, front))
        sink = Sink.of(about)
        special.append(about["special"].values)
        layers.append(sink.layer)
        if sink.dimensions:
            massive.append(f"after {name}: {', '.join(map(str, sink.dimensions))}")
        parts = []
        for pool in track(pools, f"repeating tokens after {name}", total=len(pools)):
            made = keep(f"{pool.name} after {name}", partial(measured, drawn, pool, front, grid, sink))
            parts.append(made.drop_attrs())
        found.append(xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")))
    data = xr.concat(found, xr.DataArray(list(fronts), dims="front", name="front"))
    coords = {"front": list(fronts)}
    data["special"] = label("special", np.stack(special), "front layer", coords)
    data["sink_layer"] = label("sink_layer", np.array(layers), "front", coords)
    lost = data["log_prob"].sel(change="none").transpose("front", "pool", "member", "repeats").values
    coords["pool"] = [pool.name for pool in pools]
    data["fall"] = label("fall", fall_of(lost), "front pool member", coords)
    data["lost_from"] = label("lost_from", _lost_from(lost, data["fall"].values, grid), "front pool", coords)
    said = [verdict(data.sel(front=f, pool=p.name)) for f in fronts for p in pools]
    behind = "" if bos is None else token_texts(model, [bos])[0]
    attrs = {"verdict": "\n".join(said), "massive_dimensions": "; ".join(massive), "bos": behind}
    return data.assign_attrs(attrs, block=block)


def log_grid(most: int) -> np.ndarray:
    """The integers 1, 2, 3, 4, 6, 8, 12, ... up to `most`, inclusive."""
    powers = 2 ** np.arange(1 + int(np.log2(most)))
    return np.unique([n for n in (*powers, *(3 * powers // 2), most) if n <= most])


def fall_of(values: np.ndarray) -> np.ndarray:
    """By how much each member falls from the peak of the others to the end.

    Args:
        values: [... member repeats], nats.

    Returns:
        [... member], nats: the peak is that of the mean over the other half of the members (even or odd), so that it
        is not chosen for being high by chance; NaN for fewer than two.
    """
    found = np.full(values.shape[:-1], np.nan)
    if values.shape[-2] < 2:
        return found
    for half in (0, 1):
        peak = values[..., 1 - half :: 2, :].mean(-2).argmax(-1)  # [...]
        own = values[..., half::2, :]
        at_peak = np.take_along_axis(own, peak[..., None, None], -1)[..., 0]
        found[..., half::2] = at_peak - own[..., -1]
    return found


def _lost_from(values: np.ndarray, fall: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """[front pool]: the n from which on the mean lies a nat or more below its peak, where a fall is shown."""
    found = np.full(values.shape[:2], np.nan)
    for at in np.ndindex(*found.shape):
        mean = values[at].mean(0)
        if not mean_interval(fall[at])[1] > SLIGHT:
            continue
        peak = int(mean.argmax())
        above = np.flatnonzero(mean > mean[peak] - CLEAR)  # the last of these is the end of the plateau
        if above[-1] + 1 < len(grid):
            found[at] = grid[above[-1] + 1]
    return found


def verdict(at: xr.Dataset) -> str:
    """Whether count is lost, and whether the repeats are sinks, of one pool after one front, in words."""
    who = f"{at['pool'].item()} after {at['front'].item()}"
    last = int(at["repeats"].values[-1])
    return f"{who}: {_of_fall(at, last)}; {_of_sink(at, last)}"


def _of_fall(at: xr.Dataset, last: int) -> str:
    curve = at["log_prob"].sel(change="none").mean("member").values
    mean, low, high = mean_interval(at["fall"].values)
    said = f"log-prob {curve[0]:.2f} at n = 1, {curve[-1]:.2f} at n = {last}"
    if not np.isfinite(low):
        if at.sizes["member"] > 1 and np.ptp(at["fall"].values) < SLIGHT:
            low = high = mean  # constant values have no interval: the ends are the value itself
        else:
            return f"{said}: whether it falls is not testable with {at.sizes['member']} tokens"
    ends = f"{mean:.2f} nats ({low:.2f} .. {high:.2f})"
    if low > SLIGHT:
        lost = float(at["lost_from"])
        since = f", by a nat or more from n = {lost:.0f} on" if np.isfinite(lost) else ""
        return f"{said}: it falls by {ends}{since}"
    if high < SLIGHT:
        return f"{said}: it does not fall ({ends})"
    return f"{said}: whether it falls cannot be determined ({ends})"


def _of_sink(at: xr.Dataset, last: int) -> str:
    special = float(at["special"].max())
    if special < SPECIAL:
        shown = f"its norm is {special:.1f} times that at others"
        return f"whether repeats are sinks is not testable: the first position is not special ({shown})"
    mean, low, high = mean_interval(at["share"].sel(change="none").values)
    if not np.isfinite(low) and np.ptp(at["share"].sel(change="none").values) < 1e-3:
        low = high = mean
    ends = f"norm {mean:.2f} of the first position's"
    if low > SHARE:
        return f"the last repeat is like a first position ({ends})"
    if high < SHARE:
        return f"the last repeat is not like a first position ({ends})"
    return f"whether the last repeat is like a first position cannot be determined ({ends})"
