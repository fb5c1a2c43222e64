"""Where does a run on clean prompts differ from one on corrupted ones, in a way that matters for the answer?"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.hooks import (
    Hook,
    by_layer_and_head,
    heads_of,
    kv_head,
    name_of,
    patch,
    patch_where,
    record,
)
from interp.identities import reason_against
from interp.metrics import UNITS, Metric, check_metric, scores
from interp.results import Keep, label
from interp.tokens import Prompts, corrupted_prompts

# which of a pair is run, and which the activation comes from: the pool's sequence or the corrupted prompt is 0, the
# ordinary sequence or the clean prompt is 1
DIRECTIONS = {"denoising": (0, 1), "noising": (1, 0)}
Stream = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
HeadActivation = Literal["z", "q", "k", "v", "pattern"]


def patched_prompts(
    model: TransformerBridge, tokens: Prompts, keep: Keep, *, metric: Metric, stream: Stream, head: HeadActivation
) -> xr.Dataset:
    """Carry activations between clean and corrupted prompts, place by place, name by name, head by head.

    Args:
        model: any loaded model.
        tokens: clean prompts with answers, and corrupted ones.
        keep: stores finished parts.
        metric: by which both are read.
        stream: what is patched at one position of one layer.
        head: what is patched of one head.

    Returns:
        What `activation_patching` returns for prompts.
    """
    check_metric(metric, tokens)
    no_heads = "" if head == "pattern" else reason_against(model, "heads")
    layers, every = range(model.cfg.n_layers), [] if no_heads else heads_of(model)
    having = [layer for layer in layers if f"blocks.{layer}.hook_{stream}" in model.hook_dict]
    streams = [name_of(model, layer, stream) for layer in having or layers]
    activations = {layer: name_of(model, layer, head) for layer, _ in every}
    fed = tokens.fed
    size = int(fed.any(0).nonzero().max()) + 1  # no tested position can see anything after that
    named = {name: mask & fed for name, mask in tokens.labels.items() if bool((mask & fed).any())}
    pair = (corrupted_prompts(tokens), tokens)
    coords = tokens.coords | {"position": np.arange(size), "named": list(named)}
    for name in ("token_id", "read", "present", "token_text"):
        if name in coords:
            coords[name] = (("batch", "position"), coords[name][1][:, :size])
    tested = fed[:, :size].cpu().numpy()  # [batch position]
    directions = []
    for direction, (run, source) in DIRECTIONS.items():
        what = f"{direction}, {tokens.name}"

        def measured(plans: list[list[Hook]], of: str, run: int = run, what: str = what) -> np.ndarray:
            return scores(model, pair[run], [[], *plans], metric, clean=tokens, what=f"{what}, by {of}", keep=keep)

        known = record(model, pair[source], streams)
        plans = [[patch(model, name, known, positions=[at])] for name in streams for at in range(size)]
        clean, *places = measured(plans, "position")
        by_position = _of_layers(places, having, len(layers), (size, len(tokens)))
        by_position = np.where(tested.T, by_position, np.nan)
        plans = [[patch_where(model, name, known, mask)] for name in streams for mask in named.values()]
        by_name = _of_layers(measured(plans, "name")[1:], having, len(layers), (len(named), len(tokens)))
        for i, mask in enumerate(named.values()):
            by_name[:, i, ~mask.any(1).cpu().numpy()] = np.nan
        shared = head in ("k", "v")
        known = record(model, pair[source], activations.values()) if every else {}
        plans = [
            [patch(model, activations[layer], known, heads=[kv_head(model, at) if shared else at])]
            for layer, at in every
        ]
        whole = measured(plans, "head")[1:]
        if every:
            by_head = by_layer_and_head(model, whole)
        else:
            by_head = np.full((len(layers), model.cfg.n_heads, len(tokens)), np.nan, np.float32)
        directions.append(
            xr.Dataset(
                {
                    "by_position": label("by_position", by_position, "layer position batch", coords),
                    "by_name": label("by_name", by_name, "layer named batch", coords),
                    "by_head": label("by_head", by_head, "layer head batch", coords),
                    "clean": label("clean", clean, "batch", coords),
                }
            )
        )
    data = xr.concat(directions, xr.DataArray(list(DIRECTIONS), dims="direction", name="direction"))
    said = {"no_heads": no_heads} if no_heads else {}
    return data.assign_attrs({"stream": stream, "head": head, "metric": metric, "unit": UNITS[metric]} | said)


def _of_layers(
    found: np.ndarray | list[np.ndarray], having: list[int], layers: int, shape: tuple[int, int]
) -> np.ndarray:
    """[layer place batch] of values of the layers that have the activation; NaN in the others."""
    values = np.full((layers, *shape), np.nan, np.float32)
    values[having] = np.reshape(found, (len(having), *shape))
    return values
