"""Which heads attend as copying requires, more than they would in sequences without a repeat?

A head is classified as `induction`, `previous`, `duplicate` or `current` when, on repeated sequences,

1. its attention to that kind of key exceeds its attention to the same positions without a repeat (its own null), by
   more than the luckiest of all heads does in 95% of the single sequences of the null; and
2. for most queries, that kind of key is the one it attends to most (BOS aside, where heads rest).

The first is a test corrected for multiplicity (by the maximum over heads), the second an interpretable effect size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.hooks import Head, Hook, Stop, attention_layers, forget_patterns, ids_of, passes, pattern_names, run_to_stop
from interp.measure import KEY_KINDS, argmax_share, attention_scores, key_masks
from interp.pool_names import ordinary_pool, pools
from interp.results import Keep, label
from interp.tokens import Draw, Pool, Repeated, local_generator

KINDS = ("induction", "previous", "duplicate", "current")
# from one layer's pattern, the keys of each kind and the queries, to [... batch head]
Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]
_LEVEL = 0.95
_ROUNDING = 1e-5  # attention that is constant over sequences differs by this much or less


@takes_what_it_says
def classify_heads(
    model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None, seed: int = 0
) -> xr.Dataset:
    """Attention scores of every head on repeated sequences, their null, and the kinds assigned to each head.

    Args:
        model: any loaded model.
        tokens: repeated sequences. Where they hold too few distinct tokens for sequences without a repeat, `null` and
            `threshold` are NaN, and no head is classified.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.
        seed: determines the sequences without a repeat.

    Returns:
        `score` [key_kind layer head batch], as `measure.attention_scores`; `argmax_share` [key_kind layer head batch],
        as `measure.argmax_share`, over the inducible queries; `null` [kind layer head batch], attention to the same
        positions in sequences without a repeat (for `previous` and `current`, which need no repeat: at another fixed
        distance, drawn anew for each sequence); `threshold` [kind], how far above its own null's mean a head's mean
        score must be; `classified` [kind layer head], whether the head is of that kind. NaN in layers without
        attention.
    """
    bos = tokens.bos is not None

    def reduce(pattern: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        return torch.stack([measure(pattern, keys, queries, bos=bos) for measure in (attention_scores, argmax_share)])

    score, share = pattern_scores(model, tokens, reduce, batch_size, f"heads: {tokens.pool}")
    places = [KEY_KINDS.index(kind) for kind in KINDS]
    null = torch.full_like(score[places], torch.nan)
    other = without_repeat(tokens, seed=seed)
    if other is not None and len(tokens.ids) > 1 and tokens.length > 2:
        null = _null(model, tokens, other, batch_size, seed)
    centre = null.mean(-1, keepdim=True)
    luckiest = (null - centre)[:, attention_layers(model)].flatten(1, 2).amax(1)  # [kind batch]
    threshold = torch.quantile(luckiest, _LEVEL, dim=-1)
    excess = score[places].mean(-1) - centre[..., 0]
    classified = (excess > threshold[:, None, None].clamp_min(0) + _ROUNDING) & (share[places].mean(-1) > 0.5)
    coords = {**tokens.coords, "key_kind": list(KEY_KINDS), "kind": list(KINDS)}
    return xr.Dataset(
        {
            "score": label("score", score, "key_kind layer head batch", coords),
            "argmax_share": label("argmax_share", share, "key_kind layer head batch", coords),
            "null": label("null", null, "kind layer head batch", coords),
            "threshold": label("threshold", threshold, "kind", coords),
            "classified": label("classified", classified, "kind layer head", coords),
        }
    )


@takes_what_it_says
def reference_pool(model: TransformerBridge, reference: str | Pool = "", *, seed: int = 0) -> Pool:
    """The pool of that name or, for "", the model's ordinary tokens.

    Raises:
        InterpError: the name is unknown, or the model's ordinary tokens are not known.
    """
    if reference:
        return pools(reference, model, seed=seed)[0]
    try:
        return ordinary_pool(model)
    except InterpError as error:
        raise InterpError(
            f"no ordinary tokens are known to compare with ({error}); or give reference, e.g. 0:400"
        ) from error


@takes_what_it_says
def classify_on_reference(
    model: TransformerBridge, draw: Draw, keep: Keep, reference: str | Pool = "", *, seed: int = 0
) -> tuple[Pool, xr.Dataset]:
    """The pool on which heads are classified by default, the model's ordinary tokens, and `classify_heads` on it.

    Args:
        model: any loaded model.
        draw: draws sequences of the pool.
        keep: stores the result, `keep(name, make)`.
        reference: another pool to classify heads on.
        seed: determines the sequences without a repeat.

    Raises:
        InterpError: the pool's sequences give no null; otherwise "no head was found" would be misleading.
    """
    pool = reference_pool(model, reference, seed=seed)
    found = keep(f"heads classified on {pool.name}", partial(classify_heads, model, draw(pool), seed=seed))
    if not np.isfinite(found["threshold"]).all():
        raise InterpError(
            f"no sequences without a repeat can be drawn from '{pool.name}' to classify heads against: use a batch of "
            "2 or more, a block of 3 or more, and a reference pool of at least two blocks"
        )
    return pool, found


@takes_what_it_says
def heads_of_kind(found: xr.Dataset, kind: str) -> list[Head]:
    """The heads (layer, head) of one kind, by decreasing score.

    Args:
        found: what `classify_heads` returned.
        kind: one of `KINDS`.

    Raises:
        InterpError: the kind is unknown.
    """
    if kind not in KINDS:
        raise InterpError(f"unknown kind of head '{kind}': use {', '.join(KINDS)}")
    if not {"score", "classified"} <= set(found.data_vars):
        raise InterpError("heads are not classified in this result: give what classify_heads returned")
    score = found["score"].sel(key_kind=kind).mean("batch", skipna=True).values
    heads = [(int(la), int(h)) for la, h in np.argwhere(found["classified"].sel(kind=kind).values)]
    return sorted(heads, key=lambda at: -score[at])


@takes_what_it_says
def without_repeat(tokens: Repeated, *, seed: int = 0) -> Tensor | None:
    """The same sequences with other tokens from the batch instead of the later copies, so that nothing repeats.

    Returns:
        [batch position] ids, or None where too few other tokens remain.
    """
    start = tokens.length + (tokens.bos is not None)
    ids = tokens.ids.cpu().clone()
    seen = set(ids[:, start - tokens.length :].unique().tolist())
    wanted = ids.shape[1] - start
    for i, row in enumerate(ids):
        candidates = torch.tensor(sorted(seen - set(row.tolist())), dtype=row.dtype)
        if len(candidates) < wanted or len(row[start - tokens.length : start].unique()) < tokens.length:
            return None
        order = torch.randperm(len(candidates), generator=local_generator(seed, i))
        row[start:] = candidates[order[:wanted]]
    return ids.to(tokens.ids.device)


@takes_what_it_says
def pattern_scores(
    model: TransformerBridge,
    tokens: Repeated,
    reduce: Reduce,
    batch_size: int | None,
    what: str,
    ids: Tensor | None = None,
) -> Tensor:
    """The attention of every layer, reduced to scores; memory does not grow with the number of layers.

    Patterns are reduced and freed inside the hooks, and nothing after the last pattern is computed.

    Args:
        model: any loaded model.
        tokens: the sequences that define the inducible queries and the keys of each kind.
        reduce: maps one layer's pattern, the `key_masks` of the pass and its queries to scores [... batch head].
        batch_size: number of sequences in one forward pass.
        what: label of the progress bar.
        ids: run on these instead of the sequences' own.

    Returns:
        [... layer head batch], on the CPU; NaN in layers without attention.
    """
    found: list[Tensor] = []  # for each attention layer of a pass, [... head batch]
    layers = attention_layers(model)

    def see(pattern: Tensor, hook: Any, keys: Tensor, queries: Tensor) -> None:
        found.append(reduce(pattern.float(), keys, queries).transpose(-1, -2).cpu())
        if len(found) == len(layers):
            raise Stop

    def forget(output: Any, hook: Any) -> None:
        forget_patterns(model)  # before the next layer computes its own

    parts = []
    tokens = replace(tokens, ids=ids_of(model, tokens))
    fed = (tokens.ids if ids is None else ids_of(model, ids)).split(tokens.rows_per_pass(batch_size))
    for i, part in enumerate(passes(tokens, what, batch_size)):
        queries = torch.from_numpy(part.inducible_queries).to(part.ids.device)
        seeing = partial(see, keys=key_masks(part.ids, queries, bos=tokens.bos is not None), queries=queries)
        hooks: list[Hook] = [(name, seeing) for name in pattern_names(model)]
        hooks += [(f"blocks.{layer}.attn.hook_out", forget) for layer in layers]
        with torch.no_grad():
            run_to_stop(model, fed[i], hooks)
        whole = found[0].new_full((*found[0].shape[:-2], model.cfg.n_layers, *found[0].shape[-2:]), torch.nan)
        whole[..., layers, :, :] = torch.stack(found, dim=-3)
        parts.append(whole)
        found.clear()
    return torch.cat(parts, dim=-1)


def _null(model: TransformerBridge, tokens: Repeated, other: Tensor, batch_size: int | None, seed: int) -> Tensor:
    """[kind layer head batch]: attention, in sequences without a repeat, to where each kind's keys would be."""
    distances = range(2, max(3, tokens.length - 1))  # the induction key is length - 1 away

    def reduce(pattern: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        scores = attention_scores(pattern, keys, queries, bos=tokens.bos is not None)
        rows = [scores[KEY_KINDS.index(kind)] for kind in ("induction", "duplicate")]
        weight = (queries / queries.sum(-1, keepdim=True))[:, None]
        for distance in distances:
            back = pattern.diagonal(-distance, -2, -1)  # [batch head query], from query `distance` on
            rows.append((back * weight[..., distance:]).sum(-1))
        return torch.stack(rows)

    induction, duplicate, *back = pattern_scores(model, tokens, reduce, batch_size, f"null: {tokens.pool}", other)
    drawn = [int(torch.randint(len(back), (), generator=local_generator(seed, i))) for i in range(len(other))]
    elsewhere = torch.stack([back[d][..., i] for i, d in enumerate(drawn)], dim=-1)
    return torch.stack([induction, elsewhere, duplicate, elsewhere])
