"""Which components write the right token's logit?"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.hooks import attention_layers, passes, record
from interp.identities import reason_against, require
from interp.residual import Readout, head_writes, write_hooks, writes
from interp.results import label
from interp.tokens import Repeated


def logit_attribution(model: TransformerBridge, tokens: Repeated, *, batch_size: int | None = None) -> xr.Dataset:
    """Measure the direct logit attribution of the tested inducible tokens.

    TransformerLens's own function is not used: it leaves out factors behind the unembedding (Granite, Cohere) and does
    not know norms behind a block (OLMo 2, Gemma); docs/upstream.md shows both.

    Args:
        model: any loaded model whose logits are a sum over components.
        tokens: repeated sequences.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.

    Returns:
        Means per sequence, in logits of the right token less the mean logit over the vocabulary; positive: it speaks
        for the token. `by_component` [component batch] (embedding, attention and MLP of each layer) and `by_head`
        [layer head batch], without value biases; NaN in layers without attention, and throughout where what heads
        write cannot be told apart (the attribute `no_heads` says why). The components and `bias` [batch] (the
        unembedding's and the last norm's) sum to `total` [batch], the centred logit.

    Raises:
        InterpError: the model's logits are no sum over components, or a sequence tests no inducible token.
    """
    require(model, "residual", "readout")
    if not tokens.inducible_tested.any(1).all():
        raise InterpError("a sequence tests no inducible token: use longer blocks")
    readout, no_heads = Readout.of(model), reason_against(model, "heads")
    readout.require_sum()
    layers = [] if no_heads else attention_layers(model)
    parts: list[dict[str, Tensor]] = []
    for part in passes(tokens, f"attribution: {tokens.pool}", batch_size):
        read = torch.from_numpy(part.inducible_tested).to(part.ids.device)
        sequence, position = read.nonzero(as_tuple=True)
        targets = part.ids[sequence, position]
        with torch.no_grad():
            seen = record(model, part.ids, write_hooks(model, heads=not no_heads))
        # each right token is read where it is predicted, at the position before
        at = {name: value.expand(len(read), *value.shape[1:])[sequence, position - 1] for name, value in seen.items()}
        resid, normed = at["ln_final.hook_in"].float(), at["unembed.hook_in"].float()
        towards = readout.directions(targets) * readout.inverse_scale(resid, normed)
        components = {name: (value.float() * towards).sum(-1) for name, value in writes(model, at).items()}
        by_head = [torch.einsum("phd,pd->hp", head_writes(model, layer, at)[0], towards) for layer in layers]
        by_layer = torch.full((model.cfg.n_layers, model.cfg.n_heads, len(targets)), torch.nan)
        if layers:
            by_layer[layers] = torch.stack(by_head).cpu()
        bias = readout.constant(targets)
        centred = (readout.rows[targets] - readout.rows.mean(0), readout.bias[targets] - readout.bias.mean())
        total = readout.factor * ((centred[0] * normed).sum(-1) + centred[1])
        values = {
            "by_component": torch.stack(list(components.values())),
            "by_head": by_layer,
            "bias": bias,
            "total": total,
        }
        count = read.sum(1).cpu()
        parts.append({name: _by_sequence(value.cpu(), sequence.cpu(), count) for name, value in values.items()})
    coords = {"batch": np.arange(len(tokens.ids)), "component": list(components)}
    dims = {"by_component": "component batch", "by_head": "layer head batch", "bias": "batch", "total": "batch"}
    found = xr.Dataset(
        {name: label(name, torch.cat([part[name] for part in parts], -1), dims[name], coords) for name in dims}
    )
    return found.assign_attrs({"no_heads": no_heads} if no_heads else {})


def _by_sequence(values: Tensor, sequence: Tensor, count: Tensor) -> Tensor:
    """Means over the places of each sequence: [... place] to [... batch]."""
    return torch.zeros(*values.shape[:-1], len(count)).index_add(-1, sequence, values.float()) / count
