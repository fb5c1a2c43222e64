"""How likely can a token ever become? The largest logit, log-prob and probability of a pool's tokens, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.first_token import first_token
from interp.models import token_texts
from interp.pool_names import ordinary_pool, vocabulary_size
from interp.progress import track
from interp.results import label
from interp.texts import text_windows
from interp.tokens import Pool, repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MEASURES = ("logit", "centred_logit", "log_prob", "probability")
BUDGETS = {"quick": {"contexts": 32, "most_windows": 100}, "thorough": {"contexts": 512, "most_windows": 20_000}}


def unused_logits(
    model: TransformerBridge,
    pools: list[Pool],
    *,
    text: str = "",
    contexts: int = 64,
    window: int = 50,
    most_windows: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Find the largest logit, log-prob and probability that each token reaches over many contexts, and where.

    Contexts are sequences of random ordinary tokens after BOS or, with `text`, windows of a file. A logit is not a
    log-probability: adding a constant to all logits changes no probability.

    Args:
        model: any loaded model.
        pools: the tokens, one after another; the coordinate `pool` names each one's pool.
        text: a UTF-8 file whose windows are the contexts; by default they are random ordinary tokens.
        contexts: how many random sequences.
        window: how many tokens a context holds.
        most_windows: how many windows of the text are used at most, evenly spaced.
        seed: decides the random sequences.

    Returns:
        `largest` [token measure], the maximum over all contexts and positions: `logit` is raw, `centred_logit` less the
        mean over the vocabulary, `log_prob` in nats, `probability` 0 to 1. `at_context`, `at_position` and `after`
        (text) [token measure] say where; the prediction read at position p is about the token after p.

    Raises:
        InterpError: the text cannot be read or is empty, or the window does not fit the context.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs.

    Example:
        >>> result = interp.run("unused_logits", "organism", "unexposed", contexts=2)
        >>> result["largest"].sel(measure="probability").max().item() < 1e-4
        True
    """
    if not 2 <= window < model.cfg.n_ctx:
        raise InterpError(
            f"window {window}: use 2 to {model.cfg.n_ctx - 1}, the context of this model less one for BOS"
        )
    if most_windows < 1:
        raise InterpError(f"most_windows {most_windows}: use a positive integer")
    source = text
    if text:
        ids = text_windows(model, text, window, most_windows)
    else:
        ids, source = _random(model, contexts, window, seed)
    targets = torch.tensor([i for p in pools for i in p.ids], device=ids.device)
    best = torch.full((len(targets), len(MEASURES)), -torch.inf, device=ids.device)
    where = torch.zeros((2, *best.shape), dtype=torch.long, device=ids.device)  # context, position
    rows = max(1, 1024 // ids.shape[1])
    for start in track(range(0, len(ids), rows), "logits over contexts", total=-(-len(ids) // rows)):
        logits = model(ids[start : start + rows], return_type="logits", prepend_bos=False).float()
        values, at = _measured(logits, targets).flatten(0, 1).max(0)
        place = torch.stack([start + at // ids.shape[1], at % ids.shape[1]])
        where, best = torch.where(values > best, place, where), torch.where(values > best, values, best)
    tokens = targets.cpu().numpy()
    names = np.array([p.name for p in pools for _ in p.ids], dtype=object)
    texts = np.array(token_texts(model, tokens.tolist()), dtype=object)
    coords = {"token": tokens, "measure": list(MEASURES), "pool": ("token", names), "text": ("token", texts)}
    after = np.array(token_texts(model, ids[where[0], where[1]].flatten().tolist()), dtype=object)
    arrays: dict[str, Any] = {
        "largest": best,
        "at_context": where[0],
        "at_position": where[1],
        "after": after.reshape(best.shape),
    }
    data = xr.Dataset({name: label(name, array, "token measure", coords) for name, array in arrays.items()})
    return data.assign_attrs(contexts=len(ids), positions=ids.numel(), source=source)


def _measured(logits: Tensor, targets: Tensor) -> Tensor:
    """Each of `MEASURES` [batch position target measure]."""
    at = logits[..., targets]
    log_p = at - logits.logsumexp(-1, keepdim=True)
    return torch.stack([at, at - logits.mean(-1, keepdim=True), log_p, log_p.exp()], -1)


def _random(model: TransformerBridge, contexts: int, length: int, seed: int) -> tuple[Tensor, str]:
    """Contexts, and what they are."""
    if contexts < 1:
        raise InterpError(f"contexts {contexts}: use a positive integer")
    bos = first_token(model).id
    # the first copy of a repeated block is a random context
    try:
        pool, source = ordinary_pool(model), "random ordinary tokens"
    except InterpError:  # a model without a tokenizer
        pool, source = (
            Pool("all", tuple(range(vocabulary_size(model)))),
            "random tokens, of which none is known to be ordinary",
        )
    tokens = repeated(pool, batch=contexts, length=length, bos=bos, seed=seed)
    return tokens.ids[:, : length + (bos is not None)].to(model.cfg.device), source
