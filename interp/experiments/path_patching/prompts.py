"""Through which paths does what was corrupted reach the answer?"""

from __future__ import annotations

from typing import get_args

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.activation_patching.prompts import DIRECTIONS
from interp.hooks import (
    Head,
    Heads,
    Hook,
    Record,
    Via,
    by_layer_and_head,
    head_name,
    heads_of,
    kv_head,
    mlp_names,
    name_of,
    parse_heads,
    patch,
    path_patch,
    record,
    z_names,
)
from interp.metrics import UNITS, Metric, check_metric, scores
from interp.progress import track
from interp.results import Keep, label
from interp.tokens import Prompts, corrupted_prompts

VIAS = get_args(Via)


def paths_of_prompts(
    model: TransformerBridge, tokens: Prompts, keep: Keep, *, metric: Metric, receivers: Heads, most: int
) -> xr.Dataset:
    """Let one path alone carry the values of the other prompt of each pair.

    Args:
        model: any loaded model.
        tokens: clean prompts with answers, and corrupted ones.
        keep: stores finished parts.
        metric: by which both are read.
        receivers: the heads whose inputs are followed back; none: those with the largest direct effect, by half of the
            prompts.
        most: how many of these.

    Returns:
        What `path_patching` returns for prompts.

    Raises:
        InterpError: no head is before a receiver.
    """
    check_metric(metric, tokens)
    pair, every = (corrupted_prompts(tokens), tokens), heads_of(model)
    names = [*z_names(model), *mlp_names(model)]
    known = [record(model, one, names) for one in pair]
    direct, clean = {}, {}
    for direction, (run, source) in DIRECTIONS.items():
        plans = [_sent(model, pair[run], known[source], known[run], at) for at in every]
        what = f"{direction}, {tokens.name}, to the logits"
        found = scores(model, pair[run], [[], *plans], metric, clean=tokens, what=what, keep=keep)
        clean[direction], direct[direction] = found[0], found[1:] - found[0]
    reached = parse_heads(model, receivers or ())
    if not reached:
        # chosen on one half, so that the other half measures their effect
        effect = np.abs(direct["noising"][:, ::2].mean(1))
        reached = [every[i] for i in np.argsort(-effect, kind="stable")[: min(most, max(1, len(every) // 4))]]
    if max(reached)[0] == every[0][0]:
        raise InterpError(f"no head is before {', '.join(map(head_name, reached))}: name receivers of a later layer")
    rows = []
    coords = tokens.coords | {"via": list(VIAS)}
    coords = {name: value for name, value in coords.items() if name in ("batch", "line", "via")}
    for direction, (run, source) in DIRECTIONS.items():
        what = f"{direction}, {tokens.name}"
        found = _through(model, pair[run], known[source], known[run], reached, metric, tokens, what, keep)
        changed = by_layer_and_head(model, found - clean[direction], axis=1)
        rows.append(
            xr.Dataset(
                {
                    "effect": label("effect", changed, "via layer head batch", coords),
                    "direct": label("direct", by_layer_and_head(model, direct[direction]), "layer head batch", coords),
                    "clean": label("clean", clean[direction], "batch", coords),
                }
            )
        )
    data = xr.concat(rows, xr.DataArray(list(DIRECTIONS), dims="direction", name="direction"))
    followed = ", ".join(map(head_name, sorted(set(reached))))
    return data.assign_attrs(metric=metric, unit=UNITS[metric], receivers=followed)


def _sent(model: TransformerBridge, tokens: Prompts, other: Record, base: Record, sender: Head) -> list[Hook]:
    """The hooks of `path_patch` to the logits, from the sender's layer on: before it, nothing differs."""
    hooks = path_patch(model, tokens, other, [sender], base=base)
    before = tuple(f"blocks.{layer}." for layer in range(sender[0]))
    return [hook for hook in hooks if not hook[0].startswith(before)] if before else hooks


def _through(
    model: TransformerBridge,
    run: Prompts,
    other: Record,
    base: Record,
    receivers: list[Head],
    metric: Metric,
    clean: Prompts,
    what: str,
    keep: Keep,
) -> np.ndarray:
    """[via sender batch]: the metric where a sender's values reach later receivers through one input."""
    every = heads_of(model)
    inputs = [name_of(model, layer, via) for layer in sorted({la for la, _ in receivers}) for via in VIAS]
    plans: list[list[Hook]] = []
    places: list[tuple[int, int]] = []
    for s, sender in enumerate(track(every, f"{what}: what arrives", total=len(every))):
        behind = [at for at in receivers if at[0] > sender[0]]
        if not behind:
            continue
        arrived = record(model, run, inputs, hooks=_sent(model, run, other, base, sender))
        for v, via in enumerate(VIAS):
            by_layer: dict[int, list[int]] = {}
            for layer, at in behind:
                by_layer.setdefault(layer, []).append(at if via == "q" else kv_head(model, at))
            plans.append(
                [
                    patch(model, name_of(model, la, via), arrived, heads=sorted(set(heads)))
                    for la, heads in by_layer.items()
                ]
            )
            places.append((v, s))
    found = scores(model, run, plans, metric, clean=clean, what=f"{what}: to the receivers", keep=keep)
    values = np.full((len(VIAS), len(every), len(run)), np.nan, np.float32)
    for (v, s), row in zip(places, found, strict=True):
        values[v, s] = row
    return values
