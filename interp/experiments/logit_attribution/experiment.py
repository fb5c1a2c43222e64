"""Which components write the right token's logit?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

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
from interp.tokens import Answered, Repeated, Sequences

Against = Literal["auto", "vocabulary", "rivals"]


def logit_attribution(
    model: TransformerBridge, tokens: Answered, *, against: Against = "auto", batch_size: int | None = None
) -> xr.Dataset:
    """Measure how much each component and each head writes to the logit of the right token (direct logit attribution).

    Args:
        model: any loaded model whose logits are a sum over components.
        tokens: repeated sequences, of which the tested inducible tokens are read, or prompts with answers.
        against: what the right token's logit is compared with: the mean over the "vocabulary", or over its "rivals";
            "auto": the rivals where every prompt has some.
        batch_size: number of sequences in one forward pass; it changes speed and memory only.

    Returns:
        Means per sequence, in logits, positive where a component favours the right token: `by_component` [component
        batch] (embedding, attention and MLP of each layer) and `by_head` [layer head batch], without value biases (NaN
        without attention, and where heads cannot be separated: attribute `no_heads`). The components and `bias` [batch]
        sum to `total` [batch], the right token's logit minus what it is compared with.

    Raises:
        InterpError: the logits are not a sum over components, a sequence tests no inducible token, or there are no
            rivals.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("logit_attribution", "wired", "1:65", batch=2)
        >>> parts = result["by_component"].sum("component") + result["bias"]  # they sum to the whole
        >>> bool(abs(parts - result["total"]).max() < 1e-3)
        True
    """
    require(model, "residual", "readout")
    if not bool(tokens.read.any(1).all()):
        raise InterpError("a sequence tests no inducible token: use longer blocks")
    if against not in get_args(Against):
        raise InterpError(f"against '{against}': use {', '.join(get_args(Against))}")
    if against == "rivals" and tokens.rivals is None:
        raise InterpError(f"against rivals, and not every line of '{tokens.pool}' has some: use vocabulary")
    to_rivals = tokens.rivals is not None and against != "vocabulary"
    readout, no_heads = Readout.of(model), reason_against(model, "heads")
    readout.require_sum()
    layers = [] if no_heads else attention_layers(model)
    parts: list[dict[str, Tensor]] = []
    for part in passes(tokens, f"attribution: {tokens.pool}", batch_size):
        read = part.read
        sequence, position = read.nonzero(as_tuple=True)
        of = _Contrast.of(part, sequence, position, rivals=to_rivals)
        with torch.no_grad():
            seen = record(model, part.ids, write_hooks(model, heads=not no_heads))
        # each right token is read where it is predicted, at the position before
        at = {name: value.expand(len(read), *value.shape[1:])[sequence, position - 1] for name, value in seen.items()}
        resid, normed = at["ln_final.hook_in"].float(), at["unembed.hook_in"].float()
        towards = of(readout.directions) * readout.inverse_scale(resid, normed)
        components = {name: (value.float() * towards).sum(-1) for name, value in writes(model, at).items()}
        by_head = [torch.einsum("phd,pd->hp", head_writes(model, layer, at)[0], towards) for layer in layers]
        by_layer = torch.full((model.cfg.n_layers, model.cfg.n_heads, len(position)), torch.nan)
        if layers:
            by_layer[layers] = torch.stack(by_head).cpu()
        bias = of(lambda token: readout.constant(token)[:, None])[:, 0]
        rows = of(lambda token: readout.rows[token] - readout.rows.mean(0))
        constant = of(lambda token: (readout.bias[token] - readout.bias.mean())[:, None])[:, 0]
        total = readout.factor * ((rows * normed).sum(-1) + constant)
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
    if not isinstance(tokens, Repeated):  # a variable, since sets may differ in it
        found = found.assign(against=np.array("rivals" if to_rivals else "vocabulary", dtype=object))
    return found.assign_attrs({"no_heads": no_heads} if no_heads else {})


class _Contrast:
    """The right tokens at some places minus what they are compared with, a mean over either."""

    def __init__(self, right: Tensor, others: Tensor | None):
        self.right, self.others = right, others  # [place choice], -1 for none

    @classmethod
    def of(cls, tokens: Sequences, sequence: Tensor, position: Tensor, *, rivals: bool) -> _Contrast:
        """Those of what is read of some sequences."""
        assert tokens.answers is not None
        others = tokens.rivals[sequence, position] if rivals and tokens.rivals is not None else None
        return cls(tokens.answers[sequence, position], others)

    def __call__(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """The contrast of a value [place d] that each token has, one choice at a time: all at once may be large."""
        found = self._mean(value, self.right)
        return found if self.others is None else found - self._mean(value, self.others)

    @staticmethod
    def _mean(value: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        if tokens.shape[1] == 1:
            return value(tokens[:, 0])
        total: Tensor | float = 0.0
        for choice in tokens.T:
            total = total + value(choice.clamp_min(0)) * (choice >= 0)[:, None]
        assert isinstance(total, Tensor)
        return total / (tokens >= 0).sum(1, keepdim=True)


def _by_sequence(values: Tensor, sequence: Tensor, count: Tensor) -> Tensor:
    """Means over the places of each sequence: [... place] to [... batch]."""
    return torch.zeros(*values.shape[:-1], len(count)).index_add(-1, sequence, values.float()) / count
