"""What does a head look at, token by token, in one sequence?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import KINDS, called, on_reference
from interp.hooks import Head, name_of, record
from interp.results import Keep, at_once, label
from interp.tokens import Draw, Pool

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def attention_pattern(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    heads: str = "",
    sequence: int = 0,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """`pattern` [pool component query key] of some heads on one sequence of each pool, with the tokens' texts.

    `heads` are names such as "L1H2,L0H2"; by default the two best heads of each kind called on the pool `reference` (the
    model's ordinary tokens) or, where none is called, the two with the largest induction score. `sequence` is its number in
    the batch. `token_text` [pool query]. Raises `InterpError` for a head or a sequence that does not exist.
    """
    if heads:
        chosen = [_head(model, name) for name in heads.split(",")]
    else:
        _, found = on_reference(model, draw, keep, reference, seed=seed)
        chosen = [at for kind in KINDS for at in called(found, kind)[:2]]
        score = found["score"].sel(stripe="induction").mean("batch").values
        best = np.argsort(-score, axis=None)[:2]
        chosen = chosen or [(int(i) // score.shape[1], int(i) % score.shape[1]) for i in best]
    chosen = sorted(set(chosen))
    patterns, texts = [], []
    for pool in pools:
        tokens = draw(pool)
        if not 0 <= sequence < len(tokens.ids):
            raise InterpError(f"no sequence {sequence}: the batch has 0 to {len(tokens.ids) - 1}")
        names = sorted({name_of(model, layer, "pattern") for layer, _ in chosen})
        known = record(model, tokens.ids[sequence : sequence + 1], names)
        patterns.append(
            np.stack([known[name_of(model, la, "pattern")][0, h].float().cpu().numpy() for la, h in chosen])
        )
        texts.append(
            tokens.text[sequence]
            if tokens.text is not None
            else np.array(list(map(str, tokens.ids[sequence].tolist())))
        )
    places = np.arange(patterns[0].shape[-1])
    coords = {
        "pool": [pool.name for pool in pools], "component": [f"L{la}H{h}" for la, h in chosen], "query": places, "key": places,
        "token_text": (("pool", "query"), np.stack(texts).astype(object)),
        "half": ("query", tokens.half), "offset": ("query", tokens.offset),
    }  # fmt: skip
    return label("pattern", np.stack(patterns), "pool component query key", coords).to_dataset()


def _head(model: TransformerBridge, name: str) -> Head:
    """(layer, head) of a name such as L1H2."""
    layer, _, head = name.strip().upper().removeprefix("L").partition("H")
    if not (layer.isdecimal() and head.isdecimal()):
        raise InterpError(f"'{name}' names no head: write L1H2 for head 2 of layer 1")
    name_of(model, int(layer), "pattern")
    if int(head) >= model.cfg.n_heads:
        raise InterpError(f"no head {head} in layer {layer}: this model has heads 0 to {model.cfg.n_heads - 1}")
    return int(layer), int(head)
