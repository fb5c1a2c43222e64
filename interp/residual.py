"""What does each component write to the residual stream, and how are logits read from its final state?

Components are measured, not computed from weights: what a layer adds is the difference that it makes. So multipliers,
norms after a block and mixers other than attention are included as they are in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.final_norm import last_norm, norm_parts
from interp.hooks import check_layer, name_of, probe_ids, record, relative_error

_SAME, _SAME_IN_HALF = 1e-3, 0.3  # share of the spread within which two ways to compute an activation agree
_END = ("ln_final.hook_in", "unembed.hook_in")


@takes_what_it_says
def write_hooks(model: TransformerBridge, *, heads: bool = False) -> list[str]:
    """The hooks that `writes` reads and, for `heads`, those that `head_writes` does."""
    known, found = model.hook_dict, ["hook_embed", "hook_pos_embed", *_END]
    for layer in range(model.cfg.n_layers):
        block = f"blocks.{layer}."
        found += [block + f"hook_{what}" for what in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")]
        found += [block + "attn.hook_z", block + "attn.hook_out"] if heads else []
    return [name for name in found if name in known]


@takes_what_it_says
def writes(model: TransformerBridge, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each component adds to the residual stream, in order.

    Args:
        model: any loaded model.
        seen: the activations of `write_hooks` in a run, [... d_model].

    Returns:
        `embed`, `pos_embed` where positions are added, then `L_attn_out` (`L_mixer_out` in a layer with another mixer)
        and `L_mlp_out` of each layer L: [... d_model] each.

    Raises:
        InterpError: the residual stream of a layer cannot be observed.
    """
    layers = range(model.cfg.n_layers)
    missing = [f"blocks.{la}.hook_{end}" for la in layers for end in ("resid_pre", "resid_post")]
    missing = [name for name in [*missing, *_END] if name not in seen]
    if missing:
        raise InterpError(f"this model has no '{missing[0]}': its residual stream cannot be decomposed")
    first, embed = seen["blocks.0.hook_resid_pre"], seen.get("hook_embed")
    positions = seen.get("hook_pos_embed")
    if embed is None or not _agree(first, embed if positions is None else embed + positions, first.dtype):
        embed, positions = first, None  # scaled, normed, or with positions that no hook shows
    found = {"embed": embed} | ({} if positions is None else {"pos_embed": positions.expand_as(embed)})
    for layer in layers:
        block = f"blocks.{layer}.hook_"
        before, after = seen[block + "resid_pre"], seen[block + "resid_post"]
        middle = seen.get(block + "resid_mid", after)
        if block + "attn_out" in seen:
            found[f"{layer}_attn_out"] = seen[block + "attn_out"]
        else:
            found[f"{layer}_mixer_out"] = middle - before
        if block + "mlp_out" in seen:
            found[f"{layer}_mlp_out"] = seen[block + "mlp_out"]
        elif middle is not after:
            found[f"{layer}_mlp_out"] = after - middle
    return found


@takes_what_it_says
def head_writes(model: TransformerBridge, layer: int, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What each head of a layer adds to the residual stream, and what the biases of its attention add.

    A norm or a multiplier after the attention scales each head's output as it scales their sum at that position. Value
    biases, which every query reads in full, count as biases.

    Args:
        model: any loaded model.
        layer: a layer with attention.
        seen: the activations of `write_hooks` with `heads` in a run.

    Returns:
        [... head d_model] and [... d_model], which sum to the attention's write.

    Raises:
        InterpError: what the heads of this model write cannot be separated.
    """
    missing = next((name for what in ("z", "attn_out") if (name := name_of(model, layer, what)) not in seen), None)
    if missing is not None:
        raise InterpError(f"'{missing}' was not recorded: record write_hooks(model, heads=True)")
    z, written = (seen[name_of(model, layer, what)].float() for what in ("z", "attn_out"))
    attention = model.blocks[layer].attn
    output, output_type = attention.W_O.detach().float(), attention.W_O.dtype
    if z.shape[-2:] != output.shape[:2] or len(output) != model.cfg.n_heads:
        raise InterpError(
            f"the outputs of the {model.cfg.n_heads} heads of layer {layer} cannot be separated here (latent attention)"
        )
    bias = getattr(attention, "b_O", None)
    bias = torch.zeros(output.shape[-1]).to(output) if bias is None else bias.detach().float()
    values = value_biases(model, layer)
    by_head = torch.einsum("...he,hed->...hd", z if values is None else z - values, output)
    if values is not None:
        bias = bias + torch.einsum("he,hed->d", values, output)
    total = by_head.sum(-2) + bias
    if not _agree(written, total, output_type):
        behind = seen.get(f"blocks.{layer}.attn.hook_out")
        if behind is None or not _agree(behind.float(), total, output_type):
            raise InterpError(f"the heads of layer {layer} do not sum to what its attention writes")
        # what follows scales each dimension at each position
        scale = torch.where(behind == 0, 0.0, written / behind.float())
        by_head = by_head * scale[..., None, :]
    return by_head, written - by_head.sum(-2)


@takes_what_it_says
def value_biases(model: TransformerBridge, layer: int) -> Tensor | None:
    """[head d_head]: the constant part of a layer's values: their bias, and that of the norm before them.

    None where there is none, or where a query does not read values in full (a sink takes a part).
    """
    check_layer(model, layer)
    block = model.blocks[layer]
    if getattr(block.attn.original_component, "sinks", None) is not None:
        return None
    bias, norm = getattr(block.attn, "b_V", None), getattr(block, "ln1", None)
    found = torch.zeros(1, 1).to(block.attn.W_O).float()
    if bias is not None and bias.ndim == 2:
        found = found + bias.detach().float()
    if norm is not None and getattr(norm, "bias", None) is not None:
        offset = norm_parts(norm, block.attn.W_O[0, 0])[1]
        found = found + torch.einsum("d,hde->he", offset.to(found), block.attn.W_V.detach().float())
    return found.repeat_interleave(model.cfg.n_heads // len(found), dim=0) if found.any() else None


@dataclass(frozen=True)
class Readout:
    """How logits are read from the final residual stream: norm, then rows [token d_model] and biases, then a factor.

    logit = factor * (row @ (gain * centred(resid) / scale + offset) + bias); where there is a `cap`, it is then cap *
    tanh(logit / cap). `error` is the deviation of logits computed this way in that run, as a share of their spread.
    """

    rows: Tensor
    bias: Tensor
    gain: Tensor
    offset: Tensor
    centres: bool
    factor: float
    cap: float | None = None
    error: float = 0.0

    @classmethod
    def of(cls, model: TransformerBridge) -> Readout:
        """Measure the read-out on a short run.

        Raises:
            InterpError: logits are read in another way.
        """
        head = model.original_model.get_output_embeddings()
        rows = head.weight.detach().float()
        bias = getattr(head, "bias", None)
        bias = torch.zeros(len(rows)).to(rows) if bias is None else bias.detach().float()
        gain, offset, centres = last_norm(model)
        ids = probe_ids(model)
        with torch.no_grad():
            seen = record(model, ids, [*_END, "unembed.hook_out"])
            logits = model(ids, return_type="logits", prepend_bos=False).float()
        cap = getattr(model.cfg, "output_logits_soft_cap", None)
        cap = cap if cap and cap > 0 else None
        if cap is not None:
            logits = cap * torch.atanh((logits / cap).clamp(-1 + 1e-7, 1 - 1e-7))
        own = seen["unembed.hook_in"].float() @ rows.T + bias
        factor = float((own * logits).sum() / own.square().sum())
        if not _agree(logits, factor * own, head.weight.dtype):
            raise InterpError(
                "this model's logits are not read from the last norm by its unembedding alone: they are not a sum over "
                "what its components write; use repeated_tokens"
            )
        made = cls(
            rows,
            bias,
            gain.to(rows),
            offset.to(rows),
            centres,
            1.0 if abs(factor - 1) < _SAME else factor,
            cap,
            relative_error(logits, factor * own),
        )
        resid = seen["ln_final.hook_in"].float()
        normed = made.gain * made.centred(resid) * made.inverse_scale(resid, seen["unembed.hook_in"].float())
        if not _agree(seen["unembed.hook_in"].float(), normed + made.offset, head.weight.dtype):
            raise InterpError(
                "something comes between the last norm and the unembedding of this model: its logits are not a sum "
                "over what its components write"
            )
        return made

    def require_sum(self) -> None:
        """Raise `InterpError` where logits are capped: a capped logit is not a sum over components."""
        if self.cap is not None:
            raise InterpError("this model caps its logits, so they are not a sum over components: use logit_lens")

    def centred(self, resid: Tensor) -> Tensor:
        """The vector that the norm scales."""
        return resid - resid.mean(-1, keepdim=True) if self.centres else resid

    def inverse_scale(self, resid: Tensor, normed: Tensor) -> Tensor:
        """[... 1]: one over what the norm divided by, from its input and output."""
        inside, out = self.gain * self.centred(resid), normed - self.offset
        return (inside * out).sum(-1, keepdim=True) / inside.square().sum(-1, keepdim=True).clamp_min(1e-30)

    def directions(self, token: Tensor) -> Tensor:
        """[... d_model]: the direction of the scaled residual stream that raises a token's logit over the vocabulary's
        mean.
        """
        return self.factor * self.centred(self.gain * (self.rows[token] - self.rows.mean(0)))

    def constant(self, token: Tensor) -> Tensor:
        """[...]: the part of a token's logit, minus the vocabulary's mean, that no component writes."""
        bias = self.bias + self.rows @ self.offset
        return self.factor * (bias[token] - bias.mean())


def _agree(right: Tensor, other: Tensor, computed_in: torch.dtype) -> bool:
    """Do two ways to compute an activation agree, up to rounding in the model's dtype?"""
    return relative_error(right, other) < (_SAME if computed_in.itemsize >= 4 else _SAME_IN_HALF)
