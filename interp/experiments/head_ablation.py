"""How much is each head worth to copying, alone and together with its like?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import KINDS, called, on_reference
from interp.hooks import Head, Hook, Kind, ablate_heads, record, z_names
from interp.results import Keep, at_once, label
from interp.sweep import sweep
from interp.tokens import Draw, Pool, Repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def head_ablation(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    kind: Kind = "mean",
    reference: str = "",
    draws: int = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Ablate one head at a time, and one more at a time; nats lost on the tested inducible tokens, positive: it helped.

    `lost` [pool layer head batch], each head alone. `curve` [pool kind ablated batch], the first `ablated` heads of those called
    induction, previous-token, ... heads, largest score first: one head alone hides those that back it up. `random` [pool draw
    ablated batch], as many heads drawn from those called none of these, in `draws` orders; where they run out, NaN. `gain` [pool
    batch] is what the repeat gains: the log-prob of these tokens in the later copies less that in the first.

    `kind`: `mean` (over other sequences of the same pool, position by position), `resample` (theirs, one by one) or `zero`.
    Heads are called on the pool `reference` (default: the model's ordinary tokens); `called` [kind layer head] and `ranked` [kind
    rank] (names such as L1H2) say which.

    Raises `InterpError` for an unknown kind, or sequences that test no inducible token.
    """
    if draws < 1:
        raise InterpError(f"draws {draws}: use a whole number from 1 up")
    _, found = on_reference(model, draw, keep, reference, seed=seed)
    ranked = {name: called(found, name) for name in KINDS}
    named = {head for heads in ranked.values() for head in heads}
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    others = [head for head in every if head not in named]
    most = max(map(len, ranked.values()))
    rng = np.random.default_rng(seed)
    few = len(others) <= most  # all of them are taken: what differs is their order
    random = [[others[i] for i in rng.permutation(len(others))[: most or 0]] for _ in range(1 if few else draws)]

    parts = []
    for pool in pools:
        tokens = draw(pool)
        given = None if kind == "zero" else record(model, draw(pool, others=1).ids, z_names(model))
        chains = [*ranked.values(), *random]
        plans = [[head] for head in every] + [chain[:n] for chain in chains for n in range(1, len(chain) + 1)]
        # the same heads may come in several chains: each set is run once
        sets = list(dict.fromkeys(frozenset(plan) for plan in plans))
        hooks = [ablate_heads(model, sorted(chosen), kind=kind, record=given) for chosen in sets]
        clean, gain, ablated = _measured(model, tokens, hooks, f"ablation: {pool.name}", keep)
        lost = dict(zip(sets, clean - ablated, strict=True))
        curves = np.stack([_curve(chain, most, lost, len(clean)) for chain in chains])
        singles = np.stack([lost[frozenset([head])] for head in every]).reshape(layers, heads, -1)
        coords = {
            "batch": np.arange(len(clean)),
            "kind": list(KINDS),
            "draw": np.arange(len(random)),
            "ablated": range(most + 1),
        }
        parts.append(
            xr.Dataset(
                {
                    "lost": label("lost", singles, "layer head batch", coords),
                    "curve": label("curve", curves[: len(KINDS)], "kind ablated batch", coords),
                    "random": label("random", curves[len(KINDS) :], "draw ablated batch", coords),
                    "clean": label("clean", clean, "batch", coords),
                    "gain": label("gain", gain, "batch", coords),
                }
            )
        )
    data = xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))
    ranks = [[f"L{la}H{h}" for la, h in chain] + [""] * (most - len(chain)) for chain in ranked.values()]
    data["ranked"] = xr.DataArray(np.array(ranks, dtype=object).reshape(len(KINDS), most), dims=("kind", "rank"))
    return data.assign(
        called=found["called"].drop_attrs(),
        induction_score=found["score"].sel(stripe="induction", drop=True).mean("batch"),
    )


def _measured(
    model: TransformerBridge, tokens: Repeated, hooks: Sequence[list[Hook]], what: str, keep: Keep
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean log-prob of the tested inducible tokens [batch], what it gains on the first copy, and [intervention batch]."""
    import torch

    later = torch.from_numpy(tokens.inducible_tested)
    first = torch.from_numpy((tokens.half == 1) & (tokens.offset > 0)) & tokens.tested.cpu()
    if not bool(later.any(1).all()):
        raise InterpError("a sequence tests no inducible token: use longer blocks")
    scores = sweep(model, tokens.ids, [[], *hooks], later, what=what, keep=keep).nanmean(-1).cpu().numpy()
    before = sweep(model, tokens.ids, [[]], first, what=f"{what}, first copy", keep=keep).nanmean(-1)[0].cpu().numpy()
    return scores[0], scores[0] - before, scores[1:]


def _curve(chain: Sequence[Head], most: int, lost: dict[frozenset[Head], np.ndarray], batch: int) -> np.ndarray:
    """[ablated batch]: nats lost with the first 0, 1, ... heads of a chain ablated; NaN behind its end."""
    rows = np.full((most + 1, batch), np.nan, dtype=np.float32)
    rows[0] = 0.0
    for n in range(1, len(chain) + 1):
        rows[n] = lost[frozenset(chain[:n])]
    return rows
