"""Which heads look where a copying circuit must look?"""

from __future__ import annotations

from functools import partial

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.heads import pattern_scores
from interp.identities import require
from interp.measure import KEY_KINDS, attention_scores as scores_of_pattern
from interp.results import label
from interp.tokens import Repeated


def attention_scores(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None) -> xr.Dataset:
    """Score every head's attention: prefix-matching (induction), previous-token, duplicate-token, current-token, BOS.

    A score is the attention that a head pays to that kind of key, summed over all valid earlier keys and averaged over
    the inducible queries only. Memory does not grow with the number of layers.

    Args:
        model: any loaded model.
        tokens: repeated sequences.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.

    Returns:
        `score` [key_kind layer head batch], each 0..1. NaN without a BOS token (the kind `bos`), and in layers without
        attention.

    Source:
        `measure.key_masks`; Elhage et al. 2021; Olsson et al. 2022.
    """
    require(model, "patterns")
    reduce = partial(scores_of_pattern, bos=tokens.bos is not None)
    scores = pattern_scores(model, tokens, reduce, batch_size, f"attention: {tokens.pool}")
    coords = {**tokens.coords, "key_kind": list(KEY_KINDS)}
    return label("score", scores, "key_kind layer head batch", coords).to_dataset()
