"""What does a check read from a result? A number, or heads or tokens, by small functions named in the file of values.

Each takes the Dataset of one experiment and keywords that select an entry. `pool` may be omitted if there is only one.
Tokens are named by id, heads as L5H1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InterpError


def log_prob(result: xr.Dataset, *, part: str, pool: str = "", definition: str = "inducible") -> float:
    """Mean log-prob (nats) of the `first` or `second` part, of `repeated_tokens`."""
    summary = _at(result, "summary", pool, part=part, definition=definition)
    return float(summary.sel(measure="log_prob", bound="mean"))


def loss(result: xr.Dataset, *, part: str, pool: str = "", definition: str = "inducible") -> float:
    """Mean loss (nats per token) of the `first` or `second` part, of `repeated_tokens`: minus its log-prob."""
    return -log_prob(result, part=part, pool=pool, definition=definition)


def head_score(result: xr.Dataset, *, head: str, key_kind: str, pool: str = "") -> float:
    """Mean attention that a head pays to one kind of key (induction, previous, ...).

    Of `attention_scores` or `induction_heads`.
    """
    return float(_head(_scores(result, key_kind, pool), head))


def top_heads(result: xr.Dataset, *, key_kind: str, most: int, pool: str = "") -> list[str]:
    """The `most` heads with the largest score on one kind of key, the largest first."""
    scores = _scores(result, key_kind, pool).transpose("layer", "head")
    order = np.argsort(-scores.values, axis=None, kind="stable")[:most]
    return [f"L{i // scores.sizes['head']}H{i % scores.sizes['head']}" for i in map(int, order)]


def heads_above(result: xr.Dataset, *, key_kind: str, above: float, pool: str = "") -> float:
    """How many heads score more than `above` on one kind of key."""
    return float((_scores(result, key_kind, pool) > above).sum())


def classified_heads(result: xr.Dataset, *, kind: str, pool: str = "") -> list[str]:
    """The heads that `induction_heads` classifies as induction, previous, duplicate or current, against its null."""
    found = _at(result, "classified", pool, kind=kind).transpose("layer", "head")
    return [f"L{layer}H{head}" for layer, head in np.argwhere(found.values.astype(bool)).tolist()]


def composition_ratio(result: xr.Dataset, *, mode: str, sender: str, receiver: str) -> float:
    """Composition score of two heads (mode Q, K or V) relative to the mean of the Gaussian baseline, of
    `induction_heads`.
    """
    layer, head = _place(sender)
    scores = _at(result, "composition", mode=mode, from_layer=layer, from_head=head)
    return float(_head(scores, receiver)) / float(_at(result, "baseline", mode=mode, bound="mean"))


def ablation_share(result: xr.Dataset, *, head: str, pool: str = "") -> float:
    """The cost of one head's ablation as a share of what the repeat gains (nats over nats), of `head_ablation`."""
    lost = _head(_at(result, "lost", pool), head).mean("batch")
    return float(lost / _at(result, "gain", pool).mean("batch"))


def indicator_mean(result: xr.Dataset, *, indicator: str, category: str = "") -> float:
    """Mean of an indicator over the vocabulary, or over the tokens of one category, of `undertrained`."""
    return float(_indicator(result, indicator, category).mean())


def indicator_deviation(result: xr.Dataset, *, indicator: str, category: str = "") -> float:
    """Standard deviation of an indicator over the vocabulary, or the tokens of one category, of `undertrained`."""
    return float(_indicator(result, indicator, category).std())


def indicator_of(result: xr.Dataset, *, indicator: str, token: int) -> float:
    """One token's indicator, of `undertrained`."""
    return float(_at(result, "value", indicator=indicator, token=token))


def max_probability_of(result: xr.Dataset, *, token: int) -> float:
    """The largest probability given to a token over prompts and steps, of `undertrained`; NaN if it was not tested."""
    return float(_at(_verified(result), "max_probability", token=token))


def verified_count(
    result: xr.Dataset, *, indicator: str, share: float = 0.02, category: str = "OK", kind: str = ""
) -> float:
    """How many of the tokens in the lowest `share` of an indicator are verified as under-trained, of `undertrained`.

    The share is of the tokens of `category`, as published; with `kind` (text, byte, ...), only tokens of that kind are
    counted. Tokens that were not tested do not count.
    """
    values = _indicator(result, indicator, category)
    tested = values[(values <= np.nanquantile(values, share)).values]
    asked = _verified(result)["max_probability"].sel(token=_of_kind(tested, kind)["token"])
    return float((asked < result.attrs["threshold"]).sum())


def strongest_tokens(
    result: xr.Dataset, *, indicator: str, most: int, category: str = "OK", kind: str = ""
) -> list[str]:
    """The `most` verified tokens with the lowest indicator, ids, the lowest first, of `undertrained`.

    Of one `category` and, where it is given, of one `kind` (text, byte, ...).
    """
    values = _of_kind(_indicator(result, indicator, category), kind)
    verified = _verified(result)["max_probability"].sel(token=values["token"]) < result.attrs["threshold"]
    left = values[verified.values]
    return [str(i) for i in left["token"].values[np.argsort(left.values, kind="stable")[:most]]]


def prompted(result: xr.Dataset, *, pool: str) -> float:
    """Share of a pool's tokens that the model says first when asked to repeat them, of `repeat_prompt`."""
    return float(_asked(result, "correct", pool).mean())


def prompted_probability(result: xr.Dataset, *, pool: str) -> float:
    """Mean over a pool's tokens of the largest probability at any step of the prompt, of `repeat_prompt`."""
    return float(_asked(result, "probability", pool).max("new_token").mean())


Reader = Callable[..., float] | Callable[..., list[str]]
NUMBERS: dict[str, Callable[..., float]] = {
    reader.__name__: reader
    for reader in (
        log_prob, loss, head_score, heads_above, composition_ratio, ablation_share, indicator_mean, indicator_deviation,
        indicator_of, max_probability_of, verified_count, prompted, prompted_probability,
    )
}  # fmt: skip
LISTS: dict[str, Callable[..., list[str]]] = {
    reader.__name__: reader for reader in (top_heads, classified_heads, strongest_tokens)
}
READERS: dict[str, Reader] = NUMBERS | LISTS


def _at(result: xr.Dataset, name: str, pool: str | None = None, **where: Any) -> xr.DataArray:
    """A variable at the named coordinates; with `pool`, at that pool, or at the only one if it is empty."""
    if name not in result:
        have = ", ".join(map(str, result.data_vars))
        raise InterpError(f"the result has no '{name}': read it from another experiment, or read one of {have}")
    values = result[name]
    if pool is not None:
        names = list(map(str, values["pool"].values))
        if not pool and len(names) > 1:
            raise InterpError(f"the result has {len(names)} pools: name one of {', '.join(names)}")
        where["pool"] = pool or names[0]
    for dim, place in where.items():
        if dim not in values.dims:
            raise InterpError(f"'{name}' has no dimension '{dim}': read another, or leave it out")
        if place not in values[dim].values:
            some = ", ".join(map(str, values[dim].values[:12])) + (", ..." if values.sizes[dim] > 12 else "")
            raise InterpError(f"'{name}' has no {dim} '{place}': use one of {some}")
    return values.sel(where)


def _place(head: str) -> tuple[int, int]:
    found = re.fullmatch(r"L(\d+)H(\d+)", head)
    if not found:
        raise InterpError(f"'{head}' is not a head: write it as L5H1")
    return int(found[1]), int(found[2])


def _head(values: xr.DataArray, head: str) -> xr.DataArray:
    layer, at = _place(head)
    if layer not in values["layer"].values or at not in values["head"].values:
        most = f"L{values['layer'].values.max()}H{values['head'].values.max()}"
        raise InterpError(f"this model has no head {head}: its last is {most}")
    return values.sel(layer=layer, head=at)


def _scores(result: xr.Dataset, key_kind: str, pool: str) -> xr.DataArray:
    return _at(result, "score", pool, key_kind=key_kind).mean("batch", skipna=True)


def _indicator(result: xr.Dataset, indicator: str, category: str) -> xr.DataArray:
    """The finite values of an indicator, for the tokens of one category or for all."""
    values = _at(result, "value", indicator=indicator)
    usable = np.isfinite(values.values)
    if category:
        usable &= values["category"].values == category
    if not usable.any():
        raise InterpError(f"no token is in the category '{category}': use OK, UNDECODEABLE, ..., or leave it out")
    return values[usable]


def _of_kind(values: xr.DataArray, kind: str) -> xr.DataArray:
    """The tokens of one kind, or all if none is named."""
    if not kind:
        return values
    kept = values[(values["kind"] == kind).values]
    if not kept.size:
        known = ", ".join(sorted(set(map(str, values["kind"].values))))
        raise InterpError(f"no token is of the kind '{kind}': use one of {known}")
    return kept


def _verified(result: xr.Dataset) -> xr.Dataset:
    """The result with `max_probability`: all NaN if no token was detected and so none was tested."""
    if "max_probability" in result:
        return result
    _at(result, "detected")  # raises if the result is another experiment's
    return result.assign(max_probability=("token", np.full(result.sizes["token"], np.nan)))


def _asked(result: xr.Dataset, name: str, pool: str) -> xr.DataArray:
    values = _at(result, name)
    if "pool" not in values.coords or pool not in values["pool"].values:
        raise InterpError(f"no token of pool '{pool}' was tested: use a pool of the run")
    return values.isel(token=np.flatnonzero(values["pool"].values == pool))
