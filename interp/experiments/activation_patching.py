"""Where does a run on one pool differ from a run on another, in a way that matters for copying?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import reference_pool
from interp.hooks import Hook, kv_head, name_of, patch, record
from interp.results import Keep, at_once, label
from interp.sweep import sweep
from interp.tokens import Draw, Pool, Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

DIRECTIONS = ("denoising", "noising")
TARGETS = ("own", "other")
STREAMS = ("resid_pre", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v", "pattern")


def activation_patching(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    stream: str = "resid_pre",
    head: str = "z",
    sequences: int = 16,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Carry activations between sequences of each pool and paired ordinary ones; log-probs (nats) of what is read.

    A pair has the same structure, tested tokens exchanged one to one (symmetric replacement, arXiv 2309.16042). `denoising` runs
    on the pool's sequence and puts in what the ordinary one has there (does it suffice?); `noising` runs on the
    ordinary one and puts in the pool's (is it needed?). The target `own` is the right token of the run, `other` that of the
    sequence which the activation comes from.

    `by_position` [pool direction target layer position pair]: the activation `stream` (resid_pre, resid_post, attn_out or mlp_out) at
    one position, and the log-prob of the last tested inducible token. `by_head` [pool direction target layer head batch]: the activation `head` (z, q,
    k, v or pattern) of one head at all positions, and the mean log-prob of the tested inducible tokens; query heads that share
    a key or value head are patched together. `clean_position` [pool direction target pair] and `clean_head` [pool direction target
    batch] are the same without a patch. A `pair` is one of the first `sequences` of the batch.

    The ordinary tokens come from the pool `reference` (default: the model's ordinary ones). Raises `InterpError` for an unknown
    activation, or a pool too small to pair with.
    """
    import torch

    if stream not in STREAMS or head not in HEADS:
        raise InterpError(
            f"stream '{stream}', head '{head}': use one of {', '.join(STREAMS)} and one of {', '.join(HEADS)}"
        )
    if sequences < 1:
        raise InterpError(f"sequences {sequences}: use a whole number from 1 up")
    healthy = reference_pool(model, reference, seed=seed)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    parts = []
    for pool in pools:
        tokens = draw(pool)
        pair = (tokens, draw(healthy, like=tokens))
        few = tuple(next(t.split(sequences)) for t in pair)
        later = torch.from_numpy(tokens.inducible_tested)
        last = later[: len(few[0].ids)] & (later.flip(1).cumsum(1).flip(1)[: len(few[0].ids)] == 1)
        data: dict[str, list[np.ndarray]] = {"by_position": [], "clean_position": [], "by_head": [], "clean_head": []}
        for direction, (run, source) in {"denoising": (0, 1), "noising": (1, 0)}.items():
            names = [name_of(model, layer, stream) for layer in range(layers)]
            known = record(model, few[source].ids, names)
            plans = [[patch(model, name, known, positions=[p])] for name in names for p in range(last.shape[1])]
            what = f"{direction}, {pool.name}"
            scores = _read(model, few[run], few[source], plans, last, f"{what}, by position", keep)
            data["clean_position"].append(scores[0])
            data["by_position"].append(scores[1:].reshape(layers, last.shape[1], *scores.shape[1:]))
            names = [name_of(model, layer, head) for layer in range(layers)]
            known = record(model, pair[source].ids, names)
            plans = [
                [patch(model, name, known, heads=[_shared(model, head, h)])] for name in names for h in range(heads)
            ]
            scores = _read(model, pair[run], pair[source], plans, later, f"{what}, by head", keep)
            data["clean_head"].append(scores[0])
            data["by_head"].append(scores[1:].reshape(layers, heads, *scores.shape[1:]))
        parts.append(_labelled(data, tokens))
    return xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")).assign_attrs(
        stream=stream, head=head, among=healthy.name
    )


def _shared(model: TransformerBridge, what: str, head: int) -> int:
    return kv_head(model, head) if what in ("k", "v") else head


def _read(
    model: TransformerBridge, run: Repeated, source: Repeated, plans: list[list[Hook]], read: Tensor, what: str, keep: Keep
) -> np.ndarray:  # fmt: skip
    """[intervention target batch], the first without any; a mean over what is read of each sequence."""
    import torch

    targets = torch.stack([run.ids, source.ids])
    return sweep(model, run.ids, [[], *plans], read, targets=targets, what=what, keep=keep).nanmean(-1).cpu().numpy()


def _labelled(data: dict[str, list[np.ndarray]], tokens: Repeated) -> xr.Dataset:
    coords = {
        "direction": list(DIRECTIONS), "target": list(TARGETS), "position": np.arange(tokens.ids.shape[1]),
        "half": ("position", tokens.half), "offset": ("position", tokens.offset),
    }  # fmt: skip
    stacked = {name: np.stack(values) for name, values in data.items()}
    return xr.Dataset(
        {
            "by_position": label(
                "by_position", np.moveaxis(stacked["by_position"], 3, 1), "direction target layer position pair", coords
            ),
            "clean_position": label("clean_position", stacked["clean_position"], "direction target pair", coords),
            "by_head": label(
                "by_head", np.moveaxis(stacked["by_head"], 3, 1), "direction target layer head batch", coords
            ),
            "clean_head": label("clean_head", stacked["clean_head"], "direction target batch", coords),
        }
    )
