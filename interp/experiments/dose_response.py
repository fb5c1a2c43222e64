"""How often must a token have been trained on to be copied, and to look trained? Canaries and natural tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from interp.errors import InterpError
from interp.measure import log_probs, ranks
from interp.pools import exposure_of, model_name, ordinary_pool, token_texts
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.tokens import Pool, repeated
from interp.undertrained import embeddings, indicators, reference

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_CHUNK = 128


def dose_response(
    model: TransformerBridge,
    keep: Keep = at_once,
    *,
    contexts: int = 8,
    block: int = 25,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Every token, once as a single one among ordinary tokens and as embedding rows, against its exposure count.

    `log_prob` (nats) and `rank` (0: arg-max) [token] of its second occurrence, means over `contexts` repeated blocks of
    `block` tokens; `value` [indicator token], low is suspicious. Coordinates `exposure` (times trained to predict it) and
    `canary` [token]. `correlation` [response group bound]: Spearman's with exposure, of copying and of each
    indicator, within the `canaries` and the `natural` tokens, with 95% bootstrap intervals over tokens.

    Raises `InterpError` for a model whose exposure counts are not known.
    """
    known = exposure_of(model)
    if known is None:
        raise InterpError(f"'{model_name(model)}' has no exposure counts: use a bundled model (interp models)")
    if resamples < 1 or contexts < 1:
        raise InterpError(f"resamples {resamples}, contexts {contexts}: use whole numbers from 1 up")
    inputs, outputs, bias, tied = embeddings(model)
    ids = [i for i in range(len(known.total)) if i not in known.special]
    ordinary = ordinary_pool(model)
    found = []
    chunks = [ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK)]
    for i, part in enumerate(track(chunks, "copying each token", total=len(chunks))):
        found.append(keep(f"tokens {i}", partial(_copied, model, part, ordinary, contexts, block, seed)))
    values = indicators(inputs, outputs, reference(model).ids, bias=bias, tied=tied)
    counts = np.array(known.total)[ids]
    canary = np.array([i in known.canaries for i in ids])
    coords = {
        "token": ids, "indicator": list(values), "exposure": ("token", counts), "canary": ("token", canary),
        "text": ("token", np.array(token_texts(model, ids), dtype=object)),
    }  # fmt: skip
    data = xr.concat([part.drop_attrs() for part in found], "token").assign_coords(coords)
    data["value"] = label("value", np.stack([v[ids] for v in values.values()]), "indicator token", coords)
    responses = {"log_prob": data["log_prob"].to_numpy(), **{n: v[ids] for n, v in values.items()}}
    rows = [
        [_correlation(v, counts, among, resamples, seed) for among in (canary, ~canary)] for v in responses.values()
    ]
    data["correlation"] = label(
        "correlation", np.array(rows), "response group bound",
        {"response": list(responses), "group": ["canaries", "natural"], "bound": ["value", "low", "high"]},
    )  # fmt: skip
    return data


def _copied(
    model: TransformerBridge, ids: list[int], ordinary: Pool, contexts: int, length: int, seed: int
) -> xr.Dataset:
    """Mean log-prob and rank of the second occurrence of each single token."""
    import torch

    bos = getattr(model.tokenizer, "bos_token_id", None)
    sequences, marks = [], []
    for i in ids:
        drawn = repeated(Pool(str(i), (i,)), batch=contexts, length=length, bos=bos, among=ordinary, seed=seed)
        sequences.append(drawn.ids)
        second = drawn.tested.clone()
        second[:, : length + (bos is not None)] = False
        marks.append(second)
    rows, second = torch.cat(sequences).to(model.cfg.device), torch.cat(marks).to(model.cfg.device)
    if rows.shape[1] > model.cfg.n_ctx:
        raise InterpError(f"two blocks of {length} do not fit the context of {model.cfg.n_ctx}: use a smaller --block")
    size = max(1, 1024 // rows.shape[1])
    scores: dict[str, list[torch.Tensor]] = {"log_prob": [], "rank": []}
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        logits = model(part, return_type="logits", prepend_bos=False)
        at = second[start : start + size]
        scores["log_prob"].append(log_probs(logits, part)[at].cpu())
        scores["rank"].append(ranks(logits, part)[at].cpu())
    means = {n: torch.cat(v).float().view(len(ids), contexts).mean(1).numpy() for n, v in scores.items()}
    return xr.Dataset({name: ("token", mean) for name, mean in means.items()})


def _correlation(values: np.ndarray, counts: np.ndarray, among: np.ndarray, resamples: int, seed: int) -> list[float]:
    chosen = np.flatnonzero(among & np.isfinite(values))
    rng = np.random.default_rng(seed)
    drawn = [
        spearmanr(values[d], counts[d]).statistic for d in (rng.choice(chosen, len(chosen)) for _ in range(resamples))
    ]
    return [spearmanr(values[chosen], counts[chosen]).statistic, *np.nanquantile(drawn, [0.025, 0.975])]
