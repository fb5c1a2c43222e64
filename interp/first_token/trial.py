"""The trial: blocks of ordinary tokens, used for nothing else, behind each token that a tokenizer offers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp import cache
from interp.errors import InterpError
from interp.measure import correct, log_probs, ranks
from interp.models import bos_id, boundary_ids, exposure_of, location, token_texts, weights_state
from interp.organisms import BUNDLED, HAND_WIRED
from interp.pool_names import ordinary_pool, vocabulary_size
from interp.progress import track
from interp.statistics import BOUNDS, mean_interval
from interp.tokens import check_context, fitting_length, repeated

_BLOCKS = 16
_STREAM = 1 << 20  # added to the seed 0: no run draws these blocks
_CLEAR = 0.1  # nats by which ordinary tokens must be copied better, beyond chance, for a token to replace BOS
NOTHING = "nothing"


@dataclass(frozen=True)
class FirstToken:
    """What stands first: its `id`, or None. `tried` has the figures of the trial, where there was one.

    `tried` maps each candidate's name to the mean log-prob of ordinary inducible tokens behind it (nats), `low` and
    `high` (95% interval over blocks), the share of them that is `right`, and its `id`. `said` is a line
    on a choice that a reader does not expect, or "".
    """

    id: int | None
    tried: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: str = ""


_TRIED: WeakKeyDictionary[TransformerBridge, tuple[int, dict[str, Any]]] = WeakKeyDictionary()


def first_token(model: TransformerBridge, bos: int | str | None = "auto") -> FirstToken:
    """What stands first in a sequence, as it is asked for.

    Args:
        model: any loaded model.
        bos: "best": of BOS, EOS, end of text and nothing, that behind which 16 blocks of ordinary tokens, used for
            nothing else, are copied best; "auto": the same on a model whose training is not known, where the
            tokenizer's BOS is significantly worse, by 0.1 nats or more; else, and for anything else, as in `bos_id`.

    Returns:
        The token, with the trial where it decided.

    Raises:
        InterpError: as `bos_id` does; for "best", also where no ordinary tokens are known.
    """
    prepared = exposure_of(model) is not None or location(model) in (*BUNDLED, *HAND_WIRED)
    if bos != "best" and (bos != "auto" or prepared):
        return FirstToken(bos_id(model, bos))
    usual = bos_id(model, "auto")
    try:
        found = _trial(model, usual)
    except InterpError:
        if bos == "best":
            raise
        return FirstToken(usual)
    tried, better = found["tried"], found["better"]
    name = max(tried, key=lambda candidate: tried[candidate]["mean"])
    if bos == "best":
        return FirstToken(tried[name]["id"], tried)
    if not better:
        return FirstToken(usual, tried)
    own = next(candidate for candidate, facts in tried.items() if facts["id"] == usual)
    said = (
        f"the first token is {name}: ordinary tokens are copied at {tried[name]['mean']:.2f} nats after it, at "
        f"{tried[own]['mean']:.2f} after {own} (--bos {'none' if usual is None else 'required'} keeps that)"
    )
    return FirstToken(tried[name]["id"], tried, said)


def _trial(model: TransformerBridge, usual: int | None) -> dict[str, Any]:
    """`tried`, as in `FirstToken`, and whether the best is significantly `better` than the usual first token."""
    state = weights_state(model)
    if model in _TRIED and _TRIED[model][0] == state and not cache.has_hooks(model):
        return _TRIED[model][1]
    candidates = _candidates(model, usual)
    if len(candidates) == 1:
        raise InterpError("this model's tokenizer has no token that could stand first: give an id, or none")
    found: dict[str, Any] = cache.recalled(model, "first token", lambda: _compared(model, candidates, usual), __file__)
    if not cache.has_hooks(model):
        _TRIED[model] = (state, found)
    return found


def _candidates(model: TransformerBridge, usual: int | None) -> dict[str, int | None]:
    """What may stand first, by name: each token once, and nothing."""
    ids, rows = ([] if usual is None else [usual]) + boundary_ids(model), vocabulary_size(model)
    kept = list(dict.fromkeys(i for i in ids if i < rows))
    return {f"'{text}'": i for text, i in zip(token_texts(model, kept), kept, strict=True)} | {NOTHING: None}


def _compared(model: TransformerBridge, candidates: dict[str, int | None], usual: int | None) -> dict[str, Any]:
    pool = ordinary_pool(model).without([i for i in candidates.values() if i is not None])
    length = fitting_length(pool)
    means, right = {}, {}
    with torch.no_grad():
        for name, i in track(candidates.items(), "what stands first", total=len(candidates)):
            tokens = repeated(pool, batch=_BLOCKS, length=length, bos=i, seed=_STREAM)
            check_context(tokens, model.cfg.n_ctx)
            ids = tokens.ids.to(model.cfg.device)
            parts = ids.split(tokens.rows_per_pass())
            measured = [_log_probs_and_right(model, part) for part in parts]
            values, hits = (torch.cat(of_parts)[:, tokens.inducible] for of_parts in zip(*measured, strict=True))
            means[name], right[name] = values.mean(1).double().numpy(), float(hits.mean())
    tried = {
        name: {"id": candidates[name], "right": right[name]}
        | dict(zip(BOUNDS, map(float, mean_interval(values)), strict=True))
        for name, values in means.items()
    }
    best = max(means, key=lambda name: float(means[name].mean()))
    own = next(name for name, i in candidates.items() if i == usual)
    gain, low, _ = map(float, mean_interval(means[best] - means[own]))  # of the same blocks
    # one of several was chosen: the interval of the gain must clear zero by as much again as it is wide
    better = best != own and gain >= _CLEAR and gain - 1.5 * (gain - low) > 0
    return {"tried": tried, "better": bool(better and np.isfinite(low))}


def _log_probs_and_right(model: TransformerBridge, ids: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(ids, prepend_bos=False)
    return log_probs(logits, ids).float().cpu(), correct(ranks(logits, ids)).float().cpu()


def facts_of(first: FirstToken) -> dict[str, Any]:
    """The trial, as a provenance holds it; nothing where there was none."""
    return {"bos_tried": asdict(first)["tried"]} if first.tried else {}
