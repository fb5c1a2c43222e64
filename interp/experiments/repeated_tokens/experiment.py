"""How well does a model predict the second copy of a random block, and does it depend on the tokens?"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.hooks import passes
from interp.measure import correct, log_probs, ranks
from interp.results import label
from interp.statistics import BOUNDS, mean_interval
from interp.tokens import Repeated

MEASURES = ("log_prob", "correct", "rank")


def repeated_tokens(
    model: TransformerBridge,
    tokens: Repeated,
    singles: Repeated | None = None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the log-prob, rank and correctness of every token of a repeated random block, by the token predicted.

    Args:
        model: any loaded model.
        tokens: repeated sequences.
        singles: sequences with a single tested token among ordinary ones.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.
        seed: decides the bootstrap.

    Returns:
        `log_prob` (nats), `rank` (0: arg-max; a tie counts half) and `correct` [batch position]; NaN (False) where
        nothing predicts. With `singles` also `single_log_prob`, `single_rank` and `single_correct` [batch occurrence],
        of the tested token's first and second occurrence. `summary` [measure definition part bound]: means with 95%
        intervals over sequences, of the first and the second part: `inducible` compares tokens of offset > 0 in the
        first copy with those in later copies, `article` whole halves, `single` the two occurrences.

    Raises:
        InterpError: the batch size is not a positive integer.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs, for the definition `article`.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> at = dict(pool="1:65", definition="inducible", measure="log_prob", bound="mean")
        >>> first, second = result["summary"].sel(at).values
        >>> round(float(first), 1), round(float(second), 1)  # of 65 tokens, one is guessed at -log 65
        (-4.2, 0.0)
    """
    scores = _scores(model, tokens, batch_size, f"repeated tokens: {tokens.pool}")
    data = {name: label(name, values, "batch position", tokens.coords) for name, values in scores.items()}
    first, later = tokens.half == 1, tokens.half >= 2
    inner = tokens.offset > 0
    parts = {
        "inducible": {name: (v[:, first & inner], v[:, later & inner]) for name, v in scores.items()},
        "article": {name: (v[:, first], v[:, later]) for name, v in scores.items()},
    }
    if singles is not None:
        found = _scores(model, singles, batch_size, f"single tokens: {singles.pool}")
        occurrences = {name: values[singles.tested].view(len(singles.ids), -1)[:, :2] for name, values in found.items()}
        ids = singles.ids.cpu()[singles.tested].view(len(singles.ids), -1)[:, 0]
        coords = {"batch": range(len(ids)), "occurrence": [1, 2], "single_token_id": ("batch", ids.numpy())}
        for name, values in occurrences.items():
            data[f"single_{name}"] = label(f"single_{name}", values, "batch occurrence", coords)
        parts["single"] = {name: (v[:, :1], v[:, 1:]) for name, v in occurrences.items()}
    rows = [
        [[mean_interval(half.float().nanmean(1), seed=seed) for half in part[name]] for part in parts.values()]
        for name in MEASURES
    ]
    coords = {"measure": list(MEASURES), "definition": list(parts), "part": ["first", "second"], "bound": list(BOUNDS)}
    return xr.Dataset(data).assign(summary=label("summary", np.array(rows), "measure definition part bound", coords))


def _scores(model: TransformerBridge, tokens: Repeated, batch_size: int | None, what: str) -> dict[str, torch.Tensor]:
    """Each of the `MEASURES`, [batch position]."""
    found = []
    for part in passes(tokens, what, batch_size):
        with torch.no_grad():
            logits = model(part.ids, return_type="logits", prepend_bos=False)
        rank = ranks(logits, part.ids)
        found.append([values.cpu() for values in (log_probs(logits, part.ids), correct(rank), rank)])
    return {name: torch.cat(values) for name, values in zip(MEASURES, zip(*found, strict=True), strict=True)}
