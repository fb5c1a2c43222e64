"""Which heads look back as copying needs it, and more than sequences without a repeat would make them?

A head is called `induction`, `previous`, `duplicate` or `current` when, on repeated sequences,

1. its attention on that kind of key exceeds what it pays to the same places without a repeat (its own null), by more than
   the luckiest of all heads does in 95% of the single sequences of the null; and
2. for most queries, that kind of key is the one it attends to most (BOS aside, where heads rest).

The first is a test with its multiplicity taken care of (the largest of all heads), the second a size that has a meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.hooks import Head, Hook, Stop, forget_patterns, pattern_names, run_to_stop
from interp.measure import STRIPES, looked_at, on_stripes, stripe_keys
from interp.pools import ordinary_pool, pools
from interp.progress import track
from interp.results import Keep, label
from interp.tokens import Draw, Pool, Repeated, local_generator

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("induction", "previous", "duplicate", "current")
_LEVEL = 0.95
_ROUNDING = 1e-5  # attention that is the same in every sequence differs by this much or less


def calls(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None, seed: int = 0) -> xr.Dataset:
    """Attention scores of every head on repeated sequences, their null, and what each head is called.

    `score` [stripe layer head batch] as `measure.stripes`; `looked` [stripe layer head batch], the share of inducible queries
    whose most attended key (BOS aside) is of that kind; `null` [kind layer head batch], attention to the same places in
    sequences without a repeat (for `previous` and `current`, which need none: to another fixed distance, drawn anew for each
    sequence); `line` [kind], how far above its own null's mean a head's mean score must lie; `called` [kind layer head]. Without a null, because the
    sequences hold too few distinct tokens to make one, `null` and `line` are NaN and nothing is called.
    """
    import torch

    bos = tokens.bos is not None

    def measure(ids: Tensor, queries: Tensor) -> Callable[[Tensor], Tensor]:
        keys = stripe_keys(ids, queries, bos=bos)
        return lambda pattern: torch.stack(
            [on_stripes(pattern, keys, queries, bos=bos), looked_at(pattern, keys, queries, bos=bos)]
        )

    score, looked = attention(model, tokens, measure, batch_size, f"heads: {tokens.pool}")
    places = [STRIPES.index(kind) for kind in KINDS]
    null = torch.full_like(score[places], torch.nan)
    other = without_repeat(tokens, seed=seed)
    if other is not None and len(tokens.ids) > 1 and tokens.length > 2:
        null = _null(model, tokens, other, batch_size, seed)
    centre = null.mean(-1, keepdim=True)
    luckiest = (null - centre).flatten(1, 2).amax(1)  # [kind batch]
    line = torch.quantile(luckiest, _LEVEL, dim=-1)
    excess = score[places].mean(-1) - centre[..., 0]
    called = (excess > line[:, None, None].clamp_min(0) + _ROUNDING) & (looked[places].mean(-1) > 0.5)
    coords = {**tokens.coords, "stripe": list(STRIPES), "kind": list(KINDS)}
    return xr.Dataset(
        {
            "score": label("score", score, "stripe layer head batch", coords),
            "looked": label("looked", looked, "stripe layer head batch", coords),
            "null": label("null", null, "kind layer head batch", coords),
            "line": label("line", line, "kind", coords),
            "called": label("called", called, "kind layer head", coords),
        }
    )


def reference_pool(model: TransformerBridge, reference: str = "", *, seed: int = 0) -> Pool:
    """The pool of that name or, for "", the model's ordinary tokens. Raises `InterpError` where it knows of none."""
    if reference:
        return pools(reference, model, seed=seed)[0]
    try:
        return ordinary_pool(model)
    except InterpError as error:
        raise InterpError(
            f"no ordinary tokens are known to compare with ({error}), or give reference, e.g. 0:400"
        ) from error


def on_reference(
    model: TransformerBridge, draw: Draw, keep: Keep, reference: str = "", *, seed: int = 0
) -> tuple[Pool, xr.Dataset]:
    """The pool on which heads are called where nothing else is said, the model's ordinary tokens, and `calls` on it.

    Raises `InterpError` where its sequences give no null, so that "no head is called" means what it says.
    """
    pool = reference_pool(model, reference, seed=seed)
    found = keep(f"heads called on {pool.name}", lambda: calls(model, draw(pool), seed=seed))
    if not np.isfinite(found["line"]).all():
        raise InterpError(
            f"no sequences without a repeat can be drawn from '{pool.name}' to call heads against: use a batch of 2 or more, "
            "a block of 3 or more, and a reference pool of at least two blocks"
        )
    return pool, found


def called(found: xr.Dataset, kind: str) -> list[Head]:
    """The heads (layer, head) of one kind, those with the largest score first.

    Raises `InterpError` for a kind that is none of `KINDS`.
    """
    if kind not in KINDS:
        raise InterpError(f"unknown kind of head '{kind}': use {', '.join(KINDS)}")
    score = found["score"].sel(stripe=kind).mean("batch", skipna=True).values
    heads = [(int(la), int(h)) for la, h in np.argwhere(found["called"].sel(kind=kind).values)]
    return sorted(heads, key=lambda at: -score[at])


def without_repeat(tokens: Repeated, *, seed: int = 0) -> Tensor | None:
    """The same sequences with other tokens, of those that the batch holds, in the place of the later copies: no repeat.

    [batch position] ids, or None where a sequence's own tokens leave too few others.
    """
    import torch

    start = tokens.length + (tokens.bos is not None)
    drawn = tokens.ids[:, start - tokens.length :].cpu()
    seen = set(drawn.unique().tolist())
    ids = tokens.ids.cpu().clone()
    wanted = ids.shape[1] - start
    for i, row in enumerate(ids):
        candidates = torch.tensor(sorted(seen - set(row.tolist())), dtype=row.dtype)
        if len(candidates) < wanted or len(row[start - tokens.length : start].unique()) < tokens.length:
            return None
        order = torch.randperm(len(candidates), generator=local_generator(seed, i))
        row[start:] = candidates[order[:wanted]]
    return ids.to(tokens.ids.device)


def attention(
    model: TransformerBridge,
    tokens: Repeated,
    measure: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]],
    batch_size: int | None,
    what: str,
    ids: Tensor | None = None,
) -> Tensor:
    """What `measure` says of the attention of every layer: [... layer head batch], on the CPU.

    `measure(ids, queries)`, of the sequences and inducible queries of one pass, gives the function that reduces a layer's pattern
    to [... batch head]. The run is on `ids` where these are given, in the place of the sequences' own. Patterns are reduced and
    forgotten inside the hooks, and nothing behind the last is computed, so memory does not grow with the number of layers.
    """
    import torch

    chunk = tokens.rows_per_pass(batch_size)
    names = pattern_names(model)
    parts = []
    at = 0
    for part in track(tokens.split(chunk), what, total=-(-len(tokens.ids) // chunk)):
        reduce = measure(part.ids, torch.from_numpy(part.inducible_queries).to(part.ids.device))
        fed = part.ids if ids is None else ids[at : at + len(part.ids)]
        at += len(part.ids)
        with torch.no_grad():
            found = _reduced(model, fed, names, reduce)
        parts.append(torch.stack([found[name] for name in names], dim=-3))
    return torch.cat(parts, dim=-1)


def _reduced(
    model: TransformerBridge, ids: Tensor, names: list[str], reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Each layer's pattern, reduced, [... head batch]."""
    found: dict[str, Tensor] = {}

    def see(pattern: Tensor, hook: Any, name: str) -> None:
        found[name] = reduce(pattern.float()).transpose(-1, -2).cpu()
        if len(found) == len(names):
            raise Stop

    def forget(output: Any, hook: Any) -> None:
        forget_patterns(model)  # before the next layer makes its own

    hooks: list[Hook] = [(name, partial(see, name=name)) for name in names]
    hooks += [(f"blocks.{layer}.attn.hook_out", forget) for layer in range(len(names))]
    run_to_stop(model, ids, hooks)
    return found


def _null(model: TransformerBridge, tokens: Repeated, other: Tensor, batch_size: int | None, seed: int) -> Tensor:
    """[kind layer head batch]: attention, in sequences without a repeat, to where each kind's keys would be."""
    import torch

    bos = tokens.bos is not None
    distances = range(2, max(3, tokens.length - 1))  # the induction key is length - 1 away

    def measure(ids: Tensor, queries: Tensor) -> Callable[[Tensor], Tensor]:
        keys = stripe_keys(ids, queries, bos=bos)
        weight = (queries / queries.sum(-1, keepdim=True))[:, None]

        def reduce(pattern: Tensor) -> Tensor:
            scores = on_stripes(pattern, keys, queries, bos=bos)
            rows = [scores[STRIPES.index("induction")], scores[STRIPES.index("duplicate")]]
            for distance in distances:
                back = pattern.diagonal(-distance, -2, -1)  # [batch head query], of the queries from `distance` on
                rows.append((back * weight[..., distance:]).sum(-1))
            return torch.stack(rows)

        return reduce

    induction, duplicate, *back = attention(model, tokens, measure, batch_size, f"null: {tokens.pool}", other)
    drawn = [int(torch.randint(len(back), (), generator=local_generator(seed, i))) for i in range(len(other))]
    elsewhere = torch.stack([back[d][..., i] for i, d in enumerate(drawn)], dim=-1)
    return torch.stack([induction, elsewhere, duplicate, elsewhere])
