"""Where does a run on one pool differ from a run on another, in a way that matters for copying?"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.activation_patching.prompts import DIRECTIONS, HeadActivation, Stream, patched_prompts
from interp.heads import reference_pool
from interp.hooks import by_layer_and_head, heads_of, kv_head, name_of, patch, record
from interp.identities import reason_against
from interp.metrics import Metric
from interp.results import Keep, at_once, joined, label
from interp.sweep import TARGETS, paired_scores
from interp.tokens import Draw, Paired, Pool, Prompts, refuse_with_blocks

BUDGETS = {"quick": {"batch": 4, "length": 10, "sequences": 2}, "thorough": {"batch": 128, "sequences": 32}}
OF_BLOCKS = ("reference", "sequences")


def activation_patching(
    model: TransformerBridge,
    pools: list[Pool] | list[Paired],
    draw: Draw,
    keep: Keep = at_once,
    *,
    stream: Stream = "resid_pre",
    head: HeadActivation = "z",
    metric: Metric = "log_prob",
    sequences: int = 16,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Measure what one patched activation changes, between each sequence and its pair of ordinary tokens.

    Denoising patches ordinary activations into the pool's run (sufficient?), noising the pool's into the ordinary run
    (necessary?).

    Args:
        model: any loaded model.
        pools: the tokens to copy, or prompts with answers and corrupted prompts.
        draw: draws sequences of a pool, and paired ones.
        keep: stores finished parts.
        stream: what is patched at one position of a layer: "resid_pre", "resid_post", "attn_out" or "mlp_out".
        head: what is patched of one head at all positions: "z", "q", "k", "v" or "pattern"; query heads that share a
            key-value head are patched together.
        metric: how prompts are read: "log_prob", "logit_difference", "probability", "rank", or "kl" from the clean run.
        sequences: on blocks, how many sequences, the first of the batch, are patched position by position.
        reference: the pool of ordinary tokens (default: the model's).
        seed: decides how ordinary tokens are paired.

    Returns:
        Log-probs, nats: `by_position` [pool direction target layer position pair], of the last tested inducible token;
        `by_head` [pool direction target layer head batch], their mean; `clean_position` and `clean_head`, without a
        patch. The target `own` is the run's own token, `other` the paired one. Of prompts, by the metric, also
        `by_name`.

    Raises:
        InterpError: the activation is unknown, there are no sequences, or a pool is too small to pair with.

    Source:
        Zhang and Nanda 2023, Towards Best Practices of Activation Patching, arXiv 2309.16042.

    Example:
        >>> few = dict(batch=2, length=6, sequences=2)
        >>> result = interp.run("activation_patching", "wired", "1:33", reference="33:65", **few)
        >>> moved = (result["by_head"] - result["clean_head"]).sel(direction="noising", target="own")
        >>> (moved.mean(["pool", "batch"]) < -1).values.tolist()  # heads that are needed
        [[True, False], [True, False]]
    """
    if stream not in get_args(Stream) or head not in get_args(HeadActivation):
        raise InterpError(
            f"stream '{stream}', head '{head}': use one of {', '.join(get_args(Stream))} "
            f"and one of {', '.join(get_args(HeadActivation))}"
        )
    if sequences < 1:
        raise InterpError(f"sequences {sequences}: use a positive integer")
    given = [one for one in pools if isinstance(one, Prompts)]
    if given:
        parts = [patched_prompts(model, one, keep, metric=metric, stream=stream, head=head) for one in given]
        return joined(parts, [one.name for one in given], outer=True)
    refuse_with_blocks(metric=(metric, "log_prob"))
    pools = [one for one in pools if isinstance(one, Pool)]
    healthy = reference_pool(model, reference, seed=seed)
    no_heads = "" if head == "pattern" else reason_against(model, "heads")
    layers, every = range(model.cfg.n_layers), [] if no_heads else heads_of(model)
    known_hooks = model.hook_dict
    having = [layer for layer in layers if f"blocks.{layer}.hook_{stream}" in known_hooks]
    streams = [name_of(model, layer, stream) for layer in having or layers]
    activations = {layer: name_of(model, layer, head) for layer, _ in every}
    shared = head in ("k", "v")
    parts = []
    for pool in pools:
        tokens = draw(pool)
        pair = (tokens, draw(healthy, paired_with=tokens))
        few = [next(each.split(sequences)) for each in pair]
        later = torch.from_numpy(tokens.inducible_tested)
        last = (later & (later.flip(1).cumsum(1).flip(1) == 1))[:sequences]
        size = last.shape[1]
        coords = {
            "target": list(TARGETS),
            "position": np.arange(size),
            "half": ("position", tokens.half),
            "offset": ("position", tokens.offset),
        }
        directions = []
        for direction, (run, source) in DIRECTIONS.items():
            what = f"{direction}, {pool.name}"
            known = record(model, few[source], streams)
            plans = [[patch(model, name, known, positions=[at])] for name in streams for at in range(size)]
            read = paired_scores(model, few[run], few[source], plans, last, what=f"{what}, by position", keep=keep)
            by_layer = np.full((len(layers), size, *read.shape[1:]), np.nan, read.dtype)
            by_layer[having] = read[1:].reshape(len(having), size, *read.shape[1:])
            by_position = np.moveaxis(by_layer, 2, 0)
            known = record(model, pair[source], activations.values())
            plans = [
                [patch(model, activations[layer], known, heads=[kv_head(model, h) if shared else h])]
                for layer, h in every
            ]
            whole = paired_scores(model, pair[run], pair[source], plans, later, what=f"{what}, by head", keep=keep)
            moved = by_layer_and_head(model, whole[1:]) if every else _no_heads(model, whole)
            by_head = np.moveaxis(moved, 2, 0)
            directions.append(
                xr.Dataset(
                    {
                        "by_position": label("by_position", by_position, "target layer position pair", coords),
                        "clean_position": label("clean_position", read[0], "target pair", coords),
                        "by_head": label("by_head", by_head, "target layer head batch", coords),
                        "clean_head": label("clean_head", whole[0], "target batch", coords),
                    }
                )
            )
        parts.append(xr.concat(directions, xr.DataArray(list(DIRECTIONS), dims="direction", name="direction")))
    data = xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))
    said = {"no_heads": no_heads} if no_heads else {}
    return data.assign_attrs({"stream": stream, "head": head, "among": healthy.name} | said)


def _no_heads(model: TransformerBridge, scores: np.ndarray) -> np.ndarray:
    """[layer head target batch] of NaN, in the shape of `scores` [intervention target batch]."""
    return np.full((model.cfg.n_layers, model.cfg.n_heads, *scores.shape[1:]), np.nan, scores.dtype)
