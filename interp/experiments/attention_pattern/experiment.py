"""What does a head look at, token by token, in one sequence?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.heads import KINDS, classify_on_reference, heads_of_kind
from interp.hooks import head_name, heads_of, name_of, parse_heads, record
from interp.identities import require
from interp.results import Keep, at_once, label
from interp.tokens import Draw, Pool


def attention_pattern(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    heads: str | Sequence[str | Sequence[int]] = "",
    sequence: int = 0,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Record the attention pattern of some heads on one sequence of each pool, with the tokens' texts.

    Args:
        model: any loaded model.
        pools: the tokens of the sequences.
        draw: draws sequences of a pool.
        keep: stores finished parts.
        heads: names such as "L1H2,L0H2", or (layer, head) pairs; by default the two best heads of each kind or, where
            there are none, the two with the largest induction score.
        sequence: number of the sequence in the batch, from 0.
        reference: the pool on which heads are classified; by default the model's ordinary tokens.
        seed: decides the sequences without a repeat.

    Returns:
        `pattern` [pool component query key], with `token_text` [pool query]; a component is a head.

    Raises:
        InterpError: for a head or a sequence that does not exist.
    """
    require(model, "patterns")
    chosen = parse_heads(model, heads or ())
    if not chosen:
        _, found = classify_on_reference(model, draw, keep, reference, seed=seed)
        score = found["score"].sel(key_kind="induction").mean("batch").values
        chosen = [at for kind in KINDS for at in heads_of_kind(found, kind)[:2]]
        chosen = chosen or sorted(heads_of(model), key=lambda at: -score[at])[:2]
    chosen = sorted(set(chosen))
    names = [name_of(model, layer, "pattern") for layer, _ in chosen]
    patterns, texts = [], []
    for pool in pools:
        tokens = draw(pool)
        if not 0 <= sequence < len(tokens.ids):
            raise InterpError(f"no sequence {sequence}: the batch has 0 to {len(tokens.ids) - 1}")
        ids = tokens.ids[sequence]
        known = record(model, ids[None], names)
        patterns.append([known[name][0, h].float().cpu().numpy() for name, (_, h) in zip(names, chosen, strict=True)])
        texts.append(ids.cpu().numpy().astype(str) if tokens.text is None else tokens.text[sequence])
    places = np.arange(len(ids))
    coords = {
        "pool": [pool.name for pool in pools],
        "component": [*map(head_name, chosen)],
        "query": places,
        "key": places,
        "token_text": (("pool", "query"), np.stack(texts).astype(object)),
        "half": ("query", tokens.half),
        "offset": ("query", tokens.offset),
    }
    return label("pattern", np.array(patterns), "pool component query key", coords).to_dataset()
