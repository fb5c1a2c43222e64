"""How likely does a token ever get? The largest logit, log-prob and probability that a pool's tokens reach, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.pools import ordinary_pool, token_texts
from interp.progress import track
from interp.results import label
from interp.texts import text_windows
from interp.tokens import Pool, repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

MEASURES = ("logit", "centred_logit", "log_prob", "probability")


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
    """`largest` [token measure], over all contexts and positions, with `at_context`, `at_position` and `after` (a text).

    Contexts are `contexts` sequences of `window` random ordinary tokens behind BOS or, with `text` (a file), windows of it.
    A logit is no log-probability: `logit` is raw, `centred_logit` has the mean over the vocabulary taken off (adding a
    constant to all logits changes no probability), `log_prob` is in nats, `probability` its exponential. The prediction
    read at position p is about the token after p. Tokens of all pools stand in a row, the coordinate `pool` tells which.

    Raises `InterpError` for a text file that cannot be read or is empty, or a length that does not fit the context.
    """
    import torch

    _check_length(model, window)
    if most_windows < 1:
        raise InterpError(f"most_windows {most_windows}: use a whole number from 1 up")
    ids = text_windows(model, text, window, most_windows) if text else _random(model, contexts, window, seed)
    names = [p.name for p in pools for _ in p.ids]
    targets = torch.tensor([i for p in pools for i in p.ids], device=ids.device)
    best = torch.full((len(targets), len(MEASURES)), -torch.inf, device=ids.device)
    where = torch.zeros((len(targets), len(MEASURES), 2), dtype=torch.long, device=ids.device)
    rows = max(1, 1024 // ids.shape[1])
    for start in track(range(0, len(ids), rows), "logits over contexts", total=-(-len(ids) // rows)):
        logits = model(ids[start : start + rows], return_type="logits", prepend_bos=False).float()
        for k, values in enumerate(_measured(logits, targets)):
            value, at = values.flatten(0, 1).max(0)
            better = value > best[:, k]
            place = torch.stack([start + at // ids.shape[1], at % ids.shape[1]], -1)
            best[:, k], where[:, k] = (
                torch.where(better, value, best[:, k]),
                torch.where(better[:, None], place, where[:, k]),
            )
    tokens = targets.cpu().numpy()
    coords = {
        "token": tokens, "measure": list(MEASURES), "pool": ("token", np.array(names, dtype=object)),
        "text": ("token", np.array(token_texts(model, tokens.tolist()), dtype=object)),
    }  # fmt: skip
    data = {"largest": label("largest", best, "token measure", coords)}
    for k, name in enumerate(("at_context", "at_position")):
        data[name] = label(name, where[..., k], "token measure", coords)
    context, position = where[..., 0].flatten(), where[..., 1].flatten()
    before = np.array(token_texts(model, ids[context, position].tolist()), dtype=object)
    data["after"] = label("after", before.reshape(len(tokens), len(MEASURES)), "token measure", coords)
    return xr.Dataset(data).assign_attrs(
        contexts=len(ids), positions=ids.numel(), source=text or "random ordinary tokens"
    )


def _measured(logits: Tensor, targets: Tensor) -> list[Tensor]:
    """Each measure [batch, position, target]."""
    at = logits[..., targets]
    log_p = at - logits.logsumexp(-1, keepdim=True)
    return [at, at - logits.mean(-1, keepdim=True), log_p, log_p.exp()]


def _random(model: TransformerBridge, contexts: int, length: int, seed: int) -> Tensor:
    if contexts < 1:
        raise InterpError(f"contexts {contexts}: use a whole number from 1 up")
    bos = getattr(model.tokenizer, "bos_token_id", None)
    # the first copy of a repeated block is a random context
    tokens = repeated(ordinary_pool(model), batch=contexts, length=length, bos=bos, seed=seed)
    return tokens.ids[:, : length + (bos is not None)].to(model.cfg.device)


def _check_length(model: TransformerBridge, length: int) -> None:
    if not 2 <= length < model.cfg.n_ctx:
        raise InterpError(
            f"window {length}: use 2 to {model.cfg.n_ctx - 1}, the context of this model less one for BOS"
        )
