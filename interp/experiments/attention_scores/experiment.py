"""Which heads attend where a copying circuit must attend?"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.heads import pattern_scores
from interp.hooks import Hook, Stop, attention_layers, forget_patterns, passes, pattern_names, run_to_stop
from interp.identities import require
from interp.measure import KEY_KINDS, attention_scores as scores_of_pattern
from interp.results import label
from interp.tokens import Repeated, Sequences


def attention_scores(
    model: TransformerBridge, tokens: Sequences, *, query: str = "", batch_size: int | None = None
) -> xr.Dataset:
    """Score how much attention every head pays to the keys that copying needs, averaged over the inducible queries.

    The kinds of key: `induction` (prefix matching), `previous`, `duplicate`, `current` and `bos`. Memory does not grow
    with the number of layers.

    Args:
        model: any loaded model.
        tokens: repeated sequences, or prompts, whose kinds of key are their named positions.
        query: of prompts, the named positions that attend; by default those from which the answer is predicted, or the
            last one where there is none.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.

    Returns:
        `score` [key_kind layer head batch], 0 to 1: the attention to all keys of a kind, summed, then averaged over
        queries. NaN for `bos` without a BOS token, in layers without attention, and for a prompt that lacks a named
        part.

    Raises:
        InterpError: no positions have the name of the query, or prompts have no named positions.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Olsson et al. 2022, arXiv 2209.11895.

    Example:
        >>> result = interp.run("attention_scores", "wired", "1:65", batch=2)
        >>> result["score"].sel(key_kind="induction", layer=1, head=0).mean().round(2).item()
        1.0
    """
    require(model, "patterns")
    if not isinstance(tokens, Repeated):
        return _on_named_positions(model, tokens, query, batch_size)
    if query:
        raise InterpError("query names positions of prompts, and these are repeated blocks: leave query out")
    reduce = partial(scores_of_pattern, bos=tokens.bos is not None)
    scores = pattern_scores(model, tokens, reduce, batch_size, f"attention: {tokens.pool}")
    coords = {**tokens.coords, "key_kind": list(KEY_KINDS)}
    return label("score", scores, "key_kind layer head batch", coords).to_dataset()


def _on_named_positions(model: TransformerBridge, tokens: Sequences, query: str, batch_size: int | None) -> xr.Dataset:
    """`score` [key_kind layer head batch]: attention from the queries to every named part of prompts."""
    if query and query not in tokens.labels:
        raise InterpError(f"no positions of '{tokens.pool}' are named '{query}': use {', '.join(tokens.labels)}")
    default = "" if bool(tokens.read.any()) else "last"
    named = [name for name in tokens.labels if name not in (query or "last", "last")]
    kinds = [*named, "previous", "current", "bos"]
    layers, found = attention_layers(model), []
    for part in passes(tokens, f"attention: {tokens.pool}", batch_size):
        queries = (part.labels[query or default] if query or default else part.queries) & part.present
        keys = _keys(part, queries, named)
        rows: list[Tensor] = []

        def see(pattern: Tensor, hook: Any, keys: Tensor = keys, rows: list[Tensor] = rows) -> None:
            sums = torch.einsum("bhqk,bnqk->nhb", pattern.float(), keys.float())
            rows.append((sums / keys.any(-1).sum(-1).T[:, None]).cpu())  # 0 / 0: no such key is before a query
            if len(rows) == len(layers):
                raise Stop

        def forget(output: Any, hook: Any) -> None:
            forget_patterns(model)

        hooks: list[Hook] = [(name, see) for name in pattern_names(model)]
        hooks += [(f"blocks.{layer}.attn.hook_out", forget) for layer in layers]
        with torch.no_grad():
            run_to_stop(model, part.ids, hooks)
        whole = torch.full((len(kinds), model.cfg.n_layers, *rows[0].shape[1:]), torch.nan)
        whole[:, layers] = torch.stack(rows, 1)
        found.append(whole)
    scores = torch.cat(found, -1)
    if getattr(tokens, "bos", None) is None:
        scores[kinds.index("bos")] = torch.nan
    coords = {**tokens.coords, "key_kind": kinds}
    data = label("score", scores, "key_kind layer head batch", coords).to_dataset()
    return data.assign_attrs(query=query or default or "read")


def _keys(tokens: Sequences, queries: Tensor, named: list[str]) -> Tensor:
    """[batch kind query key]: the keys of each kind that each query can see."""
    place = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    row, column = place[:, None], place[None, :]
    masks = [tokens.labels[name][:, None, :] & (column <= row) for name in named]
    masks += [(kind & queries[:, :, None]) for kind in (column == row - 1, column == row, (column == 0) & (row > 0))]
    return torch.stack([mask & queries[:, :, None] for mask in masks], 1)
