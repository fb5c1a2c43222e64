"""Which heads matter, by gradients, and how far can that be trusted? Screening beside the exact sweep."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from interp.errors import InterpError
from interp.hooks import ablate_heads, forget_patterns, record, z_names
from interp.measure import log_probs
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.sweep import sweep
from interp.tokens import Draw, Pool, Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

ESTIMATES = ("gradient", "integrated", "exact")


def head_attribution(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    steps: int = 8,
    top: int = 5,
) -> xr.Dataset:
    """Nats lost by mean-ablating each head, estimated by gradients and measured: `lost` [pool estimate layer head batch].

    The means are over other sequences of the pool, position by position, as in `head_ablation`. `gradient` is attribution
    patching (Nanda 2023): (z - mean) times the gradient of the mean log-prob of the tested inducible tokens, one backward
    pass for all heads. `integrated` averages the gradient over `steps` midpoints between the mean and z of one layer (Sundararajan et
    al. 2017), so a layer's estimates sum to the effect of ablating it whole; TransformerLens's own does not offer it.
    `exact` is the sweep.

    `agreement` [pool estimate fit]: over heads, Spearman's and Pearson's correlation of the batch means with the exact ones, the share
    of the `top` heads found, and the largest error in nats. Raises `InterpError` for no step.
    """
    if steps < 1 or top < 1:
        raise InterpError(f"steps {steps}, top {top}: use whole numbers from 1 up")
    parts = []
    for pool in pools:
        tokens, others = draw(pool), draw(pool, others=1)
        parts.append(keep(pool.name, partial(_of_pool, model, tokens, others, steps, top, pool.name)).drop_attrs())
    return xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))


head_attribution.gradients = True  # type: ignore[attr-defined]


def _of_pool(
    model: TransformerBridge, tokens: Repeated, others: Repeated, steps: int, top: int, name: str
) -> xr.Dataset:
    import torch

    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    with torch.no_grad():
        known = record(model, others.ids, z_names(model))
        read = torch.from_numpy(tokens.inducible_tested)
        plans = [
            ablate_heads(model, [(la, h)], kind="mean", record=known) for la in range(layers) for h in range(heads)
        ]
        scores = sweep(model, tokens.ids, [[], *plans], read, what=f"exact: {name}").nanmean(-1).cpu().numpy()
    exact = (scores[0] - scores[1:]).reshape(layers, heads, -1)
    mean = {name: value.mean(0, keepdim=True) for name, value in known.items()}
    chunk = tokens.rows_per_pass()
    found: dict[str, list[np.ndarray]] = {"gradient": [], "integrated": []}
    for part in track(tokens.split(chunk), f"gradients: {name}", total=-(-len(tokens.ids) // chunk)):
        found["gradient"].append(_estimate(model, part, mean, None, 1))
        found["integrated"].append(np.concatenate([_estimate(model, part, mean, i, steps) for i in range(layers)]))
    values = np.stack([*(np.concatenate(found[e], -1) for e in ESTIMATES[:2]), exact])
    fits = [_agreement(v.mean(-1).ravel(), exact.mean(-1).ravel(), top) for v in values]
    coords = {
        "estimate": list(ESTIMATES), "batch": np.arange(values.shape[-1]), "fit": ["spearman", "pearson", f"top{top}", "error"],
    }  # fmt: skip
    return xr.Dataset(
        {
            "lost": label("lost", values, "estimate layer head batch", coords),
            "agreement": label("agreement", np.array(fits), "estimate fit", coords),
        }
    )


def _estimate(
    model: TransformerBridge, tokens: Repeated, mean: dict[str, Tensor], layer: int | None, steps: int
) -> np.ndarray:  # fmt: skip
    """[layer head batch]: (z - mean) times the gradient, of one layer at midpoints between them, or of all layers at z."""
    import torch

    names = z_names(model)
    names = names if layer is None else names[layer : layer + 1]
    read = torch.from_numpy(tokens.inducible_tested).to(tokens.ids.device)
    total: dict[str, Tensor] = {}
    difference: dict[str, Tensor] = {}
    for step in range(steps):
        share = 1.0 if layer is None else (step + 0.5) / steps  # of the way from the mean to z
        leaves: dict[str, Tensor] = {}

        def hook(
            value: Tensor, hook: Any, name: str, share: float = share, leaves: dict[str, Tensor] = leaves
        ) -> Tensor:
            own = value.detach()
            difference[name] = own - mean[name].to(own)
            # a new leaf in the place of z; where all layers are asked at once it must stay joined to the layers below
            start = value if value.requires_grad else value.detach().requires_grad_()
            moved = start if layer is None else (mean[name].to(own) + share * difference[name]).requires_grad_()
            leaves[name] = moved * 1.0
            leaves[name].retain_grad()
            return leaves[name]

        hooks = [(name, lambda value, hook, name=name, run=hook: run(value, hook, name)) for name in names]
        with torch.enable_grad():
            logits = model.run_with_hooks(tokens.ids, fwd_hooks=hooks, prepend_bos=False)
            scores = log_probs(logits, tokens.ids).masked_fill(~read, 0.0).sum(1) / read.sum(1)
            gradients = torch.autograd.grad(scores.sum(), [leaves[name] for name in names])
        forget_patterns(model)
        for name, gradient in zip(names, gradients, strict=True):
            total[name] = total.get(name, 0) + gradient.detach() / steps
    lost = [(difference[name] * total[name]).sum((1, 3)).T for name in names]  # [head batch]
    return torch.stack(lost).float().cpu().numpy()


def _agreement(estimate: np.ndarray, exact: np.ndarray, top: int) -> list[float]:
    """Rank correlation, correlation (NaN where one is constant), share of the best found, largest error."""
    best = [set(np.argsort(-v)[:top].tolist()) for v in (estimate, exact)]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants
        correlations = [float(spearmanr(estimate, exact).statistic), float(np.corrcoef(estimate, exact)[0, 1])]
    return [*correlations, len(best[0] & best[1]) / min(top, len(exact)), float(np.abs(estimate - exact).max())]
