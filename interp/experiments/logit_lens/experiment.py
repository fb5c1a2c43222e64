"""After which layer does the model know the token that it has seen before?"""

from __future__ import annotations

import torch
import xarray as xr
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_lens as lens

from interp.hooks import passes
from interp.identities import require
from interp.results import label
from interp.tokens import Repeated


def logit_lens(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None) -> xr.Dataset:
    """Read the right token's log-prob and rank off the residual stream at each depth, by the token predicted.

    The residual stream goes through the final norm and the unembedding, by TransformerLens's own `logit_lens`.

    Args:
        model: any loaded model.
        tokens: repeated sequences.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.

    Returns:
        `log_prob_after` (nats) and `rank_after` (0: arg-max) [after batch position]; NaN at position 0, which nothing
        predicts. The depths `after` are `embed`, `layer 0`, ...; the last is the model's own prediction. Ties do not
        count against the right token in the rank.

    Source:
        nostalgebraist 2020, interpreting GPT: the logit lens.
    """
    require(model, "lens")
    found = []
    for part in passes(tokens, f"logit lens: {tokens.pool}", batch_size):
        targets = part.ids.roll(-1, 1)  # the last one, which nothing follows, is thrown away
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
