"""Which heads look where a copying circuit must look?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import xarray as xr

from interp.heads import attention
from interp.measure import STRIPES, on_stripes, stripe_keys
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
    inside the hooks and freed, so memory does not grow with the number of layers, and nothing behind the
    last pattern is computed.

    `batch_size` is the number of sequences in one forward pass; it changes speed and memory only.
    """
    bos = tokens.bos is not None

    def measure(ids: Tensor, queries: Tensor) -> Callable[[Tensor], Tensor]:
        keys = stripe_keys(ids, queries, bos=bos)
        return lambda pattern: on_stripes(pattern, keys, queries, bos=bos)

    scores = attention(model, tokens, measure, batch_size, f"attention: {tokens.pool}")
    coords = {**tokens.coords, "stripe": list(STRIPES)}
    return label("score", scores, "stripe layer head batch", coords).to_dataset()
