"""Does a trained organism do what it was made for? Acceptance criteria, measured on sequences never trained on."""

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import entropy, spearmanr

from interp.measure import attention_scores, correct, key_masks, log_probs, ranks
from interp.organisms.batches import Batches
from interp.organisms.drawn_rows import drawn_table
from interp.tokens import Pool, Repeated, repeated

_SEED = 88_000
_CONTEXT = 256
_TABLES = 8  # averaged, because in a single table ten canaries depend on the draw


def acceptance(model: Any, batches: Batches, exposure: np.ndarray) -> dict[str, Any]:
    """Measure whether a trained organism meets its acceptance criteria.

    Args:
        model: a Hugging Face causal language model whose attention can be read (eager attention).
        batches: what it was trained on.
        exposure: [token] how often each token was predicted in training.

    Returns:
        Every figure by its name, and "bars": for each criterion, with its threshold in words, whether it is met.
    """
    ids = np.arange(len(exposure))
    canaries = [c for planted in batches.doses.values() for c in planted]
    usable = ~np.isin(ids, [*canaries, batches.bos])
    ordinary = Pool("ordinary", tuple(np.flatnonzero(usable & (exposure >= batches.recipe.ordinary)).tolist()))
    unexposed = Pool("unexposed", tuple(np.flatnonzero((exposure == 0) & (ids != batches.bos)).tolist()))
    draw: dict[str, Any] = {"batch": 64, "length": min(25, len(unexposed)), "bos": batches.bos, "seed": _SEED}
    figures: dict[str, Any] = {}
    for pool in (ordinary, unexposed):
        found = copying(model, repeated(pool, **draw))
        figures[f"{pool.name}_log_prob"] = found["second"]
        figures[f"{pool.name}_accuracy"] = found["accuracy"]
        if pool is ordinary:
            figures["best_induction_score"] = float(found["stripes"][:, 0].max())
    figures["heldout_loss"] = heldout_loss(model, batches)
    figures["uniform_loss"] = math.log(len(exposure))
    figures["unigram_entropy"] = unigram_entropy(batches.heldout)
    figures["dose_response"] = _by_dose(model, batches, ordinary)
    known = [value for dose, value in figures["dose_response"].items() if dose >= 10]
    figures["dose_spearman"] = float(spearmanr(known, range(len(known))).statistic)
    bars = (_lexinvariant_bars if batches.recipe.lexinvariant else _bars)(figures)
    return {**figures, "bars": {name: bool(met) for name, met in bars.items()}}


@torch.no_grad()
def _by_dose(model: Any, batches: Batches, ordinary: Pool) -> dict[int, float]:
    """Mean log-prob (nats) of single canaries among ordinary tokens, for each dose.

    For a lexinvariant model it is the mean over drawn tables, the first of which is its own.
    """
    weight = model.get_input_embeddings().weight
    own, lexinvariant = weight.clone(), batches.recipe.lexinvariant
    found = dict.fromkeys(batches.doses, 0.0)
    tables = _TABLES if lexinvariant else 1
    try:
        for table in range(tables):
            if table:
                weight.copy_(drawn_table(batches.recipe.seed + table, *weight.shape))
            for dose, planted in batches.doses.items():
                pool = Pool(f"dose={dose}", tuple(planted))
                batch = 32 * len(pool)
                tokens = repeated(pool, among=ordinary, batch=batch, length=25, bos=batches.bos, seed=_SEED)
                scores = log_probs(model(input_ids=tokens.ids, use_cache=False).logits, tokens.ids)
                found[dose] += float(scores[torch.from_numpy(tokens.inducible_tested)].mean()) / tables
    finally:
        weight.copy_(own)
    return found


def _bars(figures: dict[str, Any]) -> dict[str, bool]:
    """Criteria for a model that copies ordinary tokens, and others depending on their exposure."""
    return {
        "ordinary: second-half log-prob >= -0.2": figures["ordinary_log_prob"] >= -0.2,
        "ordinary: second-half accuracy >= 0.97": figures["ordinary_accuracy"] >= 0.97,
        "unexposed: second-half log-prob <= -3": figures["unexposed_log_prob"] <= -3,
        "unexposed: second-half accuracy <= 0.05": figures["unexposed_accuracy"] <= 0.05,
        "a head with induction score >= 0.6": figures["best_induction_score"] >= 0.6,
        "held-out loss below 60% of the unigram entropy": figures["heldout_loss"] < 0.6 * figures["unigram_entropy"],
        "single canaries: Spearman of log-prob with dose >= 0.9": figures["dose_spearman"] >= 0.9,
    }


def _lexinvariant_bars(figures: dict[str, Any]) -> dict[str, bool]:
    """Criteria for a model that copies all tokens equally well."""
    apart = abs(figures["unexposed_log_prob"] - figures["ordinary_log_prob"])
    lowest = min(figures["dose_response"].values())
    return {
        "ordinary: second-half log-prob >= -0.2": figures["ordinary_log_prob"] >= -0.2,
        "ordinary: second-half accuracy >= 0.97": figures["ordinary_accuracy"] >= 0.97,
        "unexposed: second-half log-prob within 0.1 of ordinary": apart <= 0.1,
        "unexposed: second-half accuracy >= 0.97": figures["unexposed_accuracy"] >= 0.97,
        f"single canaries: log-prob >= -0.2 at every dose, over {_TABLES} drawn tables": lowest >= -0.2,
        "a head with induction score >= 0.6": figures["best_induction_score"] >= 0.6,
        "held-out loss below that of a uniform guess": figures["heldout_loss"] < figures["uniform_loss"],
    }


@torch.no_grad()
def copying(model: Any, tokens: Repeated) -> dict[str, Any]:
    """How well repeated sequences are predicted, and what each head attends to.

    Returns:
        "first", the mean log-prob (nats) of the first copy; "second", that of the tokens that the context determines,
        and their "accuracy"; "stripes" [layer key_kind head], mean attention.
    """
    output = model(input_ids=tokens.ids, use_cache=False, output_attentions=True)
    scores = log_probs(output.logits, tokens.ids)
    right = correct(ranks(output.logits, tokens.ids))
    queries = torch.from_numpy(tokens.inducible_queries)
    keys = key_masks(tokens.ids, queries, bos=True)
    heads = [attention_scores(pattern, keys, queries, bos=True).mean(1) for pattern in output.attentions]
    return {
        "first": float(scores[:, tokens.half == 1].mean()),
        "second": float(scores[:, tokens.inducible].mean()),
        "accuracy": float(right[:, tokens.inducible].float().mean()),
        "stripes": torch.stack(heads).numpy(),
    }


@torch.no_grad()
def heldout_loss(model: Any, batches: Batches) -> float:
    """Mean loss (nats per token) on the held-out text, in windows of 256 tokens after a BOS."""
    width = min(_CONTEXT, batches.recipe.context) - 1
    rows = len(batches.heldout) // width
    windows = batches.heldout[: rows * width].reshape(rows, width)
    ids = torch.from_numpy(np.insert(windows, 0, batches.bos, axis=1))
    parts = [log_probs(model(input_ids=x, use_cache=False).logits, x)[:, 1:] for x in ids.split(16)]
    return -float(torch.cat(parts).mean())


def unigram_entropy(ids: np.ndarray) -> float:
    """Entropy (nats) of the token frequencies of a text."""
    return float(entropy(np.bincount(ids)))
