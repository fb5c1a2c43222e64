"""How often must a token have been trained on to be copied, and to look trained? Canaries and natural tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.measure import log_probs, ranks
from interp.models import bos_id, exposure_of, model_name, token_texts
from interp.pool_names import ordinary_pool
from interp.progress import track
from interp.rank_statistics import rank_codes, spearman
from interp.results import Keep, at_once, label
from interp.statistics import statistic_interval
from interp.tokens import Pool, repeated
from interp.undertrained import model_indicators

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
    """Relate how well each token is copied, and what its embedding rows look like, to how often it was trained on.

    Args:
        model: a bundled model, or a trained directory: its exposure counts must be known.
        keep: stores finished chunks of tokens, so that an interrupted run resumes.
        contexts: how many repeated blocks each token is copied in.
        block: how many tokens a block holds.
        resamples: bootstrap resamples of tokens, for the intervals.
        seed: decides the blocks and the bootstrap.

    Returns:
        `log_prob` (nats) and `rank` (0: arg-max) [token] of the token's second occurrence, means over the contexts;
        `value` [indicator token], where low is suspicious. Coordinates `exposure` (times trained to predict it) and
        `canary` [token]. `correlation` [response group bound]: Spearman's with exposure, positive where more training
        goes with higher values, among `canaries` and `natural` tokens, with 95% bootstrap intervals over tokens.

    Raises:
        InterpError: the model's exposure counts are not known.

    Example:
        >>> result = interp.run("dose_response", "organism", contexts=1, block=4, resamples=10)
        >>> result["correlation"].sel(response="log_prob", group="canaries", bound="value").item() > 0.5
        True
    """
    known = exposure_of(model)
    if known is None:
        raise InterpError(f"'{model_name(model)}' has no exposure counts: use a bundled model (interp models)")
    if resamples < 1 or contexts < 1:
        raise InterpError(f"resamples {resamples}, contexts {contexts}: use positive integers")
    ids = [i for i in range(len(known.total)) if i not in known.special]
    ordinary = ordinary_pool(model)
    chunks = [ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK)]
    found = []
    for i, part in enumerate(track(chunks, "copying each token", total=len(chunks))):
        chunk = keep(f"tokens {i}", partial(_copied, model, part, ordinary, contexts, block, seed))
        found.append(chunk.drop_attrs())
    values = {name: value[ids] for name, value in model_indicators(model).items()}
    counts = np.array(known.total)[ids]
    canary = np.array([i in known.canaries for i in ids])
    texts = np.array(token_texts(model, ids), dtype=object)
    coords = {"token": ids, "indicator": list(values), "exposure": ("token", counts)}
    coords |= {"canary": ("token", canary), "text": ("token", texts)}
    data = xr.concat(found, "token").assign_coords(coords)
    data["value"] = label("value", np.stack(list(values.values())), "indicator token", coords)
    responses = {"log_prob": data["log_prob"].to_numpy(), **values}
    rows = [
        [_correlation(response, counts, among, resamples, seed) for among in (canary, ~canary)]
        for response in responses.values()
    ]
    groups = {"response": list(responses), "group": ["canaries", "natural"], "bound": ["value", "low", "high"]}
    data["correlation"] = label("correlation", np.array(rows), "response group bound", groups)
    return data


def _copied(
    model: TransformerBridge, ids: list[int], ordinary: Pool, contexts: int, length: int, seed: int
) -> xr.Dataset:
    """Mean log-prob and rank of the second occurrence of each single token."""
    bos = bos_id(model)
    drawn = [
        repeated(Pool(str(i), (i,)), batch=contexts, length=length, bos=bos, among=ordinary, seed=seed) for i in ids
    ]
    rows, second = (torch.cat([getattr(d, n) for d in drawn]).to(model.cfg.device) for n in ("ids", "tested"))
    second[:, : length + (bos is not None)] = False
    if rows.shape[1] > model.cfg.n_ctx:
        raise InterpError(f"two blocks of {length} do not fit the context of {model.cfg.n_ctx}: use a smaller --block")
    scores: dict[str, list[torch.Tensor]] = {"log_prob": [], "rank": []}
    size = max(1, 1024 // rows.shape[1])
    for part, at in zip(rows.split(size), second.split(size), strict=True):
        logits = model(part, return_type="logits", prepend_bos=False)
        scores["log_prob"].append(log_probs(logits, part)[at].cpu())
        scores["rank"].append(ranks(logits, part)[at].cpu())
    means = {n: torch.cat(v).float().view(len(ids), contexts).mean(1).numpy() for n, v in scores.items()}
    return xr.Dataset({name: ("token", mean) for name, mean in means.items()})


def _correlation(values: np.ndarray, counts: np.ndarray, among: np.ndarray, resamples: int, seed: int) -> list[float]:
    order, doses = rank_codes(values), rank_codes(counts)

    def correlation(tokens: np.ndarray) -> float:
        return spearman(order[tokens], doses[tokens])

    tokens = np.flatnonzero(among & np.isfinite(values))
    return [correlation(tokens), *statistic_interval(correlation, tokens, resamples=resamples, seed=seed)]
