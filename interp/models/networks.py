"""What can be derived from a loaded model? A copy with folded weights, and the plain Hugging Face network."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, first_line
from interp.global_state import preserve_global_state
from interp.models.identity import IDENTITIES, Identity, origin
from interp.models.loading import check_foldable
from interp.models.tokenizers import published_tokenizer, share_tokenizer, stand_in_tokenizer
from interp.offloading import is_spread

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge


def folded(model: TransformerBridge) -> TransformerBridge:
    """Copy a model with LayerNorm folded into the weights and the weights centred that write to the residual stream.

    Args:
        model: any loaded model. Its weights are taken as they are now, edits included.

    Returns:
        The copy, with the same log-probs; the model itself if it is already folded.

    Raises:
        InterpError: the weights cannot be transferred.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if is_folded(model):
        return model
    if getattr(model, "compatibility_mode", False):
        raise InterpError(
            "this model is in compatibility mode with raw weights: load it again, or with weights='folded'"
        )
    check_foldable(model)
    with preserve_global_state():
        try:
            network = copy.deepcopy(plain_network(model))
            bridge = TransformerBridge.boot_transformers(
                str(getattr(network.config, "name_or_path", "") or model.cfg.model_name),
                hf_model=network,
                tokenizer=stand_in_tokenizer(),
                device=str(model.cfg.device),
            )
            bridge.eval()
            bridge.enable_compatibility_mode()
        except Exception as error:  # whatever a foreign architecture provokes
            raise InterpError(
                f"'{model.cfg.model_name}' does not fold ({first_line(error)}): load it with weights='folded'"
            ) from error
    bridge.eval()
    share_tokenizer(model, bridge)
    bridge.cfg.model_name = model.cfg.model_name
    known = IDENTITIES.get(model, Identity({}, tokenizer=published_tokenizer(model)))
    IDENTITIES[bridge] = replace(known, origin={**origin(model), "weights": "folded"})
    return bridge


def plain_network(model: TransformerBridge) -> torch.nn.Module:
    """The Hugging Face network of the same configuration that shares the bridge's tensors, with fused attention.

    Raises:
        InterpError: the weights are folded, which Hugging Face's networks cannot hold.
    """
    import torch

    if origin(model).get("weights", "raw") != "raw":
        raise InterpError("folded weights do not fit a Hugging Face network: use weights='raw'")
    source = model.original_model
    if is_spread(source):
        raise InterpError("device_map spreads the weights, so there is no plain network: leave device_map out")
    tensors, buffers = (
        {name.replace("_original_component.", ""): tensor for name, tensor in named}
        for named in (source.state_dict().items(), source.named_buffers())
    )
    config = copy.deepcopy(source.config)
    config.output_attentions = False  # the bridge requests this, but fused attention cannot provide it
    kind: Any = type(source)  # rather than the configuration's class: its code may have come with the model
    with torch.device("meta"):
        try:
            network = kind._from_config(config, attn_implementation="sdpa")
        except ValueError:  # an architecture without fused attention
            network = kind._from_config(config, attn_implementation="eager")
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, assign=True)
    network.tie_weights()
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            network.get_submodule(owner).register_buffer(last, buffers[name], persistent=False)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        # the same function in one pass over memory instead of eight (a sixth of a small model's time)
        if type(module).__name__ == "NewGELUActivation":
            network.set_submodule(name, torch.nn.GELU(approximate="tanh"))
    return network.eval()


def is_folded(model: TransformerBridge) -> bool:
    """Are its weights folded: loaded so, or by TransformerLens's compatibility mode with its default processing?"""
    if origin(model).get("weights", "raw") == "folded":
        return True
    gain = getattr(getattr(model, "ln_final", None), "weight", None)
    neutral = 0.0 if getattr(model.cfg, "rmsnorm_uses_offset", False) else 1.0
    return bool(getattr(model, "compatibility_mode", False)) and (gain is None or bool((gain == neutral).all()))
