"""What is known about a loaded model: where did it come from, and how often was it trained on each token?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from interp.offloading import loaded_weights
from interp.organisms import Exposure

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Identity:
    """What `load` recorded; later changes to files or to the current folder do not affect it.

    `location` is the name of a bundled model or of a hub repository, or the absolute path of a folder or a file. It is
    not part of `origin`, which is stored with results, because paths differ between machines. `tokenizer` is the
    published one, unchanged by TransformerLens; None if there is none.
    """

    origin: dict[str, Any]
    location: str | None = None
    exposure: Exposure | None = None
    tokenizer: Any = None


IDENTITIES: WeakKeyDictionary[TransformerBridge, Identity] = WeakKeyDictionary()
LOADED: WeakKeyDictionary[TransformerBridge, int] = WeakKeyDictionary()  # the state of the weights after loading


def weights_state(model: TransformerBridge) -> int:
    """A number that changes whenever weights are changed in place or replaced."""
    return hash(tuple((p.data_ptr(), p._version, _content(p)) for p in model.original_model.parameters()))


def _content(weight: torch.Tensor) -> int:
    """A value that also depends on the weights' values: torch does not count writes through `.data`."""
    if weight.device.type == "meta" or not weight.numel():  # offloaded to disk, or empty
        return 0
    rows = weight.detach().reshape(weight.shape[0] if weight.ndim else 1, -1).sum(1)
    return hash(rows.float().cpu().numpy().tobytes())


def origin(model: TransformerBridge) -> dict[str, Any]:
    """Say where a model came from.

    Args:
        model: any bridge; one that `interp.load` did not make is described as far as it describes itself.

    Returns:
        A dictionary: name as given, commit or hash of the files, architecture, weights ("raw" or "folded"), dtype,
        whether embeddings are tied, the implementation of attention, and the other options of `interp.load`.

    Example:
        >>> about = interp.origin(interp.load("wired"))
        >>> about["name"], about["weights"], about["dtype"]
        ('wired', 'raw', 'float32')
    """
    if model in IDENTITIES:
        return dict(IDENTITIES[model].origin)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {
        "name": str(model.cfg.model_name),
        "architecture": str(model.cfg.architecture),
        "dtype": dtype,
        "attention": attention(model),
    }


def attention(model: TransformerBridge) -> str:
    """Which of transformers' attention implementations the network uses: "eager", "sdpa", ..."""
    return str(getattr(model.original_model.config, "_attn_implementation", None))


def model_name(model: TransformerBridge) -> str:
    """The name that the model was loaded by; "" if `load` did not make it."""
    return str(IDENTITIES[model].origin["name"]) if model in IDENTITIES else ""


def location(model: TransformerBridge) -> str | None:
    """Where the model's files are, whatever the current folder: a bundled name, a hub name or an absolute path.

    None if `load` did not make it, or made it from a network in memory.
    """
    return IDENTITIES[model].location if model in IDENTITIES else None


def exposure_of(model: TransformerBridge) -> Exposure | None:
    """The exposure counts stored beside the weights when the model was loaded; None if there were none."""
    return IDENTITIES[model].exposure if model in IDENTITIES else None


def facts(model: TransformerBridge) -> dict[str, str]:
    """What a reader wants to know first: origin, shape, vocabulary, what is known about the training."""
    about, cfg, known = origin(model), model.cfg, exposure_of(model)
    version = str(about.get("revision") or about.get("sha256") or "")
    size = sum(p.numel() for p in model.original_model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    shape = f"{cfg.n_layers} layers of {cfg.n_heads} heads, {cfg.d_model} dimensions"
    found = {
        "model": f"{about['name']} {version[:12]}".strip(),
        "architecture": f"{about['architecture']}, {shape}",
        "parameters": f"{size:,}, {dtype} on {cfg.device}",
        "vocabulary": f"{cfg.d_vocab:,} tokens, context {cfg.n_ctx:,}",
    }
    if "weights" in about:
        tied = "input and output rows are one" if about.get("tied") else "input and output rows apart"
        found["weights"] = f"{about['weights']}, {tied}"
    if known is not None:
        found["training"] = f"known: {len(known.between(0, 0, canaries=True)):,} tokens never seen"
    return found


def tensor_hash(network: torch.nn.Module) -> str:
    """A fingerprint of a network's weights, by name, type and value."""
    import torch

    digest = hashlib.sha256()
    for name, weight in loaded_weights(network):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
