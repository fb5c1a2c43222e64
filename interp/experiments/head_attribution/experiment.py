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

from interp.errors import InterpError
from interp.hooks import Record, ablate_heads, by_layer_and_head, forget_patterns, heads_of, passes, record, z_names
from interp.identities import require
from interp.measure import log_probs
from interp.results import Keep, at_once, label
from interp.sweep import sweep
from interp.tokens import Draw, Pool, Repeated, other_sequences

ESTIMATES = ("gradient", "integrated", "exact")
BUDGETS = {"quick": {"batch": 3}, "thorough": {"batch": 128}}


def head_attribution(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    steps: int = 8,
    top: int = 5,
) -> xr.Dataset:
    """Estimate by gradients what mean-ablating each head costs, beside the exact sweep.

    The means are over other sequences of the pool (64 or more), position by position, as in `head_ablation`.

    Args:
        model: any loaded model.
        pools: the tokens to copy.
        draw: draws sequences of a pool.
        keep: stores finished pools.
        steps: number of midpoints that the integrated gradient is averaged over.
        top: number of heads, those of the largest exact effect, that an estimate is asked to find.

    Returns:
        `lost` [pool estimate layer head batch], nats. `gradient` is attribution patching (Nanda 2023): (z - mean) times
        the gradient of the mean log-prob of the tested inducible tokens, one backward pass for all heads. `integrated`
        averages the gradient over midpoints between the mean and z of one layer (Sundararajan et al. 2017), so a
        layer's estimates sum to the effect of ablating it whole; TransformerLens's own does not offer it. `exact` is
        the sweep.

        `agreement` [pool estimate fit]: over heads, Spearman's and Pearson's correlation of the batch means with the
        exact ones, the share of the `top` heads found, and the largest error in nats.

    Raises:
        InterpError: for no step or no head to find.
    """
    if steps < 1 or top < 1:
        raise InterpError(f"steps {steps}, top {top}: use positive integers")
    require(model, "heads")
    parts = []
    for pool in pools:
        tokens, others = draw(pool), other_sequences(draw, pool)
        parts.append(keep(pool.name, partial(_of_pool, model, tokens, others, steps, top, pool.name)).drop_attrs())
    return xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))


def _of_pool(
    model: TransformerBridge, tokens: Repeated, others: Repeated, steps: int, top: int, name: str
) -> xr.Dataset:
    known = record(model, others, z_names(model))
    plans = [ablate_heads(model, [at], kind="mean", record=known) for at in heads_of(model)]
    scores = sweep(model, tokens, [[], *plans], tokens.inducible_tested, what=f"exact: {name}").nanmean(-1)
    exact = (scores[0] - scores[1:]).cpu().numpy()  # [head of any layer, batch]
    mean = {name: value.mean(0, keepdim=True) for name, value in known.items()}
    parts = []
    for part in passes(tokens, f"gradients: {name}"):
        integrated = [_estimate(model, part, mean, [name], steps) for name in z_names(model)]
        parts.append(np.stack([_estimate(model, part, mean, z_names(model), None), np.concatenate(integrated)]))
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
    model: TransformerBridge, tokens: Repeated, mean: Record, names: list[str], steps: int | None
) -> np.ndarray:
    """[head of any layer, batch]: (z - mean) times the gradient at z, or averaged over midpoints between the two."""
    read = torch.from_numpy(tokens.inducible_tested).to(tokens.ids.device)
    total: dict[str, Any] = dict.fromkeys(names, 0)
    difference: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def lead(value: Tensor, hook: Any, name: str, share: float) -> Tensor:
        """A new leaf in the place of z; where all layers are asked at once it must stay joined to the layers below."""
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
            scores = log_probs(logits, tokens.ids).masked_fill(~read, 0.0).sum(1) / read.sum(1)
            gradients = torch.autograd.grad(scores.sum(), [leaves[name] for name in names])
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
