"""Which heads look where a copying circuit must look?"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import xarray as xr

from interp.hooks import forget_patterns
from interp.measure import STRIPES, on_stripes, stripe_keys
from interp.progress import track
from interp.results import label
from interp.tokens import Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


def attention_stripes(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None) -> xr.Dataset:
    """Induction, previous-token, duplicate-token, current-token and BOS score of every head.

    `score` [stripe layer head batch], each 0..1: the attention a head pays to that kind of key, averaged over
    the inducible queries only and summed over all valid earlier keys (`measure.stripe_masks`; Elhage et
    al. 2021, Olsson et al. 2022). Without a BOS token the `bos` stripe is NaN. Patterns are reduced
    inside the hooks, so memory does not grow with the number of layers.

    `batch_size` is the number of sequences in one forward pass; it changes speed and memory only.
    """
    import torch

    chunk = tokens.rows_per_pass(batch_size)
    found = []
    for part in track(tokens.split(chunk), f"attention: {tokens.pool}", total=-(-len(tokens.ids) // chunk)):
        found.append(_scores(model, part))
    coords = {**tokens.coords, "stripe": list(STRIPES)}
    scores = torch.cat(found, dim=-1)
    return label("score", scores, "stripe layer head batch", coords).to_dataset()


class _Stop(Exception):
    """Nothing behind the last pattern is needed."""


def _scores(model: TransformerBridge, tokens: Repeated) -> Tensor:
    import torch

    ids = tokens.ids
    queries = torch.from_numpy(tokens.inducible_queries).to(ids.device)
    bos = tokens.bos is not None
    keys = stripe_keys(ids, queries, bos=bos)
    layers = range(model.cfg.n_layers)
    found: dict[int, Tensor] = {}

    def reduce(pattern: Tensor, hook: Any, layer: int) -> None:
        found[layer] = on_stripes(pattern.float(), keys, queries, bos=bos).transpose(1, 2).cpu()
        if len(found) == len(layers):
            raise _Stop

    def forget(output: Any, hook: Any) -> None:
        forget_patterns(model)  # before the next layer makes its own

    hooks: list[Any] = [(f"blocks.{i}.attn.hook_pattern", partial(reduce, layer=i)) for i in layers]
    hooks += [(f"blocks.{i}.attn.hook_out", forget) for i in layers]
    with suppress(_Stop), torch.no_grad():
        # keys and values of earlier layers would be kept for tokens to come
        model.run_with_hooks(ids, fwd_hooks=hooks, return_type=None, prepend_bos=False, use_cache=False)
    forget_patterns(model)
    return torch.stack([found[i] for i in layers], dim=1)  # [stripe, layer, head, batch]
