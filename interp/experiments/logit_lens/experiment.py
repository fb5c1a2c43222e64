"""After which layer does the model know the token that it has seen before?"""

from __future__ import annotations

import torch
import xarray as xr
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_lens as lens, logit_readout

from interp.hooks import name_of, passes, record
from interp.identities import require
from interp.metrics import UNITS, Metric, check_metric, of_rows
from interp.results import label
from interp.tokens import Answered, Repeated, Sequences

_ROWS = 256  # tokens that are read in one pass: their logits over the whole vocabulary are held


def logit_lens(
    model: TransformerBridge, tokens: Answered, *, metric: Metric = "log_prob", batch_size: int | None = None
) -> xr.Dataset:
    """Read the right token's log-prob and rank from the residual stream after each layer, by the token predicted.

    Args:
        model: any loaded model.
        tokens: repeated sequences, or prompts with answers.
        metric: what is read of prompts: "log_prob", "logit_difference" to the rivals, "probability", "rank", or "kl",
            each depth's divergence from the model's own prediction.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.

    Returns:
        `log_prob_after` (nats) and `rank_after` (0: arg-max; ties do not count against the token) [after batch
        position]; NaN at position 0, which nothing predicts. The depths `after` are `embed`, `layer 0`, ...; the last
        one is the model's own prediction. Of prompts, and for another metric: `score_after` [after batch], the mean
        over what is read.

    Raises:
        InterpError: the metric needs answers, rivals or pairs that the sequences do not have.

    Source:
        nostalgebraist 2020, interpreting GPT: the logit lens.

    Example:
        >>> result = interp.run("logit_lens", "wired", "1:65", batch=2)
        >>> copied = result["log_prob_after"].where((result["half"] == 2) & (result["offset"] > 0))
        >>> (copied.mean(["pool", "batch", "position"]) > -0.1).to_series().to_dict()
        {'embed': False, 'layer 0': False, 'layer 1': True}
    """
    require(model, "lens")
    check_metric(metric, tokens)
    if not isinstance(tokens, Repeated) or metric != "log_prob":
        return _of_prompts(model, tokens, metric, batch_size)
    found = []
    for part in passes(tokens, f"logit lens: {tokens.pool}", batch_size):
        targets = part.ids.roll(-1, 1)  # the last one, which nothing follows, is dropped
        result = lens(model, part.ids, positions=None, targets=targets, return_type="log_probs")
        values = torch.stack([result.values[..., 0], result.rank_trajectory().float()])
        found.append(pad(values[..., :-1], (1, 0), value=torch.nan).cpu())
    coords = {**tokens.coords, "after": ["embed", *(f"layer {i}" for i in range(model.cfg.n_layers))]}
    names = ("log_prob_after", "rank_after")
    return xr.Dataset(
        {
            name: label(name, values, "after batch position", coords)
            for name, values in zip(names, torch.cat(found, 2), strict=True)
        }
    )


def _of_prompts(model: TransformerBridge, tokens: Sequences, metric: Metric, batch_size: int | None) -> xr.Dataset:
    """`score_after`, a depth at a time: the logits of all depths at once would not fit."""
    layers = model.cfg.n_layers
    names = [*(name_of(model, layer, "resid_pre") for layer in range(layers)), name_of(model, layers - 1, "resid_post")]
    found = []
    most = max(1, int(tokens.read.sum(1).max()))
    size = min(tokens.rows_per_pass(), max(1, _ROWS // most)) if batch_size is None else batch_size
    for part in passes(tokens, f"logit lens: {tokens.pool}", size):
        sequence, position = part.read.nonzero(as_tuple=True)
        seen = record(model, part, names)
        depths = [seen[name][sequence, position - 1] for name in names]
        clean = _logits(model, depths[-1])
        found.append(torch.stack([of_rows(_logits(model, at), part, metric, clean) for at in depths]).cpu())
    coords = {**tokens.coords, "after": ["embed", *(f"layer {i}" for i in range(layers))]}
    data = label("score_after", torch.cat(found, 1), "after batch", coords).to_dataset()
    return data.assign_attrs(metric=metric, unit=UNITS[metric])


def _logits(model: TransformerBridge, residual: torch.Tensor) -> torch.Tensor:
    """[place vocabulary], as the lens reads them."""
    return logit_readout(model, residual, return_type="logits").values
