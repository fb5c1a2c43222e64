"""Is the result that lies there the answer to the question that is asked now? What decides a result, and files that remember it."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import xarray as xr

from interp import results
from interp.errors import InterpError
from interp.files import writable, write_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ASKED = "asked.json"
UNKNOWN = "unknown"  # what a function does, where it cannot be told


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
    """The question that an experiment on a model is: what the experiment does, the model as it is now, the code.

    None where that cannot be told: of a model with hooks, and of a function that uses what has no source. Nothing can be kept then.
    """
    from interp.models import origin

    name = experiment if isinstance(experiment, str) else getattr(experiment, "__qualname__", "")
    source = None
    if not isinstance(experiment, str) or ":" in experiment:  # others are part of the package, and so of its code
        from interp import experiments

        source = doing(experiments.find(experiment) if isinstance(experiment, str) else experiment)
    if source == UNKNOWN or hooked(model):
        return None
    question = {
        "experiment": name, "source": source, "model": origin(model), "weights": checksum(model), "code": code(), **asked
    }  # fmt: skip
    return dict(json.loads(json.dumps(question, default=str)))


# --- what a model is now ----------------------------------------------------------------------------------------------------


def hooked(model: TransformerBridge) -> bool:
    """Do hooks change what the model computes? TransformerLens's or torch's own."""
    if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
        return True
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = (getattr(module, kind, None) or {} for module in model.original_model.modules() for kind in kinds)
    # transformers and TransformerLens leave some of their own behind a forward pass: these only look
    own = {"transformers", "transformer_lens"}
    return any(_package_of(hook) not in own for hooks in found for hook in hooks.values())


def _package_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", "")).partition(".")[0]


def checksum(model: TransformerBridge) -> str:
    """A checksum of weights, buffers and tokenizer as they are now: a model may have been edited since it was loaded."""
    import torch

    network, total = model.original_model, 0
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(plain.view(torch.uint8).numpy(), total)
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else type(model.tokenizer).__name__
    special = getattr(model.tokenizer, "special_tokens_map", None)
    return f"{zlib.crc32(f'{words} {special}'.encode(), total):08x}"


# --- what code does ---------------------------------------------------------------------------------------------------------


def source_hash(function: Callable[..., Any]) -> str:
    """A checksum of the function's whole file, or of its text where it has none; `UNKNOWN` where there is neither."""
    try:
        file = inspect.getsourcefile(function)
        text = Path(file).read_bytes() if file and Path(file).is_file() else inspect.getsource(function).encode()
        return hashlib.sha256(text).hexdigest()[:16]
    except (OSError, TypeError):
        return UNKNOWN


def doing(function: Callable[..., Any]) -> str:
    """A checksum of what a function does as it is loaded, with all of its user's that it uses; `UNKNOWN` where that has no source.

    Its compiled code, defaults and closure, and so for each function and module that its names mean, as long as they are neither this
    package's, a library's nor Python's. A global that is no plain value (an array, a model) cannot be told from another.
    """
    try:
        return hashlib.sha256("\n".join(_words_of(function, set())).encode()).hexdigest()[:16]
    except _UntellableError:
        return UNKNOWN


class _UntellableError(Exception):
    """Something decides what a function does, and there is no telling what it is."""


def _words_of(value: Any, seen: set[int]) -> Iterator[str]:
    """All that decides what a value is, as text."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | type(...)):
        yield repr(value)
    elif isinstance(value, tuple | list | set | frozenset | dict):
        entries = value.items() if isinstance(value, dict) else value
        parts = ["\n".join(_words_of(entry, seen)) for entry in entries]
        yield f"{type(value).__name__} {sorted(parts) if isinstance(value, set | frozenset) else parts}"
    elif isinstance(value, ModuleType):
        yield value.__name__
        if _of_the_user(value):
            yield _file_hash(value)
    elif isinstance(value, FunctionType):
        yield f"{value.__module__}.{value.__qualname__}"
        if id(value) not in seen and _of_the_user(sys.modules.get(value.__module__)):
            seen.add(id(value))
            yield from _words_of_code(value.__code__)
            yield from _words_of((value.__defaults__, value.__kwdefaults__), seen)
            cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
            for name in sorted(_names(value.__code__)):
                if name in cells:
                    yield from _words_of(cells[name].cell_contents, seen)
                elif name in value.__globals__:
                    yield name
                    yield from _words_of(value.__globals__[name], seen)
    elif isinstance(value, partial):
        yield from _words_of((value.func, value.args, value.keywords), seen)
    elif isinstance(value, MethodType):
        yield from _words_of((value.__func__, value.__self__), seen)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        module = sys.modules.get(value.__module__)
        if module is None or _of_the_user(module):
            yield _file_hash(module)
    elif type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        yield repr(value)
    elif hasattr(value, "__wrapped__"):  # a cache around a function
        yield from _words_of((type(value), value.__wrapped__), seen)
    elif isinstance(value, BuiltinFunctionType):
        yield f"{value.__module__}.{value.__qualname__}"
        if not isinstance(value.__self__, ModuleType | type(None)):  # bound to something
            yield from _words_of(value.__self__, seen)
    elif type(value).__module__ == "numpy" and type(value).__name__ in ("ufunc", "_ArrayFunctionDispatcher"):
        yield f"numpy {value.__name__}"
    else:
        raise _UntellableError


def _words_of_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        yield from _words_of_code(constant) if isinstance(constant, CodeType) else _words_of(constant, set())


def _names(code: CodeType) -> set[str]:
    """The names that a function looks up, those of functions in it, too."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*map(_names, inner))


def _of_the_user(module: ModuleType | None) -> bool:
    """Neither this package's, nor installed, nor Python's own."""
    if module is None:
        return True
    file = getattr(module, "__file__", None)
    if module.__name__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return False
    if file is None:
        return module.__name__ == "__main__"
    path = Path(file).resolve()
    return not ({"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(_PLACE))


def _file_hash(module: ModuleType | None) -> str:
    try:
        return hashlib.sha256(Path(str(getattr(module, "__file__", None))).read_bytes()).hexdigest()[:16]
    except (AttributeError, OSError):
        raise _UntellableError from None


def code() -> str:
    """A checksum of the package, the bundled models included, and the versions that it runs with, the commit left out."""
    versions = {name: version for name, version in results.versions().items() if name != "commit"}
    return hashlib.sha256(f"{json.dumps(versions, sort_keys=True)} {_CODE} {_data()}".encode()).hexdigest()[:16]


_PLACE = Path(__file__).resolve().parent


def _hash_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(_PLACE)).encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def _data() -> str:
    return _hash_of(p for p in _PLACE.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts)


# when it is loaded: files that are edited later are not what runs
_CODE = _hash_of(_PLACE.rglob("*.py"))
