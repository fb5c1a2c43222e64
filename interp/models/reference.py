"""What does plain Hugging Face compute from the same files? A reference that shares no tensor with the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import InterpError, first_line
from interp.global_state import preserve_global_state
from interp.models.gguf_files import load_gguf
from interp.models.identity import location, origin
from interp.models.sources import gguf_file, hub_source, is_local
from interp.organisms import HAND_WIRED, folder, hand_wired

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge


def published_network(model: TransformerBridge, attention: str | None = None) -> torch.nn.Module:
    """Load the network again from the files that a model was loaded from, as a user of `transformers` would.

    Args:
        model: any model that `interp.load` made.
        attention: the implementation of attention ("sdpa", "eager"); None: the default of `transformers`.

    Returns:
        The Hugging Face network, in eval mode, of the model's type and on its device.

    Raises:
        InterpError: it was not loaded from files.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where, about = location(model), origin(model)
    if where is None:
        raise InterpError("this model was not loaded from files by interp.load: there is nothing to compare it with")
    dtype = getattr(torch, about["dtype"])
    with preserve_global_state():
        if where in HAND_WIRED:
            network = hand_wired(where)[0]
        elif is_local(where) and (file := gguf_file(where)) is not None:
            network = load_gguf(file, dtype)[0]
        else:
            revision = None if is_local(where) else about.get("revision")
            source, commit = (str(folder(where)), None) if is_local(where) else hub_source(where, revision)
            try:
                network = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=dtype,
                    revision=commit if source == where else None,
                    attn_implementation=attention,
                    trust_remote_code=bool(about.get("trust_remote_code")),
                    use_safetensors=None if about.get("allow_pickle") else True,
                )
            except Exception as error:  # foreign files can raise anything in transformers
                raise InterpError(f"plain transformers does not load '{where}' ({first_line(error)})") from error
    return network.to(device=model.cfg.device, dtype=dtype).eval()
