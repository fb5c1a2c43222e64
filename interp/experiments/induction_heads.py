"""Which heads make up the copying circuit, by where they look and by what their weights say?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.circuits import composition, copying_of_each, matching_of_each
from interp.errors import InterpError
from interp.heads import called, calls
from interp.models import folded
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.statistics import mean_interval
from interp.texts import text_windows
from interp.tokens import Draw, Pool

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

EARLY, LATE = 50, 500  # tokens whose losses the in-context-learning score compares
SPANS = {"single": 1, "twenty": 20}  # tokens averaged on each side


def induction_heads(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    text: str = "",
    windows: int = 200,
    baseline_draws: int = 200,
    most: int = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Attention, calls against a null, copying, matching and composition of every head; per pool where that matters.

    From patterns: `score` and `looked` [pool stripe layer head batch], `null` [pool kind layer head batch], `line` [pool kind]
    and `called` [pool kind layer head], see `interp.heads`. From folded weights: `copying` [pool measure rows layer head],
    `copying_together` [pool measure rows] (heads called induction on any pool, summed), `matching` [pool through rows layer head]
    (through the `most` best heads called previous-token on each pool),
    `composition` [mode from_layer from_head layer head] with its `baseline` [mode bound], see `interp.circuits`.

    `in_context_learning` [span bound]: loss at token 500 less loss at token 50 behind BOS, in nats per token (Olsson et al. 2022;
    below 0 where context helps), for those two tokens and, with less noise, for the twenty at each; mean and 95% interval over
    `windows` windows of a text: the file `text`, or the part of the Python standard library that no bundled model was trained
    on. NaN where the context is shorter or there is no tokenizer.
    """
    if windows < 2 or baseline_draws < 1 or most < 1:
        raise InterpError(
            f"windows {windows}, baseline draws {baseline_draws}, most {most}: use whole numbers from 2, 1 and 1 up"
        )
    rows = _text(model, text, windows)  # before the long work, so that a text that cannot be read is said at once
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    found = [keep(f"calls {pool.name}", partial(_called, model, draw, pool, seed)) for pool in pools]
    attention = xr.concat([part.drop_attrs() for part in found], names)
    copiers = sorted({at for part in found for at in called(part, "induction")})
    senders = sorted({at for part in found for at in called(part, "previous")[:most]})
    distance = draw(pools[0]).length - 1
    ids = [pool.ids for pool in pools]
    plain = folded(model)
    parts = [
        attention,
        keep("copying", lambda: xr.concat(copying_of_each(plain, ids, copiers), names)),
        keep("matching", lambda: xr.concat(matching_of_each(plain, ids, senders, distance), names).to_dataset()),
        keep("composition", lambda: composition(plain, draws=baseline_draws, seed=seed)),
        keep("in-context learning", lambda: _in_context(model, rows, seed)),
    ]
    return xr.merge([part.drop_attrs() for part in parts]).assign_attrs(distance=distance)


def _called(model: TransformerBridge, draw: Draw, pool: Pool, seed: int) -> xr.Dataset:
    return calls(model, draw(pool), seed=seed)


def _text(model: TransformerBridge, text: str, windows: int) -> Tensor | None:
    """Windows up to the late token, or None where there is no tokenizer or no room for them."""
    fits = model.tokenizer is not None and model.cfg.n_ctx > LATE
    if not fits:
        if text:
            raise InterpError(f"a text needs a tokenizer and a context of more than {LATE} tokens: leave it out")
        return None
    bos = getattr(model.tokenizer, "bos_token_id", None) is not None
    return text_windows(model, text, LATE + (not bos), windows)


def _in_context(model: TransformerBridge, rows: Tensor | None, seed: int) -> xr.Dataset:
    import torch

    from interp.measure import log_probs

    coords = {"span": list(SPANS), "bound": ["mean", "low", "high"]}
    if rows is None:
        return label("in_context_learning", np.full((len(SPANS), 3), np.nan), "span bound", coords).to_dataset()
    gained = []
    for part in track(rows.split(2), "in-context learning", total=-(-len(rows) // 2)):
        loss = -log_probs(model(part, return_type="logits", prepend_bos=False), part)
        late = [loss[:, LATE + 1 - n : LATE + 1].mean(1) for n in SPANS.values()]
        early = [loss[:, EARLY - n // 2 : EARLY + n - n // 2].mean(1) for n in SPANS.values()]
        gained.append((torch.stack(late, 1) - torch.stack(early, 1)).cpu())
    score = mean_interval(torch.cat(gained), seed=seed).T
    return label("in_context_learning", score, "span bound", coords).to_dataset()
