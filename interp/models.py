"""Which model is it, and where did it come from?

`load` turns a bundled name, a Hugging Face hub name or a local Hugging Face directory into a
TransformerLens `TransformerBridge` in eval mode. What it was made from stands in `origin(model)`.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import InterpError
from interp.organisms import ORGANISMS, WIRED, folder
from interp.quiet import globals_restored
from interp.shown import register

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

Weights = Literal["raw", "folded"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
_HASHED = (".json", ".safetensors", ".bin", ".txt", ".model")


def load(
    name: str | Path = "organism",
    *,
    weights: Weights = "raw",
    revision: str | None = None,
    checkpoint: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "float32",
) -> TransformerBridge:
    """Load a model, in eval mode, with its origin recorded.

    `name` is a bundled model (`interp models` lists them), a hub name such as `gpt2`, or a local
    Hugging Face directory. `weights="raw"` leaves the weights as Hugging Face has them;
    `"folded"` folds the LayerNorm into them and centres those that write to the residual stream, which
    direct logit attribution, OV and composition scores need. `checkpoint` is a training step of a
    family that publishes them (Pythia). `device` defaults to CUDA or MPS where there is one.

    Works offline for bundled models, local directories and whatever the hub cache holds. Raises
    `InterpError` for an unknown model, a folder that is no model, or one that cannot be fetched.
    """
    import torch

    if weights not in ("raw", "folded"):
        raise InterpError(f"unknown weights '{weights}': use 'raw' or 'folded'")
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise InterpError(f"unknown dtype '{dtype}': use 'float32', 'bfloat16', 'float16' or 'float64'")
    _check_device(device)
    name = str(name)
    local = name in ORGANISMS or name == WIRED or _is_local(name)
    if local and (revision is not None or checkpoint is not None):
        raise InterpError(f"'{name}' has no revisions or checkpoints: leave them out, or name a hub model")
    with globals_restored():
        if name == WIRED:
            bridge, identity = _boot_wired(device, kind)
        elif local:
            bridge, identity = _boot_folder(name, device, kind)
        else:
            bridge, identity = _boot_hub(name, revision, checkpoint, device, kind)
        bridge.eval()
        if weights == "folded":
            bridge.enable_compatibility_mode()
            bridge.eval()
    bridge.origin = {
        "name": name,
        **identity,
        "architecture": str(bridge.cfg.architecture),
        "weights": weights,
        "dtype": str(kind).removeprefix("torch."),
        "tied": _is_tied(bridge),
    }
    _check_finite(bridge)
    register(type(bridge))
    return bridge


def located(name: str | Path, revision: str | None = None) -> None:
    """Raise `InterpError` where there is no such model to load, before anything large is read."""
    name = str(name)
    if name in ORGANISMS or name == WIRED or _is_local(name):
        if revision is not None:
            raise InterpError(f"'{name}' has no revisions: leave @{revision} out, or name a hub model")
        if name not in (*ORGANISMS, WIRED):
            _check_folder(Path(name).expanduser())
    else:
        hub_source(name, revision)


def _check_finite(bridge: TransformerBridge) -> None:
    """Raise `InterpError` for weights that are no numbers: every result would be none."""
    for name, weight in bridge.original_model.named_parameters():
        finite = weight.isfinite()
        if not finite.all():
            plain = name.replace("_original_component.", "")
            if weight.ndim > 1:
                plain += f", row {int((~finite).flatten(1).any(1).nonzero()[0])}"
            raise InterpError(
                f"'{bridge.origin['name']}' holds NaN or infinity in {plain}: mend its weights, or load another"
            )


def origin(model: TransformerBridge) -> dict[str, Any]:
    """Name, resolved revision or content hash, architecture, weights mode, dtype, tied or untied.

    A model that `load` did not make is described as far as it describes itself.
    """
    known = model.__dict__.get("origin")
    if known is not None:
        return dict(known)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"name": str(model.cfg.model_name), "architecture": str(model.cfg.architecture), "dtype": dtype}


def folded(model: TransformerBridge) -> TransformerBridge:
    """A copy with LayerNorm folded into the weights and the writing weights centred; the model itself where it is that.

    Made of the weights as they are now, edits included. Log-probs are the same. Raises `InterpError` for a model whose
    weights cannot be carried over.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if is_folded(model):
        return model
    if getattr(model, "compatibility_mode", False):
        raise InterpError(
            "this model is in compatibility mode with raw weights: load it anew, or with weights='folded'"
        )
    with globals_restored():
        try:
            network = copy.deepcopy(plain_network(model))
            bridge = TransformerBridge.boot_transformers(
                str(getattr(network.config, "name_or_path", "") or model.cfg.model_name),
                hf_model=network, tokenizer=model.tokenizer or _stand_in_tokenizer(), device=str(model.cfg.device),
            )  # fmt: skip
            bridge.eval()
            bridge.enable_compatibility_mode()
        except Exception as error:  # whatever a foreign architecture provokes
            raise InterpError(
                f"'{model.cfg.model_name}' does not fold ({_first_line(error)}): load it with weights='folded'"
            ) from error
    bridge.eval()
    bridge.tokenizer = model.tokenizer
    bridge.cfg.model_name = model.cfg.model_name
    bridge.origin = {**origin(model), "weights": "folded"}
    return bridge


def plain_network(model: TransformerBridge) -> torch.nn.Module:
    """A Hugging Face model of the same configuration that shares the bridge's tensors, with fused attention."""
    import torch
    from transformers import AutoModelForCausalLM

    if origin(model).get("weights", "raw") != "raw":
        raise InterpError("folded weights are no Hugging Face model: use weights='raw'")
    source = model.original_model
    plain_name = lambda name: name.replace("_original_component.", "")  # noqa: E731
    tensors = {plain_name(name): tensor for name, tensor in source.state_dict().items()}
    buffers = {plain_name(name): tensor for name, tensor in source.named_buffers()}
    config = copy.deepcopy(source.config)
    config.output_attentions = False  # the bridge's own wish, which fused attention cannot grant
    with torch.device("meta"):
        try:
            network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        except ValueError:  # an architecture without fused attention
            network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, assign=True)
    network.tie_weights()
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            network.get_submodule(owner).register_buffer(last, buffers[name], persistent=False)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            # the same function in one pass over memory instead of eight: a sixth of the time of a small model
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    return network.eval()


def is_folded(model: TransformerBridge) -> bool:
    """Are its weights folded: loaded so, or by TransformerLens's compatibility mode with its default processing?"""
    import torch

    if origin(model).get("weights", "raw") == "folded":
        return True
    gain = getattr(getattr(model, "ln_final", None), "weight", None)
    neutral = 0.0 if getattr(model.cfg, "rmsnorm_uses_offset", False) else 1.0
    plain = gain is None or bool(torch.all(gain == neutral))
    return bool(getattr(model, "compatibility_mode", False)) and plain


def _is_tied(model: TransformerBridge) -> bool:
    # by storage, not by configuration: a configuration may claim what the files do not hold
    source = model.original_model
    inputs, outputs = source.get_input_embeddings(), source.get_output_embeddings()
    return outputs is not None and inputs.weight.data_ptr() == outputs.weight.data_ptr()


def _is_local(name: str) -> bool:
    try:
        return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))
    except (RuntimeError, OSError) as error:  # an unknown user's home, a name too long for a file
        raise InterpError(
            f"unknown model '{name[:80]}' ({error}): use a bundled name, a hub name or a directory"
        ) from error


def _check_device(device: Any) -> None:
    import torch

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InterpError(f"no device '{device}' on this machine: use 'cpu', or leave it out") from error


def _boot_wired(device: Any, dtype: torch.dtype) -> tuple[TransformerBridge, dict[str, Any]]:
    from interp.organisms.wired import wired

    model, tokenizer = wired()
    # TransformerLens reads its tokenizer again from a folder, so the model passes through one
    with tempfile.TemporaryDirectory(prefix="interp-wired-", ignore_cleanup_errors=True) as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        bridge, identity = _boot_folder(place, device, dtype)
    bridge.cfg.model_name = WIRED
    return bridge, identity


def _boot_folder(name: str, device: Any, dtype: torch.dtype) -> tuple[TransformerBridge, dict[str, Any]]:
    from transformer_lens.model_bridge import TransformerBridge

    path = folder(name) if name in ORGANISMS else Path(name).expanduser()
    _check_folder(path)
    bare = not any((path / file).is_file() for file in TOKENIZER_FILES)
    try:
        # without one, transformers would make up an empty tokenizer or fail: any will do, and none is left
        stand_in = _stand_in_tokenizer() if bare else None
        bridge = TransformerBridge.boot_transformers(str(path), device=device, dtype=dtype, tokenizer=stand_in)
    except Exception as error:  # whatever a foreign directory provokes in transformers
        raise InterpError(f"{path} does not load as a model ({_first_line(error)}): check its files") from error
    if bare:
        bridge.tokenizer = None
    return bridge, {"sha256": _content_hash(path)}


def _check_folder(path: Path) -> None:
    """Raise `InterpError` where no model can lie."""
    if not path.exists():
        raise InterpError(f"no model directory at {path}: check the path, or use a bundled or hub name")
    if not (path / "config.json").is_file():
        raise InterpError(f"{path} is no model directory, it has no config.json: give a Hugging Face directory")


def _stand_in_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder(ORGANISMS[0])))


def _boot_hub(
    name: str, revision: str | None, checkpoint: int | None, device: Any, dtype: torch.dtype
) -> tuple[TransformerBridge, dict[str, Any]]:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources.transformers.helpers import _resolve_checkpoint_to_revision

    if checkpoint is not None:
        if revision is not None:
            raise InterpError("give a revision or a checkpoint, not both")
        try:
            revision = _resolve_checkpoint_to_revision(name, None, checkpoint)
        except ValueError as error:
            raise InterpError(_first_line(error)) from error
    source, commit = hub_source(name, revision)
    try:
        bridge = TransformerBridge.boot_transformers(
            source, device=device, dtype=dtype, revision=commit if source == name else None
        )
        bridge.cfg.model_name = name
    except Exception as error:
        raise InterpError(
            f"'{name}' does not load as a model ({_first_line(error)}): see its page on the hub"
        ) from error
    return bridge, {"revision": commit}


def hub_source(name: str, revision: str | None = None) -> tuple[str, str]:
    """Where to load a hub repository from, its name or its folder in the cache, and the commit meant.

    By commit, so that nothing newer slips in between. Offline it is the cached folder itself: asked by name,
    the hub client would first retry the network for every optional file. Raises `InterpError` where
    there is no such repository, or none within reach.
    """
    commit, online = _resolved_commit(name, revision)
    return (name if online else str(_cached_config(name, commit).parent)), commit


def _resolved_commit(name: str, revision: str | None) -> tuple[str, bool]:
    """The commit behind a hub name, and whether the hub answered; else the one in the hub cache."""
    from huggingface_hub import HfApi, errors

    bundled = ", ".join((*ORGANISMS, WIRED))
    try:
        sha = HfApi().model_info(name, revision=revision, timeout=10).sha
        if sha:
            return sha, True
    except errors.HFValidationError as error:
        raise InterpError(f"unknown model '{name}': use {bundled}, a hub name, or a local directory") from error
    except errors.RevisionNotFoundError as error:
        raise InterpError(f"'{name}' has no revision '{revision}': see its page on the hub") from error
    except errors.GatedRepoError as error:
        raise InterpError(f"'{name}' is gated: accept its licence on the hub, then 'hf auth login'") from error
    except errors.RepositoryNotFoundError as error:
        raise InterpError(f"unknown model '{name}': use {bundled}, a public hub name, or a directory") from error
    except Exception:  # noqa: S110 - each kind of broken network fails differently; the cache serves them all
        pass
    config = _cached_config(name, revision)
    return config.parent.name, False


def _cached_config(name: str, revision: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(config, str):
        return Path(config)
    what = f"'{name}'" if revision is None else f"revision '{revision}' of '{name}'"
    raise InterpError(
        f"{what} is not bundled, not in the hub cache, and the hub cannot be reached: "
        f"use {', '.join((*ORGANISMS, WIRED))}, a local directory, or go online once"
    )


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and p.suffix in _HASHED):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
