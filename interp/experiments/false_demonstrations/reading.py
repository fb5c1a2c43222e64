"""What does each layer predict for the label after every item, and where does the last item attend for it?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_readout

from interp.hooks import Hook, attention_layers, forget_patterns, name_of, relative_error, run_to_stop, stop
from interp.progress import track
from interp.prompts.demonstrations import Demonstrations

_AGREE = 1e-4  # of the spread of logits: labels read alone are those of the whole vocabulary


def readings(model: TransformerBridge, made: Demonstrations, *, batch_size: int | None = None) -> xr.Dataset:
    """Read every label off the residual stream at each depth, and the last item's attention to the labels before it.

    Args:
        model: any loaded model.
        made: the prompts.
        batch_size: number of prompts in one forward pass; it changes speed and memory only.

    Returns:
        `log_odds` [after place batch label], nats: the log-prob of each label among the labels of the task, less that
        of all others together, as the logit lens has it after each depth, after each item. `attention`
        [layer head batch demonstration], from the last item to the label of each demonstration; NaN in layers without
        attention.
    """
    size = made.tokens.rows_per_pass(batch_size)
    starts = range(0, len(made.tokens), size)
    found = [
        _of_pass(model, made.rows(slice(start, start + size)))
        for start in track(starts, f"demonstrations: {made.tokens.pool}", total=len(starts))
    ]
    logits, attention = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
    return xr.Dataset(
        {
            "log_odds": (("after", "place", "batch", "label"), log_odds(logits).numpy()),
            "attention": (("layer", "head", "batch", "demonstration"), attention.numpy()),
        }
    )


def _of_pass(model: TransformerBridge, made: Demonstrations) -> tuple[Tensor, Tensor]:
    """[after place batch label] logits and [layer head batch demonstration] attention."""
    layers, attending = model.cfg.n_layers, attention_layers(model)
    names = [*(name_of(model, layer, "resid_pre") for layer in range(layers)), name_of(model, layers - 1, "resid_post")]
    places = torch.from_numpy(made.places)
    row = torch.arange(len(places))
    streams: dict[str, Tensor] = {}
    shape = (layers, model.cfg.n_heads, len(places), places.shape[1] - 1)
    attention = torch.full(shape, torch.nan)

    def see(value: Tensor, hook: Any, name: str) -> None:
        streams[name] = value[row[:, None].to(value.device), places.to(value.device) - 1].detach()

    def look(pattern: Tensor, hook: Any, layer: int) -> None:
        last = pattern[row.to(pattern.device), :, places[:, -1].to(pattern.device) - 1]  # [batch head key]
        keys = places[:, None, :-1].to(pattern.device).expand(-1, last.shape[1], -1)
        attention[layer] = last.gather(-1, keys).transpose(0, 1).float().cpu()

    def forget(output: Any, hook: Any) -> None:
        forget_patterns(model)

    hooks: list[Hook] = [(name, partial(see, name=name)) for name in names]
    hooks += [(name_of(model, layer, "pattern"), partial(look, layer=layer)) for layer in attending]
    hooks += [(f"blocks.{layer}.attn.hook_out", forget) for layer in attending]
    with torch.no_grad():
        run_to_stop(model, made.tokens.ids, [*hooks, ("unembed.hook_in", stop)])
        stream = torch.stack([streams[name] for name in names])  # [after batch place d_model]
        logits = label_logits(model, stream, made.label_ids)
    return logits.transpose(1, 2).cpu(), attention


def label_logits(model: TransformerBridge, stream: Tensor, labels: np.ndarray) -> Tensor:
    """Logits of some tokens by the logit lens, [... d_model] to [... label].

    Only the rows of these tokens are multiplied. Where that differs from the lens on the whole vocabulary, tried on
    the first position, the whole vocabulary is used.
    """
    head = model.original_model.get_output_embeddings()
    rows, bias = head.weight.detach()[torch.from_numpy(labels)], getattr(head, "bias", None)

    def alone(vectors: Tensor) -> Tensor:
        found = (model.ln_final(vectors).float() @ rows.float().T).detach()
        return found if bias is None else found + bias.detach()[torch.from_numpy(labels)].float()

    def whole(vectors: Tensor) -> Tensor:
        return logit_readout(model, vectors, vocab=labels.tolist(), return_type="logits").values.float()

    tried = stream.flatten(1, -2)[:, :1]
    same = relative_error(whole(tried), alone(tried)) < _AGREE * (1 if rows.dtype.itemsize >= 4 else 100)
    return alone(stream) if same else whole(stream)


def log_odds(logits: Tensor) -> Tensor:
    """From logits or log-probs [... label], the log-prob of each label minus that of all others together, in nats."""
    logits = logits.float()
    size = logits.shape[-1]
    others = logits[..., None, :].expand(*logits.shape, size).masked_fill(torch.eye(size, dtype=torch.bool), -torch.inf)
    return logits - others.logsumexp(-1)


def calibrated(odds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which prompts get a label when every label is given to the right number of prompts.

    A label counts as given where its probability among the labels lies above its (1 - 1 / labels) quantile over the
    prompts; at the quantile it counts as a guess.

    Args:
        odds: [... batch label], anything that rises with the probability.
        labels: [... batch] the label in question, by its number.

    Returns:
        [... batch], 1 where it is given, 0 where it is not, 1 / labels at the quantile.

    Source:
        Halawi, Denain and Steinhardt 2023, arXiv 2307.09476, and the thresholds of its code.
    """
    size = odds.shape[-1]
    threshold = np.quantile(odds, 1 - 1 / size, axis=-2, keepdims=True)
    asked = np.broadcast_to(labels, odds.shape[:-1])[..., None]
    own = np.take_along_axis(odds, asked, -1)[..., 0]
    bound = np.take_along_axis(np.broadcast_to(threshold, odds.shape), asked, -1)[..., 0]
    return (own > bound) + (own == bound) / size
