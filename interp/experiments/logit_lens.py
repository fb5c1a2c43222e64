"""After which layer does the model know the token that it has seen before?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from interp.progress import track
from interp.results import label
from interp.tokens import Repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def logit_lens(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None) -> xr.Dataset:
    """`log_prob_after` (nats), `rank_after` (0: arg-max) [after batch position] of the right token, by the token predicted.

    The residual stream at each depth `after` (`embed`, `layer 0`, ...) is read through the final norm and the unembedding
    (nostalgebraist 2020), by TransformerLens's own `logit_lens`; the last depth is the model's own prediction. Ties do not count
    against the right token in the rank. NaN at position 0, which nothing predicts.

    `batch_size` is the number of sequences in one forward pass; it changes speed and memory only.
    """
    import torch
    from torch.nn.functional import pad
    from transformer_lens.tools.analysis import logit_lens as lens

    chunk = tokens.rows_per_pass(batch_size)
    found: dict[str, list[torch.Tensor]] = {"log_prob_after": [], "rank_after": []}
    for part in track(tokens.split(chunk), f"logit lens: {tokens.pool}", total=-(-len(tokens.ids) // chunk)):
        targets = part.ids.roll(-1, 1)  # the last one, which nothing follows, is thrown away
        result = lens(model, part.ids, positions=None, targets=targets, return_type="log_probs")
        found["log_prob_after"].append(pad(result.values[..., :-1, 0], (1, 0), value=torch.nan).cpu())
        ranks = result.rank_trajectory().float()
        found["rank_after"].append(pad(ranks[..., :-1], (1, 0), value=torch.nan).cpu())
    after = ["embed", *(f"layer {i}" for i in range(model.cfg.n_layers))]
    coords = {**tokens.coords, "after": after}
    return xr.Dataset(
        {name: label(name, torch.cat(parts, 1), "after batch position", coords) for name, parts in found.items()}
    )
