"""What does a head attend to, token by token, in one sequence?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.logit_attribution.experiment import logit_attribution
from interp.heads import KINDS, classify_on_reference, heads_of_kind
from interp.hooks import Head, head_name, heads_of, name_of, parse_heads, record
from interp.identities import require
from interp.results import Keep, at_once, joined, label
from interp.tokens import Draw, Pool, Prompts, Sequences

OF_BLOCKS = ("reference",)
_MOST_WRITING = 4


def attention_pattern(
    model: TransformerBridge,
    pools: list[Pool] | list[Sequences],
    draw: Draw,
    keep: Keep = at_once,
    *,
    heads: str | Sequence[str | Sequence[int]] = "",
    sequence: int = 0,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Record the attention pattern of selected heads on one sequence of each pool, with the texts of its tokens.

    Args:
        model: any loaded model.
        pools: the tokens of the sequences, or prompts.
        draw: draws sequences of a pool.
        keep: stores finished parts.
        heads: names such as "L1H2,L0H2", or (layer, head) pairs; by default the two best heads of each kind. Of
            prompts, the four that write most towards or against the answer.
        sequence: which sequence of the batch, or which prompt, from 0.
        reference: the pool on which heads are classified (default: the model's ordinary tokens).
        seed: decides the sequences without a repeat.

    Returns:
        `pattern` [pool component query key], 0 to 1; a component is a head. `token_text` [pool query] are the tokens.
        NaN after the end of a shorter prompt.

    Raises:
        InterpError: a head or a sequence does not exist, or prompts have no answers and no head is named.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("attention_pattern", "wired", "1:65", batch=2, length=6, heads="L1H0")
        >>> result["pattern"].isel(query=8).argmax("key").item()  # the induction key, 8 - 6 + 1
        3
    """
    require(model, "patterns")
    chosen = parse_heads(model, heads or ())
    given = [one for one in pools if isinstance(one, Prompts)]
    if given:
        chosen = chosen or _writing(model, given)
        parts = [_of_prompt(model, one, sorted(set(chosen)), sequence) for one in given]
        return joined(parts, [one.name for one in given], outer=True)
    pools = [one for one in pools if isinstance(one, Pool)]
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


def _writing(model: TransformerBridge, sets: list[Prompts]) -> list[Head]:
    """The heads that write most towards the answers, or against them, over all prompts."""
    if any(one.answers is None or not bool(one.read.any(1).all()) for one in sets):
        raise InterpError(
            "heads are chosen by what they write towards answers, and not every prompt has one: name heads"
        )
    means = [logit_attribution(model, one)["by_head"].mean("batch").values for one in sets]
    worth = np.abs(np.mean(means, 0))
    if not np.isfinite(worth).any():
        raise InterpError("what the heads of this model write cannot be told apart: name heads")
    return sorted(heads_of(model), key=lambda at: -worth[at])[:_MOST_WRITING]


def _of_prompt(model: TransformerBridge, tokens: Prompts, chosen: list[Head], sequence: int) -> xr.Dataset:
    """`pattern` [component query key] of one prompt."""
    if not 0 <= sequence < len(tokens):
        raise InterpError(f"no sequence {sequence}: '{tokens.name}' has 0 to {len(tokens) - 1}")
    one = tokens.rows(slice(sequence, sequence + 1))
    size = int((one.fed if bool(one.read.any()) else one.present)[0].nonzero().max()) + 1  # the prompt alone
    names = [name_of(model, layer, "pattern") for layer, _ in chosen]
    known = record(model, one.ids[:, :size], names)
    patterns = [known[name][0, head].float().cpu().numpy() for name, (_, head) in zip(names, chosen, strict=True)]
    texts = one.ids[0, :size].cpu().numpy().astype(str) if one.text is None else one.text[0, :size]
    places = np.arange(size)
    coords = {"component": [*map(head_name, chosen)], "query": places, "key": places}
    data = label("pattern", np.array(patterns), "component query key", coords).to_dataset()
    # a variable, so that it may differ from set to set
    return data.assign(token_text=("query", np.asarray(texts, dtype=object))).assign_attrs(sequence=sequence)
