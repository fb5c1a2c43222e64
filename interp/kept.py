"""Is the result that lies there the answer to the question that is asked now? What decides a result, and files that remember it."""

from __future__ import annotations

import hashlib
import inspect
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from interp import results
from interp.errors import InterpError
from interp.files import writable, write_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ASKED = "asked.json"
UNKNOWN = "unknown"  # the source of a function that was typed somewhere


def answer(folder: str | Path, question: dict[str, Any] | None, make: Callable[[], Any]) -> xr.Dataset:
    """The result in `folder` where it answers `question`, else the one that `make` writes there.

    `question` holds all that decides the result, as JSON can; None: it cannot be told, so nothing is kept.
    """
    found = answered(folder, question)
    if found is not None:
        return found
    mark = writable(folder) / ASKED
    mark.unlink(missing_ok=True)
    make()
    if question is not None:
        write_text(mark, _words(folder, question))
    return results.load(folder)


def answered(folder: str | Path, question: dict[str, Any] | None) -> xr.Dataset | None:
    """The result in `folder` if it is whole, was made for this question, and is the file that was made then."""
    try:
        same = question is not None and (Path(folder) / ASKED).read_text(encoding="utf-8") == _words(folder, question)
        return results.load(folder) if same else None
    except (OSError, UnicodeDecodeError, InterpError):
        return None


def _words(folder: str | Path, question: dict[str, Any]) -> str:
    file = hashlib.sha256((Path(folder) / "result.nc").read_bytes()).hexdigest()[:16]
    return json.dumps({"question": question, "result_sha256": file}, sort_keys=True, indent=1)


def about(experiment: str | Callable[..., Any], model: TransformerBridge, **asked: Any) -> dict[str, Any] | None:
    """The question that an experiment on a model is: its source, the model with its weights as they are now, the code.

    None for a model with hooks, and for a function whose source is not known: of these, nothing can be kept.
    """
    from interp.models import origin

    name = experiment if isinstance(experiment, str) else getattr(experiment, "__qualname__", "")
    source = None
    if not isinstance(experiment, str) or ":" in experiment:  # others are part of the package, and so of its code
        from interp import experiments

        source = source_hash(experiments.find(experiment) if isinstance(experiment, str) else experiment)
    if source == UNKNOWN or hooked(model):
        return None
    question = {
        "experiment": name, "source": source, "model": origin(model), "weights": checksum(model), "code": code(), **asked
    }  # fmt: skip
    return dict(json.loads(json.dumps(question, default=str)))


def hooked(model: TransformerBridge) -> bool:
    """Do hooks change what the model computes?"""
    return any(point.fwd_hooks for point in model.hook_dict.values())


def checksum(model: TransformerBridge) -> str:
    """A checksum of the weights as they are now: a model may have been edited since it was loaded."""
    import torch

    total = 0
    for parameter in model.original_model.parameters():
        total = zlib.crc32(parameter.detach().cpu().contiguous().view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def source_hash(function: Callable[..., Any]) -> str:
    """A checksum of the function's whole file, or of its text where it has none; `UNKNOWN` where there is neither."""
    try:
        file = inspect.getsourcefile(function)
        text = Path(file).read_bytes() if file and Path(file).is_file() else inspect.getsource(function).encode()
        return hashlib.sha256(text).hexdigest()[:16]
    except (OSError, TypeError):
        return UNKNOWN


def code() -> str:
    """A checksum of the package, the bundled models included, and the versions that it runs with, the commit left out."""
    versions = {name: version for name, version in results.versions().items() if name != "commit"}
    return hashlib.sha256((json.dumps(versions, sort_keys=True) + _package()).encode()).hexdigest()[:16]


@cache  # a process runs the code that it has loaded
def _package() -> str:
    digest = hashlib.sha256()
    place = Path(__file__).resolve().parent
    for path in sorted(place.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(place)).encode() + path.read_bytes())
    return digest.hexdigest()
