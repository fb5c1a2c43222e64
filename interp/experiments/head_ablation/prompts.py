"""How much does each head contribute on prompts, alone and together with other important ones?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.baselines import mean_of_others, of_another
from interp.errors import InterpError
from interp.hooks import (
    Head,
    Hook,
    Record,
    ablate_heads,
    by_layer_and_head,
    freeze_patterns,
    head_name,
    heads_of,
    pattern_names,
    record,
    z_names,
)
from interp.metrics import UNITS, Metric, check_metric, scores, worse
from interp.results import Keep, label
from interp.tokens import Prompts

Kind = Literal["mean", "resample", "zero"]
_MOST = 8  # heads that are ablated together


def ablated_on_prompts(
    model: TransformerBridge,
    tokens: Prompts,
    keep: Keep,
    *,
    metric: Metric,
    kind: Kind,
    frozen: bool,
    draws: int,
    seed: int,
) -> xr.Dataset:
    """Ablate one head at a time, and together those that lose most on the other half of the prompts.

    Args:
        model: any loaded model.
        tokens: prompts with answers.
        keep: stores finished parts.
        metric: by which loss is measured.
        kind: what replaces a head's output.
        frozen: later heads attend as in the clean run.
        draws: random orders of as many other heads.
        seed: decides these, and which prompt another's output is put into.

    Returns:
        What `head_ablation` returns for prompts.
    """
    check_metric(metric, tokens)
    known, over = replacement(model, tokens, kind, seed)
    attended = record(model, tokens, pattern_names(model)) if frozen else {}

    def ablation(heads: Iterable[Head]) -> list[Hook]:
        way: Literal["resample", "zero"] = "zero" if kind == "zero" else "resample"
        return [*ablate_heads(model, list(heads), kind=way, record=known), *frozen_behind(model, attended, heads)]

    every, what = heads_of(model), f"ablation: {tokens.name}"
    clean, *alone = scores(model, tokens, [[], *(ablation([at]) for at in every)], metric, what=what, keep=keep)
    lost = worse(metric, clean, np.array(alone))  # [head batch]
    half = np.arange(len(tokens)) % 2
    most = min(_MOST, max(1, len(every) // 4))
    ranked: list[list[Head]] = [[], []]  # by half, ranked by the loss on the other half
    for h in range(2) if len(tokens) > 1 else ():
        worst_first = np.argsort(-lost[:, half != h].mean(1), kind="stable")
        ranked[h] = [every[i] for i in worst_first[:most]]
    others = [head for head in every if not any(head in order for order in ranked)]
    rng = np.random.default_rng(seed)
    random = [[others[i] for i in rng.permutation(len(others))[:most]] for _ in range(draws)]
    sets = list(dict.fromkeys(frozenset(order[:n]) for order in [*ranked, *random] for n in range(1, len(order) + 1)))
    found = scores(model, tokens, [ablation(heads) for heads in sets], metric, what=f"{what}, together", keep=keep)
    together = dict(zip(sets, worse(metric, clean, found), strict=True))
    curves = np.full((len(ranked) + draws, most + 1, len(tokens)), np.nan, np.float32)
    curves[:, 0] = 0.0
    for i, order in enumerate([*ranked, *random]):
        for n in range(1, len(order) + 1):
            curves[i, n] = together[frozenset(order[:n])]
    own = np.where(half == 0, curves[0], curves[1])  # of the half that the order was not made on
    names = [[*map(head_name, order), *[""] * (most - len(order))] for order in ranked]
    coords = {**tokens.coords, "half": ("batch", half), "ablated": np.arange(most + 1)}
    data = xr.Dataset(
        {
            "lost": label("lost", by_layer_and_head(model, lost), "layer head batch", coords),
            "clean": label("clean", clean, "batch", coords),
            "curve": label("curve", own, "ablated batch", coords),
            "random": label("random", curves[len(ranked) :], "draw ablated batch", coords),
            "ranked": (("for_half", "rank"), np.array(names, dtype=object).reshape(2, most)),
        }
    )
    return data.assign_attrs(metric=metric, unit=UNITS[metric], kind=kind, mean_over=over, frozen=int(frozen))


def replacement(model: TransformerBridge, tokens: Prompts, kind: Kind, seed: int) -> tuple[Record | None, str]:
    """What replaces heads' outputs, prompt by prompt; and what a mean is over.

    Raises:
        InterpError: the kind is unknown, or there are no other prompts to take it from.
    """
    if kind not in ("mean", "resample", "zero"):
        raise InterpError(f"unknown ablation '{kind}': use zero, mean or resample")
    if kind == "zero":
        return None, ""
    known = record(model, tokens, z_names(model))
    return mean_of_others(known, tokens) if kind == "mean" else (of_another(known, tokens, seed=seed), "")


def frozen_behind(model: TransformerBridge, attended: Record, heads: Iterable[Head]) -> list[Hook]:
    """Attention of the clean run, in the layers after the first of some heads: before it, nothing changes."""
    first = min((layer for layer, _ in heads), default=0)
    layers = [layer for layer in sorted({la for la, _ in heads_of(model)}) if layer > first]
    return freeze_patterns(model, attended, layers) if attended else []
