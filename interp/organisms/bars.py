"""Does a trained organism show what it is for? Seven bars, measured on sequences never trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.tokens import Pool, repeated

if TYPE_CHECKING:
    from interp.organisms.batches import Batches

_SEED = 88_000
_CONTEXT = 256


def measured(model: Any, batches: Batches, exposure: np.ndarray) -> dict[str, Any]:
    """Every bar's figure, its threshold and whether it is met; `exposure` [token] are the total counts.

    `model` is a Hugging Face causal language model whose attention can be read (eager attention).
    """
    import torch

    from interp.measure import correct, log_probs, ranks, stripes

    canaries = {c for ids in batches.doses.values() for c in ids}
    usable = np.array([i not in canaries and i != batches.bos for i in range(len(exposure))])
    ordinary = Pool("ordinary", tuple(np.flatnonzero(usable & (exposure >= batches.recipe.ordinary)).tolist()))
    unexposed = np.flatnonzero((exposure == 0) & (np.arange(len(exposure)) != batches.bos))
    draw: dict[str, Any] = {"batch": 64, "length": min(25, len(unexposed)), "bos": batches.bos, "seed": _SEED}
    figures: dict[str, Any] = {}
    with torch.no_grad():
        for pool in (ordinary, Pool("unexposed", tuple(unexposed.tolist()))):
            tokens = repeated(pool, **draw)
            output = model(input_ids=tokens.ids, use_cache=False, output_attentions=True)
            figures[f"{pool.name}_log_prob"] = float(log_probs(output.logits, tokens.ids)[:, tokens.inducible].mean())
            right = correct(ranks(output.logits, tokens.ids))
            figures[f"{pool.name}_accuracy"] = float(right[:, tokens.inducible].float().mean())
            if pool.name == "ordinary":
                queries = torch.from_numpy(tokens.inducible_queries)
                heads = [stripes(p, tokens.ids, queries, bos=True)[0].mean(0) for p in output.attentions]
                figures["best_induction_score"] = float(torch.stack(heads).max())
        figures["heldout_loss"] = heldout_loss(model, batches)
        figures["unigram_entropy"] = unigram_entropy(batches.heldout)
        figures["dose_response"] = {}
        for dose, canaries_at in batches.doses.items():
            pool = Pool(f"dose={dose}", tuple(canaries_at))
            tokens = repeated(pool, among=ordinary, **{**draw, "batch": 32 * len(pool), "length": 25})
            scores = log_probs(model(input_ids=tokens.ids, use_cache=False).logits, tokens.ids)
            figures["dose_response"][dose] = float(scores[tokens.tested & torch.from_numpy(tokens.inducible)].mean())
    figures["dose_spearman"] = spearman([value for dose, value in figures["dose_response"].items() if dose >= 10])
    share = figures["heldout_loss"] / figures["unigram_entropy"]
    bars = {
        "ordinary: second-half log-prob >= -0.2": figures["ordinary_log_prob"] >= -0.2,
        "ordinary: second-half accuracy >= 0.97": figures["ordinary_accuracy"] >= 0.97,
        "unexposed: second-half log-prob <= -3": figures["unexposed_log_prob"] <= -3,
        "unexposed: second-half accuracy <= 0.05": figures["unexposed_accuracy"] <= 0.05,
        "a head with induction score >= 0.6": figures["best_induction_score"] >= 0.6,
        "held-out loss below 60% of the unigram entropy": share < 0.6,
        "single canaries: Spearman of log-prob with dose >= 0.9": figures["dose_spearman"] >= 0.9,
    }
    return {**figures, "bars": {name: bool(met) for name, met in bars.items()}}


def heldout_loss(model: Any, batches: Batches) -> float:
    """Mean loss (nats per token) on the held-out text, in windows of 256 tokens behind a BOS."""
    import torch

    from interp.measure import log_probs

    width = min(_CONTEXT, batches.recipe.context) - 1
    rows = len(batches.heldout) // width
    windows = batches.heldout[: rows * width].reshape(rows, width)
    ids = torch.from_numpy(np.insert(windows, 0, batches.bos, axis=1))
    with torch.no_grad():
        parts = [log_probs(model(input_ids=x, use_cache=False).logits, x)[:, 1:] for x in ids.split(16)]
    return -float(torch.cat(parts).mean())


def unigram_entropy(ids: np.ndarray) -> float:
    """Entropy (nats) of the token frequencies of a text."""
    share = np.bincount(ids) / len(ids)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def spearman(values: list[float]) -> float:
    """Rank correlation of `values` with their order: 1 where they rise throughout; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan")
    order = np.argsort(np.argsort(values))
    return float(np.corrcoef(order, np.arange(len(values)))[0, 1])
