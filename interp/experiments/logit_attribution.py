"""Which components write the right token's logit?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.hooks import forget_patterns
from interp.models import folded
from interp.progress import track
from interp.results import label
from interp.tokens import Repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def logit_attribution(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None) -> xr.Dataset:
    """Direct logit attribution of the tested inducible tokens, mean per sequence, by TransformerLens's own function.

    `by_component` [component batch] (embedding, attention and MLP of each layer) and `by_head` [layer head batch], each in logits of
    the right token less the mean logit over the vocabulary; positive: it speaks for the token. The components and `bias`
    (the unembedding's, folded norm included) sum to `total` [batch], the centred logit, whose share each can be compared with.
    Weights are folded first, on a copy, edits of the model included.

    `batch_size` is the number of sequences in one forward pass. Raises `InterpError` where a sequence tests no inducible token.
    """
    import torch
    from transformer_lens.tools.analysis import direct_logit_attribution

    plain = folded(model)
    if plain.cfg.output_logits_soft_cap and plain.cfg.output_logits_soft_cap > 0:
        raise InterpError("this model caps its logits, so that they are no sum over components: use logit_lens")
    if not tokens.inducible_tested.any(1).all():
        raise InterpError("a sequence tests no inducible token: use longer blocks")
    layers, heads = plain.cfg.n_layers, plain.cfg.n_heads
    wanted = (
        "hook_embed",
        "hook_pos_embed",
        "hook_attn_out",
        "hook_mlp_out",
        "hook_z",
        "hook_scale",
        "hook_resid_post",
    )
    chunk = tokens.rows_per_pass(batch_size)
    parts: dict[str, list[torch.Tensor]] = {"by_component": [], "by_head": [], "bias": [], "total": []}
    labels: list[str] = []
    for part in track(tokens.split(chunk), f"attribution: {tokens.pool}", total=-(-len(tokens.ids) // chunk)):
        read = torch.from_numpy(part.inducible_tested[:, 1:]).to(part.ids.device)
        weight = read / read.sum(1, keepdim=True)
        targets = part.ids.roll(-1, 1)  # the last one, which nothing follows, is not read
        logits, cache = plain.run_with_cache(
            part.ids, names_filter=lambda name: name.endswith(wanted), prepend_bos=False
        )
        forget_patterns(plain)
        for name, unit in (("by_component", "component"), ("by_head", "head")):
            found = direct_logit_attribution(plain, answer_tokens=targets, unit=unit, pos=None, cache=cache)
            values = (found.attribution[..., :-1] * weight).sum(-1)
            if unit == "head":
                values = values[: layers * heads].view(layers, heads, -1)
            else:
                labels = found.labels
            parts[name].append(values.float().cpu())
        bias = plain.b_U - plain.b_U.mean()
        logits = logits - logits.mean(-1, keepdim=True)
        right = logits.gather(-1, targets[..., None])[..., 0]
        parts["bias"].append((bias[targets][:, :-1] * weight).sum(-1).cpu())
        parts["total"].append((right[:, :-1] * weight).sum(-1).cpu())
    coords = {"batch": np.arange(len(tokens.ids)), "component": labels}
    dims = {"by_component": "component batch", "by_head": "layer head batch", "bias": "batch", "total": "batch"}
    return xr.Dataset({name: label(name, torch.cat(parts[name], -1), dims[name], coords) for name in parts})
