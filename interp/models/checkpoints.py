"""Do a model's files hold what its network needs, and does the network predict the next token?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.models.sources import TOKENIZER_FILES

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_POINTER = b"version https://git-lfs.github.com/spec/"
_BESIDE_TOKENIZER = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "config.json")
# constants that earlier releases of transformers stored: masks, positions, rotary frequencies
_RETIRED = re.compile(
    r"(^|\.)(attn|attention|self_attention)\.bias$|(^|\.)(masked_bias|causal_mask|position_ids|inv_freq)$"
)
_ELSEWHERE = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".npz")  # weights of other names or programs
_NAMED = 3  # keys that a message names


class Checkpoint:
    """Loads as transformers does, and refuses what does not fit; TransformerLens takes it as a model class."""

    def __init__(self, what: str, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> None:
        self.what = what
        self._options = {"use_safetensors": None if allow_pickle else True, "trust_remote_code": trust_remote_code}

    def from_pretrained(self, source: str, **options: Any) -> Any:
        """The network of a folder or a hub repository. Raises `InterpError` where its weights do not fit."""
        auto = loader_class(options["config"])
        network, found = auto.from_pretrained(
            source, **(options | self._options), output_loading_info=True, ignore_mismatched_sizes=True
        )
        check_complete(found, self.what)
        if isinstance(options.get("device_map"), dict):
            check_device_map(options["device_map"], network, self.what)
        return network


def loader_class(config: Any) -> Any:
    """The class of transformers that TransformerLens would load a configuration with."""
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        get_hf_model_class_for_architecture,
    )

    return get_hf_model_class_for_architecture(determine_architecture_from_hf_config(config))


def check_complete(found: Mapping[str, Any], what: str) -> None:
    """Raise `InterpError` for weights that are missing, left over or misshapen.

    Args:
        found: what `from_pretrained(..., output_loading_info=True)` reports; it does not include ties, or buffers that
            the network computes itself.
        what: the model, in the message.
    """
    unexpected = [key for key in found["unexpected_keys"] if not _RETIRED.search(key)]
    shapes = [f"{key} {list(stored)} for {list(needed)}" for key, stored, needed in found["mismatched_keys"]]
    faults = {"missing": found["missing_keys"], "without a place": unexpected, "of another shape": shapes}
    said = [f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys]
    if said:
        raise InterpError(
            f"the weights of {what} do not fit its configuration ({'; '.join(said)}): get all of its files, and the "
            "config.json that belongs to them"
        )


def check_device_map(places: Mapping[str, Any], network: Any, what: str) -> None:
    """Raise `InterpError` for a device_map with parts that the network lacks, or that omits some of its weights."""
    modules = {name for name, _ in network.named_modules(remove_duplicate=False)}
    weights = [name for name, _ in network.named_parameters()]
    unknown = next((name for name in places if name not in modules and name not in weights), None)
    if unknown is not None:
        raise InterpError(f"{what} has no part '{unknown}': leave it out of device_map")
    left = next((w for w in weights if not any(p == "" or f"{w}.".startswith(f"{p}.") for p in places)), None)
    if left is not None:
        raise InterpError(f"{left} of {what} has no place: add it, or a part that holds it, to device_map")


def _some(keys: Any) -> str:
    first = sorted(keys)
    more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
    return ", ".join(first[:_NAMED]) + more


def check_decoder(config: Any, what: str) -> None:
    """Raise `InterpError` for a configuration of a network that is not a decoder, before its weights are read.

    Decided by transformers: by what the class that wrote the checkpoint, and the class that would load it, can do.
    """
    import transformers

    remedy = "everything here predicts the next token: use a decoder"
    if getattr(config, "is_encoder_decoder", False):
        raise InterpError(f"{what} is an encoder-decoder ({config.model_type}), and {remedy}")
    written_as = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    # a checkpoint without a head may still have one tied to its embedding
    headless = written_as in classes_of(transformers.AutoModel, config)
    if written_as is not None and not headless and not written_as.can_generate():
        raise InterpError(f"{what} is a {written_as.__name__}, which does not predict the next token, and {remedy}")
    try:
        loaded_as = classes_of(loader_class(config), config)
    except ValueError as error:
        named = ", ".join(getattr(config, "architectures", None) or [config.model_type])
        raise InterpError(
            f"TransformerLens has no bridge for {what} ({named}): use an architecture that it has"
        ) from error
    if loaded_as and not loaded_as[0].can_generate():
        raise InterpError(f"{what} is an encoder ({config.model_type}), and {remedy}")


def classes_of(auto: Any, config: Any) -> Sequence[Any]:
    """The classes that one of transformers' automatic classes has for a configuration."""
    found = auto._model_mapping.get(type(config), ())
    return found if isinstance(found, tuple) else (found,)


def check_files(folder: Path, *, allow_pickle: bool) -> None:
    """Raise `InterpError` for files of a folder that cannot be loaded, or only with explicit permission."""
    safe = _weight_files(folder, _SAFE)
    pickled = [] if safe else _weight_files(folder, _PICKLED)
    beside = [folder / name for name in (*TOKENIZER_FILES, *_BESIDE_TOKENIZER)]
    for file in (*beside, *safe, *pickled):
        check_no_pointer(file)
    absent = next((file for file in (*safe, *pickled) if not file.is_file()), None)
    if absent is not None:
        raise InterpError(f"{folder} lacks {absent.name}, which its index of weights names: get all of its files")
    other = sorted(file.name for file in folder.iterdir() if file.suffix in _ELSEWHERE)
    if other and not safe and not pickled:
        raise InterpError(f"{folder} has weights that transformers does not read ({other[0]}): convert to safetensors")
    if pickled and not allow_pickle:
        raise InterpError(pickle_refusal(str(folder), pickled[-1].name))


def pickle_refusal(what: str, file: str = "pytorch_model.bin") -> str:
    """The message for pickled weights: why they are not loaded, and what to do."""
    return (
        f"{what} has its weights pickled ({file}), and reading a pickle may run code: convert them to safetensors, or "
        "allow it with --allow-pickle of 'interp run' (allow_pickle=True in Python)"
    )


def check_no_pointer(file: Path) -> None:
    """Raise `InterpError` for a pointer of Git LFS in place of a file."""
    if file.is_file():
        with file.open("rb") as stream:
            pointer = stream.read(len(_POINTER)) == _POINTER
        if pointer:
            raise InterpError(f"{file} is a pointer of Git LFS and not the file: run 'git lfs pull' in its folder")


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The file of weights, or the index and the shards that it names; none where there is neither."""
    whole, index = folder / name, folder / f"{name}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return []
    check_no_pointer(index)
    try:
        return [index, *(folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InterpError(f"{index} is not an index of weights: get it again") from error
