"""How does a name become a model that can be measured?"""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp import organisms
from interp.arguments import takes_what_it_says
from interp.errors import InterpError, first_line
from interp.global_state import preserve_global_state
from interp.models.checkpoints import Checkpoint, check_decoder, check_files, pickle_refusal
from interp.models.devices import take_from_anywhere
from interp.models.gguf_files import load_gguf
from interp.models.identity import IDENTITIES, LOADED, Identity, attention, facts, tensor_hash, weights_state
from interp.models.sources import content_hash, gguf_file, hub_source, is_local, local_path, model_folder
from interp.models.tokenizers import give_tokenizer, load_tokenizer, stand_in_tokenizer, tokenizer_files
from interp.notebook_repr import register
from interp.offloading import is_spread, loaded_weights
from interp.organisms import BUNDLED, HAND_WIRED, exposure

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

Weights = Literal["raw", "folded"]
_LENGTH = 8  # tokens of the pass that tests for a causal decoder


@takes_what_it_says
def load(
    name: str | Path | torch.nn.Module = "organism",
    *,
    weights: Weights = "raw",
    revision: str | None = None,
    checkpoint: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> TransformerBridge:
    """Load a model in eval mode and record its origin; bundled, local and cached models load offline.

    Args:
        name: a bundled or fetched model (`interp models` lists them), a hub name, a Hugging Face directory, a GGUF file
            or a directory with one; or a loaded network of transformers, which shares its weights with the model.
        weights: "raw" as Hugging Face has them; "folded" with LayerNorm folded in and writing weights centred, as
            direct logit attribution, OV and composition scores need them.
        revision: a branch, tag or commit of a hub repository.
        checkpoint: a training step of a family that publishes them (Pythia).
        device: "cpu", "cuda", "mps", ...; default: the environment variable INTERP_DEVICE, else CUDA where available.
        dtype: the type of the weights (default: float32; of a loaded network: its own).
        device_map: how layers are spread over devices, as in accelerate: "auto" or a dictionary; replaces `device`.
        allow_pickle: read pickled weights where there are no safetensors; a pickle may contain code.
        trust_remote_code: run the Python files that come with the model.
        tokenizer: the tokenizer of a loaded network.

    Returns:
        The model; `interp.origin` says what it was made from.

    Raises:
        InterpError: the model is unknown, incomplete, not a decoder, or cannot be fetched, or options contradict.

    Example:
        >>> model = interp.load("wired")
        >>> model.cfg.n_layers, model.cfg.n_heads
        (2, 2)
    """
    import torch

    if weights not in ("raw", "folded"):
        raise InterpError(f"unknown weights '{weights}': use 'raw' or 'folded'")
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype or torch.float32
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise InterpError(f"unknown dtype '{dtype}': use 'float32', 'bfloat16', 'float16' or 'float64'")
    if device is None and device_map is None and not isinstance(name, torch.nn.Module):
        device = os.environ.get("INTERP_DEVICE") or None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InterpError(f"no device '{device}' on this machine: use 'cpu', or leave it out") from error
    if device_map is not None and device is not None:
        raise InterpError("device and device_map both say where the model runs: leave one of them out")
    allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    if isinstance(name, torch.nn.Module):
        given = {"revision": revision, "checkpoint": checkpoint, "device": device, "dtype": dtype}
        odd = next((k for k, v in {**given, "device_map": device_map, **allowed}.items() if v), None)
        if odd is not None:
            raise InterpError(f"this network is loaded already: leave {odd} out, or give a name in its place")
        with preserve_global_state():
            bridge, about = _wrapped(name, tokenizer, weights)
        return _identified(bridge, about, weights, Identity({}, tokenizer=tokenizer))
    if tokenizer is not None:
        raise InterpError("a tokenizer goes with a network that is loaded already: leave it out")
    name, where = str(name), str(name)
    local = is_local(name)
    if local and (revision is not None or checkpoint is not None):
        raise InterpError(f"'{name}' has no revisions or checkpoints: leave them out, or name a hub model")
    if local and name not in (*BUNDLED, *HAND_WIRED):
        where = str(local_path(name).absolute())
    known = exposure(where) if local else None
    options = {"device": device, "dtype": kind} | ({} if device_map is None else {"device_map": device_map})
    with preserve_global_state():
        if checkpoint is not None:
            revision = _checkpoint_revision(name, revision, checkpoint)
        bridge, version, published = _booted(name, revision, options, allowed)
        _fold(bridge, weights)
    asked = {option: value for option, value in {**allowed, "device_map": device_map}.items() if value}
    about = {"name": name, **version, **asked}
    return _identified(bridge, about, weights, Identity({}, where, known, published))


def _fold(bridge: TransformerBridge, weights: Weights) -> None:
    bridge.eval()
    if weights == "folded":
        check_foldable(bridge)
        bridge.enable_compatibility_mode()
        bridge.eval()


def _identified(
    bridge: TransformerBridge, about: dict[str, Any], weights: Weights, known: Identity
) -> TransformerBridge:
    """The model, checked, with its recorded identity."""
    _check_finite(bridge, about["name"])
    take_from_anywhere(bridge.original_model)
    check_causal(bridge, about["name"])
    dtype = str(next(bridge.original_model.parameters()).dtype).removeprefix("torch.")
    facts_of_it = {
        "architecture": str(bridge.cfg.architecture),
        "weights": weights,
        "dtype": dtype,
        "tied": _is_tied(bridge),
        "attention": attention(bridge),
    }
    IDENTITIES[bridge] = replace(known, origin=about | facts_of_it)
    LOADED[bridge] = weights_state(bridge)
    register(type(bridge), facts)
    return bridge


def _wrapped(network: torch.nn.Module, tokenizer: Any, weights: Weights) -> tuple[TransformerBridge, dict[str, Any]]:
    """The bridge of a network that is already loaded, and where it came from. The network is not changed."""
    from transformers import PreTrainedModel

    if not isinstance(network, PreTrainedModel):
        raise InterpError(
            f"a {type(network).__name__} is not a transformers network: give one (with PEFT, what merge_and_unload() "
            "returns)"
        )
    if any(type(part).__module__.startswith("transformer_lens.") for part in network.modules()):
        raise InterpError("this network already belongs to a TransformerLens model: use that, or load its files")
    if is_spread(network) or any(weight.is_meta for weight in network.parameters()):
        raise InterpError("this network's weights are not all in one place: give its name, and device_map")
    named = str(getattr(network.config, "name_or_path", "") or type(network).__name__)
    named = Path(named).name if Path(named).is_absolute() else named  # results must not hold paths of this machine
    check_decoder(network.config, f"'{named}'")
    first = next(network.parameters())
    shared = [] if weights == "folded" else [*network.parameters(), *network.buffers()]
    # the loader rewires its input: give it a copy, which shares all tensors except those that folding would change
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    bridge = bridged(copied, tokenizer, named, {"device": str(first.device), "dtype": first.dtype})
    _fold(bridge, weights)
    bridge.cfg.model_name = named
    return bridge, {"name": named, "source": "a network in memory", "sha256": tensor_hash(network)}


def _booted(
    name: str, revision: str | None, options: dict[str, Any], allowed: dict[str, bool]
) -> tuple[TransformerBridge, dict[str, Any], Any]:
    """The bridge, which version of the model it holds, and its published tokenizer."""
    if name in HAND_WIRED:
        # TransformerLens reads a model from a folder, so this one passes through one
        with tempfile.TemporaryDirectory(prefix="interp-wired-", ignore_cleanup_errors=True) as place:
            for part in organisms.hand_wired(name):  # torch is loaded here
                part.save_pretrained(place)
            bridge, version, tokenizer = _booted(place, None, options, allowed)
        bridge.cfg.model_name = tokenizer.name_or_path = name
        return bridge, version, tokenizer
    if is_local(name):
        file = gguf_file(name)
        if file is not None:
            return _boot_gguf(file, name, options)
        path = model_folder(name)
        bridge, tokenizer = _boot(str(path), name, "check its files", options, allowed)
        return bridge, {"sha256": content_hash(path)}, tokenizer
    source, commit = hub_source(name, revision)
    options = {**options, "revision": commit if source == name else None}
    bridge, tokenizer = _boot(source, name, "see its page on the hub", options, allowed)
    bridge.cfg.model_name = name
    return bridge, {"revision": commit}, tokenizer


def version_of(name: str, revision: str | None = None, checkpoint: int | None = None) -> dict[str, str]:
    """Which version of a model `load` would load, found without loading it.

    Args:
        name: as for `load`.
        revision: as for `load`.
        checkpoint: as for `load`.

    Returns:
        `sha256` of its files or `revision`, the commit, as `origin` has them; nothing for a hand-wired model, which is
        made by this package's code.

    Raises:
        InterpError: there is no such model within reach.
    """
    if name in HAND_WIRED:
        return {}
    if is_local(name):
        return {"sha256": content_hash(gguf_file(name) or model_folder(name))}
    if checkpoint is not None:
        revision = _checkpoint_revision(name, revision, checkpoint)
    return {"revision": hub_source(name, revision)[1]}


def _boot(
    source: str, name: str, remedy: str, options: dict[str, Any], allowed: dict[str, bool]
) -> tuple[TransformerBridge, Any]:
    """The bridge of a folder or a repository, checked first, and its published tokenizer.

    Raises `InterpError` if it does not load.
    """
    from transformer_lens.model_bridge import TransformerBridge

    path, trust, revision = Path(source), allowed["trust_remote_code"], options.get("revision")
    what = source if is_local(name) else f"'{name}'"
    tokenizer = None
    try:
        if path.is_dir():
            check_files(path, allow_pickle=allowed["allow_pickle"])
        check_decoder(_configuration(source, revision, trust), what)
        if not path.is_dir() or tokenizer_files(path):
            tokenizer = load_tokenizer(source, revision, trust_remote_code=trust)
            tokenizer.name_or_path = name  # `source` may be a path of this machine
        # any tokenizer will do, and it is replaced afterwards: TransformerLens would change the model's own
        bridge = TransformerBridge.boot_transformers(
            source,
            tokenizer=stand_in_tokenizer(),
            model_class=Checkpoint(what, **allowed),
            trust_remote_code=trust,
            **options,
        )
    except InterpError:
        raise
    except Exception as error:  # foreign files can raise anything in transformers
        reason = str(error)
        if "trust_remote_code" in reason:
            raise InterpError(
                f"{what} needs Python files that come with it: read them, and allow it to run them with "
                "--trust-remote-code of 'interp run' (trust_remote_code=True in Python)"
            ) from error
        if "cannot be loaded with `safetensors`" in reason:
            raise InterpError(pickle_refusal(what)) from error
        remedy = "leave device_map out, or spread it otherwise" if "device_map" in options else remedy
        raise InterpError(f"{what} does not load as a model ({first_line(error)}): {remedy}") from error
    give_tokenizer(bridge, tokenizer)
    if str(bridge.cfg.device) == "meta":  # the embedding is offloaded to disk: ids go to the device that runs it
        hook = getattr(bridge.original_model.get_input_embeddings(), "_hf_hook", None)
        bridge.cfg.device = str(getattr(hook, "execution_device", "cpu"))
    return bridge, tokenizer


def _boot_gguf(file: Path, name: str, options: dict[str, Any]) -> tuple[TransformerBridge, dict[str, Any], Any]:
    """The bridge of a GGUF file, its hash and quantization, and the file's tokenizer."""
    if "device_map" in options:
        raise InterpError(f"{file} loads onto one device: leave device_map out, or use safetensors")
    network, tokenizer, quantization = load_gguf(file, options["dtype"])
    from transformer_lens.utilities import get_device

    network.to(options["device"] or get_device())
    version = {"sha256": content_hash(file), "quantization": quantization}
    bridge = bridged(network, tokenizer, str(file), {**options, "device": str(network.device)})
    bridge.cfg.model_name = name
    if tokenizer is not None:
        tokenizer.name_or_path = name
    return bridge, version, tokenizer


@takes_what_it_says
def bridged(network: Any, tokenizer: Any, what: str, options: dict[str, Any]) -> TransformerBridge:
    """A bridge around a transformers network that is already loaded. Raises `InterpError` if there is no bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge = TransformerBridge.boot_transformers(
            what,
            hf_model=network,
            tokenizer=stand_in_tokenizer(),
            **options,
        )
    except Exception as error:  # whatever a foreign architecture provokes
        raise InterpError(f"{what} does not load as a model ({first_line(error)}): use another architecture") from error
    give_tokenizer(bridge, tokenizer)
    return bridge


def _configuration(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


def _checkpoint_revision(name: str, revision: str | None, checkpoint: int) -> str | None:
    from transformer_lens.model_bridge.sources.transformers.helpers import _resolve_checkpoint_to_revision

    if revision is not None:
        raise InterpError("give a revision or a checkpoint, not both")
    try:
        return _resolve_checkpoint_to_revision(name, None, checkpoint)
    except ValueError as error:
        raise InterpError(first_line(error)) from error


def _check_finite(bridge: TransformerBridge, model: str) -> None:
    """Raise `InterpError` for weights that are NaN or infinite: every result would be meaningless."""
    import torch

    for name, weight in loaded_weights(bridge.original_model):
        # NaN propagates to minimum and maximum; ten times as fast as testing every number
        if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            finite = weight.isfinite()
            plain = name.replace("_original_component.", "")
            if weight.ndim > 1:
                plain += f", row {int((~finite).flatten(1).any(1).nonzero()[0])}"
            raise InterpError(f"'{model}' holds NaN or infinity in {plain}: fix its weights, or load another")


@takes_what_it_says
def check_foldable(bridge: TransformerBridge) -> None:
    """Raise `InterpError` for weights that are not all in one place."""
    if is_spread(bridge.original_model):
        raise InterpError("weights that device_map spreads over devices do not fold: leave device_map out")


@takes_what_it_says
def check_causal(model: TransformerBridge, name: str) -> None:
    """Raise `InterpError` for a network whose predictions depend on later tokens, and for one that fails.

    Tested on the network itself, in one short pass of two sequences that differ in their second half.
    """
    import torch

    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    length = min(_LENGTH, model.cfg.n_ctx or _LENGTH)
    ids = torch.arange(length, device=model.cfg.device).repeat(2, 1) % model.cfg.d_vocab
    half = length // 2
    ids[1, half:] = (ids[1, half:] + 1) % model.cfg.d_vocab
    if not half:  # a context of one token
        return
    try:
        with torch.no_grad():
            logits = model(ids)[:, :half].float()
    except Exception as error:  # whatever a foreign architecture provokes
        other = "use another model" if dtype == "float32" else "use float32"
        raise InterpError(f"'{name}' loads, but does not run in {dtype} ({first_line(error)}): {other}") from error
    if logits.isnan().any():
        raise InterpError(f"the logits of '{name}' are NaN in {dtype}: use bfloat16 or float32, or check its weights")
    finite = logits.where(logits.isfinite(), 0.0)  # entries that a model masks are -inf
    rounding = torch.finfo(next(model.parameters()).dtype).eps ** 0.5  # relative to the logits' spread
    if float((finite[0] - finite[1]).abs().max()) > rounding * float(finite.std()):
        raise InterpError(
            f"the predictions of '{name}' depend on tokens that come later, as an encoder's do, and everything here "
            "predicts the next token: use a decoder"
        )


def _is_tied(model: TransformerBridge) -> bool:
    # by storage, not by configuration: a configuration may claim what the files do not hold
    inputs, outputs = model.original_model.get_input_embeddings(), model.original_model.get_output_embeddings()
    if outputs is not None and outputs.weight.is_meta:  # offloaded, where accelerate keeps tied weights together
        return inputs.weight.is_meta and bool(getattr(model.original_model, "all_tied_weights_keys", None))
    return outputs is not None and inputs.weight.data_ptr() == outputs.weight.data_ptr()
