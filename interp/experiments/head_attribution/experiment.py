"""Which heads matter, by gradients, and how far can that be trusted? Screening beside the exact sweep."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.baselines import mean_of_others
from interp.errors import InterpError
from interp.hooks import (
    Hook,
    Record,
    ablate_heads,
    by_layer_and_head,
    forget_patterns,
    heads_of,
    passes,
    record,
    z_names,
)
from interp.identities import require
from interp.metrics import UNITS, Metric, check_metric, of_logits, scores
from interp.results import Keep, at_once, joined, label
from interp.tokens import Answered, Draw, Pool, Prompts, Sequences, other_sequences, refuse_with_blocks

ESTIMATES = ("gradient", "integrated", "exact")
BUDGETS = {"quick": {"batch": 2}, "thorough": {"batch": 128}}


def head_attribution(
    model: TransformerBridge,
    pools: list[Pool] | list[Answered],
    draw: Draw,
    keep: Keep = at_once,
    *,
    metric: Metric = "log_prob",
    steps: int = 8,
    top: int = 5,
) -> xr.Dataset:
    """Estimate by gradients what mean-ablating each head costs, and compare the estimates with the exact sweep.

    Args:
        model: any loaded model.
        pools: the tokens to copy, or prompts with answers.
        draw: draws sequences of a pool.
        keep: stores finished pools.
        metric: how prompts are read: "log_prob", "logit_difference" or "probability".
        steps: midpoints that the integrated gradient is averaged over.
        top: how many heads, those with the largest exact effect, an estimate is asked to find.

    Returns:
        `lost` [pool estimate layer head batch], nats (of prompts, by the metric), positive where the head helped:
        `gradient` is attribution patching, (z - mean) times the gradient of the mean log-prob; `integrated` averages
        the gradient between the mean and z of one layer, so that a layer's heads sum to the effect of ablating it
        whole; `exact` is the sweep. `agreement` [pool estimate fit]: Spearman's and Pearson's correlation over heads,
        the share of the `top` heads found, and the largest error (nats).

    Raises:
        InterpError: there are no steps or no heads to find, or the metric has no gradient.

    Source:
        Nanda 2023, Attribution Patching; Sundararajan, Taly and Yan 2017, arXiv 1703.01365.

    Example:
        >>> result = interp.run("head_attribution", "wired", "1:65", batch=2)
        >>> result["agreement"].sel(estimate="integrated", fit="spearman").round(1).item() >= 0.5
        True
    """
    if steps < 1 or top < 1:
        raise InterpError(f"steps {steps}, top {top}: use positive integers")
    require(model, "heads")
    given = [one for one in pools if isinstance(one, Prompts)]
    parts: list[xr.Dataset] = []
    for one in given:
        check_metric(metric, one, without=("rank", "kl"), why="has no gradient at the clean run")
        make = partial(_of_prompts, model, one, steps, top, metric)
        parts.append(keep(one.name, make).drop_attrs().assign_attrs(metric=metric, unit=UNITS[metric]))
    if given:
        return joined(parts, [one.name for one in given], outer=True)
    refuse_with_blocks(metric=(metric, "log_prob"))
    drawn = [one for one in pools if isinstance(one, Pool)]
    for pool in drawn:
        tokens, others = draw(pool), other_sequences(draw, pool)
        parts.append(keep(pool.name, partial(_of_pool, model, tokens, others, steps, top, pool.name)).drop_attrs())
    return xr.concat(parts, xr.DataArray([pool.name for pool in drawn], dims="pool", name="pool"))


def _of_pool(
    model: TransformerBridge, tokens: Sequences, others: Sequences, steps: int, top: int, name: str
) -> xr.Dataset:
    known = record(model, others, z_names(model))
    plans = [ablate_heads(model, [at], kind="mean", record=known) for at in heads_of(model)]
    mean = {name: value.mean(0, keepdim=True) for name, value in known.items()}
    return _estimates(model, tokens, mean, plans, steps, top, name, "log_prob")


def _of_prompts(model: TransformerBridge, tokens: Prompts, steps: int, top: int, metric: Metric) -> xr.Dataset:
    known, _ = mean_of_others(record(model, tokens, z_names(model)), tokens)
    plans = [ablate_heads(model, [at], kind="resample", record=known) for at in heads_of(model)]
    return _estimates(model, tokens, known, plans, steps, top, tokens.name, metric)


def _estimates(
    model: TransformerBridge,
    tokens: Sequences,
    mean: Record,
    plans: list[list[Hook]],
    steps: int,
    top: int,
    name: str,
    metric: Metric,
) -> xr.Dataset:
    """The estimates beside the losses by `plans`, an ablation of each head; `mean` is the replacement."""
    found = scores(model, tokens, [[], *plans], metric, what=f"exact: {name}")
    exact = found[0] - found[1:]  # [head of any layer, batch]
    parts, start = [], 0
    for part in passes(tokens, f"gradients: {name}"):
        rows = slice(start, start := start + len(part.ids))
        own = {name: value if len(value) == 1 else value[rows] for name, value in mean.items()}
        integrated = [_estimate(model, part, own, [name], steps, metric) for name in z_names(model)]
        parts.append(np.stack([_estimate(model, part, own, z_names(model), None, metric), np.concatenate(integrated)]))
    values = np.concatenate([np.concatenate(parts, -1), exact[None]])
    fits = [_agreement(v.mean(-1), exact.mean(-1), top) for v in values]
    coords = {
        "estimate": list(ESTIMATES),
        "batch": np.arange(values.shape[-1]),
        "fit": ["spearman", "pearson", f"top{top}", "error"],
    }
    return xr.Dataset(
        {
            "lost": label("lost", by_layer_and_head(model, values, axis=1), "estimate layer head batch", coords),
            "agreement": label("agreement", np.array(fits), "estimate fit", coords),
        }
    )


def _estimate(
    model: TransformerBridge, tokens: Sequences, mean: Record, names: list[str], steps: int | None, metric: Metric
) -> np.ndarray:
    """[head of any layer, batch]: (z - mean) times the gradient at z, or averaged over midpoints between the two."""
    total: dict[str, Any] = dict.fromkeys(names, 0)
    difference: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def lead(value: Tensor, hook: Any, name: str, share: float) -> Tensor:
        """A new leaf in place of z; to differentiate all layers at once, it must stay connected to the layers below."""
        own = value.detach()
        difference[name] = own - mean[name].to(own)
        if steps is not None:
            value = mean[name].to(own) + share * difference[name]
        leaves[name] = (value if value.requires_grad else value.detach().requires_grad_()) * 1.0
        return leaves[name]

    for step in range(steps or 1):
        share = (step + 0.5) / (steps or 1)  # of the way from the mean to z
        hooks = [(name, partial(lead, name=name, share=share)) for name in names]
        with torch.enable_grad():
            logits = model.run_with_hooks(tokens.ids, fwd_hooks=hooks, prepend_bos=False)
            gradients = torch.autograd.grad(of_logits(logits, tokens, metric).sum(), [leaves[name] for name in names])
        forget_patterns(model)
        for name, gradient in zip(names, gradients, strict=True):
            total[name] = total[name] + gradient.detach() / (steps or 1)
    lost = [(difference[name] * total[name]).sum((1, 3)).T for name in names]  # [head batch]
    return torch.cat(lost).float().cpu().numpy()


def _agreement(estimate: np.ndarray, exact: np.ndarray, top: int) -> list[float]:
    """Rank correlation, correlation (NaN where one is constant), share of the best found, largest error."""
    best = [set(np.argsort(-v)[:top].tolist()) for v in (estimate, exact)]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants
        correlations = [float(spearmanr(estimate, exact).statistic), float(np.corrcoef(estimate, exact)[0, 1])]
    return [*correlations, len(best[0] & best[1]) / min(top, len(exact)), float(np.abs(estimate - exact).max())]
