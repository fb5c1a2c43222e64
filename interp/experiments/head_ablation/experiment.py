"""How much is each head worth to copying, alone and together with heads of the same kind?"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.head_ablation.prompts import Kind, ablated_on_prompts, frozen_behind
from interp.heads import KINDS, classify_on_reference, heads_of_kind
from interp.hooks import ablate_heads, by_layer_and_head, head_name, heads_of, pattern_names, record, z_names
from interp.identities import require
from interp.metrics import Metric
from interp.results import Keep, at_once, joined, label
from interp.sweep import sweep
from interp.tokens import Answered, Draw, Pool, Prompts, other_sequences, refuse_with_blocks

BUDGETS = {"quick": {"batch": 6, "draws": 2}, "thorough": {"batch": 128, "draws": 16}}
OF_BLOCKS = ("reference",)


def head_ablation(
    model: TransformerBridge,
    pools: list[Pool] | list[Answered],
    draw: Draw,
    keep: Keep = at_once,
    *,
    kind: Kind = "mean",
    patterns: Literal["free", "frozen"] = "free",
    metric: Metric = "log_prob",
    reference: str = "",
    draws: int = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Measure what ablating heads costs: each one alone, and the heads of each kind together, beside control heads.

    Args:
        model: any loaded model.
        pools: the tokens to copy, or prompts with answers.
        draw: draws sequences of a pool.
        keep: stores finished parts.
        kind: what replaces a head's output: "mean", its mean over other sequences of the pool, position by position (of
            prompts, over the other prompts); "resample", its output on another sequence; "zero".
        patterns: "frozen": later heads attend as in the clean run (pattern-preserving ablation); "free": they attend to
            what is left.
        metric: how prompts are read: "log_prob", "logit_difference", "probability", "rank" or "kl".
        reference: the pool on which heads are classified (default: the model's ordinary tokens).
        draws: how many random orders of the control heads.
        seed: decides the sequences without a repeat and the random orders.

    Returns:
        Nats lost on the tested inducible tokens, positive where the heads helped: `lost` [pool layer head batch], each
        head alone; `curve` [pool kind ablated batch], the first heads of a kind together, largest score first; `random`
        [pool draw ablated batch], as many control heads. `clean` [pool batch], the log-prob without ablation; `gain`
        [pool batch], later copies minus the first. `classified` [kind layer head], `ranked` [kind rank]. Of prompts, by
        the metric: `curve` takes the heads that lose most on one half of the prompts and tests them on the other.

    Raises:
        InterpError: the kind is unknown, there are no draws, or sequences test no inducible token.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("head_ablation", "wired", "1:33", batch=2, length=6, draws=2)
        >>> lost = result["lost"].mean(["pool", "batch"])  # the two heads of the circuit are needed, the others are not
        >>> (lost > 1).values.tolist()
        [[True, False], [True, False]]
    """
    if draws < 1:
        raise InterpError(f"draws {draws}: use a positive integer")
    if patterns not in ("free", "frozen"):
        raise InterpError(f"patterns '{patterns}': use free, frozen")
    require(model, "patterns", "heads")
    given = [one for one in pools if isinstance(one, Prompts)]
    if given:
        frozen = patterns == "frozen"
        parts = [
            ablated_on_prompts(model, one, keep, metric=metric, kind=kind, frozen=frozen, draws=draws, seed=seed)
            for one in given
        ]
        return joined(parts, [one.name for one in given], outer=True)
    refuse_with_blocks(metric=(metric, "log_prob"))
    pools = [one for one in pools if isinstance(one, Pool)]
    _, found = classify_on_reference(model, draw, keep, reference, seed=seed)
    ranked = {name: heads_of_kind(found, name) for name in KINDS}
    every = heads_of(model)
    others = [head for head in every if not any(head in heads for heads in ranked.values())]
    most = max(map(len, ranked.values()))
    rng = np.random.default_rng(seed)
    orders = 1 if len(others) <= most else draws  # if all of them are taken, only their order differs
    random = [[others[i] for i in rng.permutation(len(others))[:most]] for _ in range(orders)]
    chains = [*ranked.values(), *random]
    # the same heads may come in several chains: each set is run once
    plans = [[head] for head in every] + [chain[:n] for chain in chains for n in range(1, len(chain) + 1)]
    sets = list(dict.fromkeys(map(frozenset, plans)))

    parts = []
    for pool in pools:
        tokens, what = draw(pool), f"ablation: {pool.name}"
        later = torch.from_numpy(tokens.inducible_tested)
        first = torch.from_numpy((tokens.half == 1) & (tokens.offset > 0)) & tokens.tested.cpu()
        if not bool(later.any(1).all()):
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        known = None
        if kind != "zero":
            elsewhere = other_sequences(draw, pool) if kind == "mean" else draw(pool, stream=1)
            known = record(model, elsewhere, z_names(model))
        attended = record(model, tokens, pattern_names(model)) if patterns == "frozen" else {}
        hooks = [
            [],
            *(
                [*ablate_heads(model, heads, kind=kind, record=known), *frozen_behind(model, attended, heads)]
                for heads in sets
            ),
        ]
        clean, *ablated = sweep(model, tokens, hooks, later, what=what, keep=keep).nanmean(-1).cpu().numpy()
        before = sweep(model, tokens, [[]], first, what=f"{what}, first copy", keep=keep).nanmean(-1)[0]
        lost = dict(zip(sets, clean - np.array(ablated), strict=True))
        curves = np.full((len(chains), most + 1, len(clean)), np.nan, dtype=np.float32)
        curves[:, 0] = 0.0
        for c, chain in enumerate(chains):
            for n in range(1, len(chain) + 1):
                curves[c, n] = lost[frozenset(chain[:n])]
        singles = by_layer_and_head(model, np.stack([lost[frozenset([head])] for head in every]))
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
                    "gain": label("gain", clean - before.cpu().numpy(), "batch", coords),
                }
            )
        )
    data = xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))
    ranks = [[*map(head_name, chain), *[""] * (most - len(chain))] for chain in ranked.values()]
    return data.assign(
        ranked=(("kind", "rank"), np.array(ranks, dtype=object).reshape(len(KINDS), most)),
        classified=found["classified"].drop_attrs(),
        induction_score=found["score"].sel(key_kind="induction", drop=True).mean("batch"),
    )
