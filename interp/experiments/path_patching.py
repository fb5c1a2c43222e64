"""Through which paths do earlier heads serve the induction heads, and on which tokens?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import KINDS, called, on_reference
from interp.hooks import Head, Hook, kv_head, mlp_names, name_of, path_patch, record, z_names
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.sweep import sweep
from interp.tokens import Draw, Pool, Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

DIRECTIONS = ("denoising", "noising")
TARGETS = ("own", "other")
VIAS = ("q", "k", "v")


def path_patching(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    most: int = 8,
    controls: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """What a token's log-prob changes by (nats) when one path carries the values of the paired sequence.

    Pairs, directions and targets are those of `activation_patching`: denoising puts the ordinary sequence's values into the pool's
    run, and is read by the target `other`, the ordinary token; noising the pool's into the ordinary run, and is read by `own`.
    `effect` [pool direction target via sender receiver batch]: the path from a
    called head (previous-token, duplicate-token or current-token) to an induction head through its q, k or v (Wang et al. 2022:
    other heads frozen, MLPs recomputed), the mean over the tested inducible tokens; the receiver `all` takes it in every
    induction head behind the sender at once. As `control`, heads of the same layers that are called nothing. `direct` [pool
    direction target writer batch]: from a head to the logits past all other heads (MLPs recomputed), for the induction heads and
    the senders. `clean` [pool direction target batch] is the log-prob without a patch.

    Heads are called on the pool `reference` (default: the model's ordinary tokens); the `most` best of each kind are taken and as
    many as `controls` controls; `role` [sender] tells them apart. Raises `InterpError` where the model has no induction head,
    or nothing called below it, by the rule of `interp.heads`.
    """
    import torch

    if most < 1 or controls < 0:
        raise InterpError(f"most {most}, controls {controls}: use whole numbers from 1, and from 0, up")
    healthy, found = on_reference(model, draw, keep, reference, seed=seed)
    named = {kind: called(found, kind) for kind in KINDS}
    receivers = named["induction"][:most]
    if not receivers:
        raise InterpError(
            f"no head is called induction on '{healthy.name}' (interp run induction_heads): there is no path to patch"
        )
    deepest = max(layer for layer, _ in receivers)
    roles: dict[Head, str] = {}
    for kind in KINDS[1:]:
        for at in named[kind][:most]:
            if at[0] < deepest and at not in receivers:
                roles.setdefault(at, kind)
    if not roles:
        raise InterpError(
            f"no head below the induction heads is called anything on '{healthy.name}': there is no path to patch"
        )
    taken = {at for heads in named.values() for at in heads}
    layers = {layer for layer, _ in roles}
    others = [(la, h) for la in sorted(layers) for h in range(model.cfg.n_heads) if (la, h) not in taken]
    rng = np.random.default_rng(seed)
    roles |= dict.fromkeys((others[i] for i in sorted(rng.permutation(len(others))[:controls])), "control")
    senders = list(roles)

    parts = []
    for pool in pools:
        tokens = draw(pool)
        pair = (tokens, draw(healthy, like=tokens))
        read = torch.from_numpy(tokens.inducible_tested)
        rows = []
        for direction, (run, source) in {"denoising": (0, 1), "noising": (1, 0)}.items():
            make = partial(
                _paths, model, pair[run], pair[source], senders, receivers, read, f"{direction}, {pool.name}"
            )
            rows.append(keep(f"{direction} {pool.name}", make).drop_attrs())
        parts.append(xr.concat(rows, xr.DataArray(list(DIRECTIONS), dims="direction", name="direction")))
    data = xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))
    return data.assign_coords(role=("sender", list(roles.values()))).assign_attrs(among=healthy.name)


def _paths(
    model: TransformerBridge, run: Repeated, source: Repeated, senders: list[Head], receivers: list[Head], read: Tensor, what: str
) -> xr.Dataset:  # fmt: skip
    import torch

    base = record(model, run.ids, z_names(model))
    other = record(model, source.ids, [*z_names(model), *mlp_names(model)])
    inputs = [name_of(model, layer, via) for layer in sorted({la for la, _ in receivers}) for via in VIAS]
    plans: list[list[Hook]] = []
    places: list[tuple[int, int, int]] = []  # via, sender, receiver of each plan
    for s, sender in enumerate(track(senders, f"{what}: what arrives", total=len(senders))):
        behind = [at for at in receivers if at[0] > sender[0]]
        # one run serves all receivers and ways: the sender's values changed, the other heads frozen
        arrived = record(model, run.ids, inputs, hooks=path_patch(model, run.ids, other, [sender], base=base))
        for v, via in enumerate(VIAS):
            each = [_received(model, [at], via, arrived) for at in behind]
            plans += [*each, [hook for one in each for hook in one]] if behind else []
            places += [(v, s, receivers.index(at)) for at in behind] + ([(v, s, len(receivers))] if behind else [])
    writers = receivers + senders
    plans += [path_patch(model, run.ids, other, [writer], base=base) for writer in writers]
    targets = torch.stack([run.ids, source.ids])
    scores = sweep(model, run.ids, [[], *plans], read, targets=targets, what=what).nanmean(-1).cpu().numpy()
    changed = scores[1:] - scores[0]  # [intervention target batch]
    shape = (len(VIAS), len(senders), len(receivers) + 1, *scores.shape[1:])
    effect = np.full(shape, np.nan, dtype=np.float32)
    for place, row in zip(places, changed, strict=False):
        effect[place] = row
    coords = {
        "via": list(VIAS), "sender": [_name(at) for at in senders], "receiver": [*(_name(at) for at in receivers), "all"],
        "writer": [_name(at) for at in writers], "target": list(TARGETS), "batch": np.arange(scores.shape[-1]),
    }  # fmt: skip
    return xr.Dataset(
        {
            "effect": label("effect", np.moveaxis(effect, 3, 0), "target via sender receiver batch", coords),
            "direct": label("direct", changed[len(places) :].swapaxes(0, 1), "target writer batch", coords),
            "clean": label("clean", scores[0], "target batch", coords),
        }
    )


def _received(model: TransformerBridge, heads: list[Head], via: str, arrived: dict[str, Tensor]) -> list[Hook]:
    """The receivers' q, k or v are what arrived; heads that share one are served together."""
    return [
        _one(name_of(model, layer, via), head if via == "q" else kv_head(model, head), arrived) for layer, head in heads
    ]


def _one(name: str, head: int, arrived: dict[str, Tensor]) -> Hook:
    """One head's value put in; of what arrived, nothing else is kept."""
    kept = arrived[name][:, :, head].clone()

    def hook(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, :, head] = kept.to(value)
        return value

    return name, hook


def _name(head: Head) -> str:
    return f"L{head[0]}H{head[1]}"
