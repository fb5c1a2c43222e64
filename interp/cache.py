"""Does the result (or a part of one) stored in a folder answer the current request? One key, one way to resume.

The key of a run covers everything that determines its numbers: the request; the ids of its pools; the code of the
experiment, of this package and of every user module that they import (without comments and docstrings); the model's
current weights, buffers and tokenizer; the versions of the libraries. Where a key cannot be determined, the run is
repeated and the reason given.
"""

from __future__ import annotations

import ast
import contextlib
import getpass
import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import shutil
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import xarray as xr
from filelock import FileLock, Timeout

from interp import results
from interp.errors import InterpError
from interp.files import user_cache, writable, write_text
from interp.models import LOADED, origin, tokenizer_state, weights_state
from interp.offloading import loaded_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Log = Callable[[str], None]
REQUEST_FILE = "request.json"
GOES_ON = "the same command resumes from what is finished"
_PARTS = ".parts"
_OLD_REQUEST_FILE = "asked.json"  # from earlier releases: never read, removed when a result is replaced
_PACKAGE = Path(__file__).resolve().parent
_STANDARD_LIBRARY = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]


# code that displays results affects no number: a new colour discards nothing
_SHOWS = ("interp.views", "interp.plots", "interp.tables", "interp.pages")


class UnknownCodeError(Exception):
    """Why the code of a function cannot be determined."""


# --- finished results -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """What a result answers: a digest, or None with the reason why the result is computed again."""

    digest: str | None
    reason: str = ""

    def part(self, *asked: Any) -> Key:
        """The key of a JSON-serialisable request beside or within the same run."""
        return Key(None if self.digest is None else _digest([self.digest, *asked]), self.reason)


def cache_key(function: Callable[..., Any], model: TransformerBridge, asked: dict[str, Any]) -> Key:
    """The key of an experiment on a model.

    Args:
        function: the experiment.
        model: as it is now, edits included.
        asked: everything else that determines the numbers, JSON-serialisable.

    Returns:
        A key without a digest for a model with hooks, or a function whose code cannot be determined.
    """
    if has_hooks(model):
        return Key(None, "the model has hooks, which no file describes")
    return code_key(function, asked, lambda: model_fingerprint(model))


def code_key(function: Callable[..., Any], asked: Any, also: Callable[[], str] = str) -> Key:
    """The key of what a function returns for `asked` (JSON-serialisable); `also` is added where its code is known."""
    try:
        code = code_fingerprint(function)
    except UnknownCodeError as error:
        return Key(None, str(error))
    versions = {name: version for name, version in results.versions().items() if name != "commit"}
    return Key(_digest([asked, code, also(), versions]))


def get(folder: str | Path, key: Key) -> xr.Dataset | None:
    """The result in `folder` if it is complete, answers `key` and is unchanged since it was written; else None."""
    try:
        stored = json.loads((Path(folder) / REQUEST_FILE).read_text(encoding="utf-8"))
        same = (
            key.digest is not None
            and stored["key"] == key.digest
            and stored["result_sha256"] == file_sha256(Path(folder) / "result.nc")
        )
        return results.load(folder) if same else None
    except (OSError, ValueError, KeyError, TypeError, InterpError):
        return None


def put(folder: str | Path, key: Key, result: xr.Dataset, request: dict[str, Any] | None = None) -> None:
    """Write `result.nc` and, where the key is known, a record of what it answers beside it."""
    folder = Path(folder)
    for name in (REQUEST_FILE, _OLD_REQUEST_FILE):
        (folder / name).unlink(missing_ok=True)
    results.save(result, folder / "result.nc")
    if key.digest is not None:
        stored = {"key": key.digest, "request": request, "result_sha256": file_sha256(folder / "result.nc")}
        write_text(folder / REQUEST_FILE, json.dumps(stored, sort_keys=True, indent=1) + "\n")


def get_or_make(folder: str | Path, key: Key, make: Callable[[], xr.Dataset], log: Log) -> xr.Dataset:
    """The result in `folder` if it answers `key` (and `log` says so); otherwise a new one, which is stored there."""
    found = get(folder, key)
    if found is not None:
        log(f"{Path(folder).name}: taken from an earlier run")
        return found
    found = results.stamp(make(), {"part": Path(folder).name})
    put(folder, key, found)
    return found


class Parts:
    """Finished parts of an ongoing run, each in a file named by the digest of everything that determines it.

    Args:
        folder: the run's; with None, nothing is kept.
        key: the run's. With a key without a digest, nothing is kept.
        request: what is being run, recorded for readers of the folder after an interruption.
    """

    def __init__(self, folder: Path | None, key: Key, request: dict[str, Any] | None = None):
        self.folder = folder / _PARTS if folder is not None and key.digest is not None else None
        self.key, self.request = key, request
        self.finished = False  # is any part of this run stored?

    def get_or_compute(self, name: str, compute: Callable[[], xr.Dataset], key: Key | None = None) -> xr.Dataset:
        """The stored part of that name, or a new one, which is then stored; `key` if it differs from the run's."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{(key or self.key).part(name).digest}.nc"
        try:
            found = results.load(path)
        except InterpError:  # missing or damaged
            part = compute()
        else:
            self.finished = True
            return found
        results.save(results.stamp(part, {"part": name}), path)
        write_text(self.folder / REQUEST_FILE, json.dumps(self.request, sort_keys=True, indent=1) + "\n")
        self.finished = True
        return part

    def keeper(self, key: Key) -> results.Keep:
        """The `keep(name, make)` that an experiment is given; `key` decides its parts beside their names."""
        return partial(self.get_or_compute, key=key)

    def kept(self) -> str:
        """What remains after an interruption, in words."""
        if self.finished:
            return GOES_ON
        return f"nothing was kept, because {self.key.reason or 'no part of it was finished'}"

    def clear(self) -> None:
        """Remove the parts, once the whole result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def runs_below(folder: str | Path) -> Iterator[None]:
    """Several runs in subfolders of one folder: an interruption says whether any of them finished."""
    try:
        yield
    except KeyboardInterrupt as error:
        finished = any(path.parent != Path(folder) for path in Path(folder).rglob("result.nc"))
        raise KeyboardInterrupt(GOES_ON if finished else str(error)) from error


def unfinished(folder: str | Path) -> bool:
    """Was a run into this folder interrupted?"""
    return any(path.suffix in (".nc", ".parquet") for path in (Path(folder) / _PARTS).glob("[!.]*"))


@contextmanager
def locked(folder: str | Path, log: Log) -> Iterator[Path]:
    """Lock a folder, created if missing; wait, and say so, while another process holds it."""
    folder = writable(folder)
    # in the temporary folder, so that nothing is left among the results
    name = _digest([str(folder.resolve()), getpass.getuser()])
    lock = FileLock(Path(tempfile.gettempdir()) / f"interp-{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log(f"another process is writing to {folder}: waiting until it has finished")
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


def file_sha256(path: str | Path) -> str:
    """The first 16 digits of a file's SHA-256."""
    with Path(path).open("rb") as file:  # in chunks: a text may be larger than memory
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


# --- the model --------------------------------------------------------------------------------------------------------


def has_hooks(model: TransformerBridge) -> bool:
    """Does the model have hooks that change what it computes, TransformerLens's or torch's own?"""
    if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
        return True
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = (getattr(module, kind, None) or {} for module in model.original_model.modules() for kind in kinds)
    # transformers and TransformerLens leave some of their own after a forward pass: these only observe
    own = ("transformers.", "transformer_lens.", "interp.models.devices.")
    return any(not f"{getattr(h, '__module__', '')}.".startswith(own) for hs in found for h in hs.values())


def model_fingerprint(model: TransformerBridge) -> str:
    """A checksum of the current weights, buffers and tokenizer, including edits since the model was loaded."""
    import torch

    network, total = model.original_model, 0
    for name, tensor in chain(loaded_weights(network), network.named_buffers()):
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(plain.view(torch.uint8).numpy(), total)
    return f"{zlib.crc32(tokenizer_state(model).encode(), total):08x}"


def known_of(model: TransformerBridge, what: str, *files: str) -> Path | None:
    """Where a finding about a model is stored across processes, in the user's cache.

    Args:
        model: any loaded model.
        what: what is stored, and everything that determines it.
        *files: source files that it depends on as well.

    Returns:
        A path, whether or not the file exists; None for a model that was edited, has hooks, or whose files have no
        checksum.
    """
    about = origin(model)
    if weights_state(model) != LOADED.get(model) or not {"sha256", "revision"} & set(about) or has_hooks(model):
        return None
    of_libraries = {name: versions for name, versions in results.versions().items() if name not in ("commit", "interp")}
    decides = [what, about, str(model.cfg.device), of_libraries, *map(file_sha256, files)]
    return user_cache() / "known" / f"{what.partition(' ')[0]}-{_digest(decides)}"


def remember(place: Path | None, text: str) -> None:
    """Store a finding about a model at the path from `known_of`; silently do nothing where that is not possible."""
    if place is not None:
        with contextlib.suppress(OSError, InterpError):
            write_text(writable(place.parent) / place.name, text)


def recalled(model: TransformerBridge, what: str, make: Callable[[], Any], *files: str) -> Any:
    """A JSON-serialisable finding about a model: from the user's cache, or computed and stored there.

    Args:
        model: any loaded model.
        what: what is stored, and everything that determines it, as for `known_of`.
        make: computes it, where nothing is stored or the file is damaged.
        *files: source files that it depends on as well.
    """
    place = known_of(model, what, *files)
    if place is not None:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(place.read_text(encoding="utf-8"))
    found = make()
    remember(place, json.dumps(found))
    return found


# --- the code ---------------------------------------------------------------------------------------------------------


def source_sha256(function: Callable[..., Any]) -> str:
    """A checksum of the file that defines a function, for the provenance; "unknown" if there is none."""
    file = inspect.getsourcefile(inspect.unwrap(function)) if callable(function) else None
    return file_sha256(file) if file and Path(file).is_file() else "unknown"


def code_fingerprint(function: Callable[..., Any]) -> str:
    """A checksum of the code that determines what a function returns, without comments and docstrings.

    It covers the function's file and every module that this file imports, directly or indirectly, except installed
    packages and the standard library; this package's modules always count. Plain values in the user's modules enter
    with their current values, since a script may have set them.

    Raises:
        UnknownCodeError: the function is defined in no file (it was typed in a notebook) or inside another function,
            has been edited since it was loaded, or uses a global object that is not a plain value.
    """
    name = getattr(function, "__qualname__", "")
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not isinstance(inspect.unwrap(function), FunctionType):
        raise UnknownCodeError("the experiment is not a plain function, so no file holds its code")
    if _file_of(module) is None:
        raise UnknownCodeError(f"'{name}' was typed in a notebook or an interpreter, so no file holds its code")
    if getattr(module, name, None) is not function:
        raise UnknownCodeError(
            f"'{name}' is not what its module holds: it was defined inside a function, or replaced since"
        )
    found: dict[str, str] = {}
    # the runner affects numbers too, and no experiment imports it
    for start in (str(_file_of(module)), str(_PACKAGE / "runner.py")):
        _collect(Path(start), module.__name__ if start != str(_PACKAGE / "runner.py") else "interp.runner", found)
    return _digest(found)


def _collect(path: Path, name: str, found: dict[str, str]) -> None:
    """Add the fingerprint of a file, and of every local module that it imports, to those found."""
    if str(path) in found or name in _SHOWS:
        return
    module = sys.modules.get(name)
    own = path.is_relative_to(_PACKAGE)
    text = getattr(module, "__interp_source__", None) or path.read_text(encoding="utf-8")
    tree = _parsed(text, str(path))
    found[str(path)] = ""  # modules may import each other
    values = "" if own or module is None else _plain_globals(module, tree, text)
    if own and _LOADED.get(path) != zlib.crc32(path.read_bytes()):
        raise UnknownCodeError(f"{path.name} of this package was edited since it was loaded: restart Python")
    found[str(path)] = f"{_fingerprint(text, str(path))} {values}"
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for imported in _imported_names(text, str(path), package):
        at = _local_file(imported, path.parent)
        if at is not None:
            _collect(at, imported, found)


@cache
def _parsed(text: str, path: str) -> ast.Module:
    return ast.parse(text, path)


@cache
def _fingerprint(text: str, path: str) -> str:
    """The fingerprint of a file's code, without comments (absent from syntax trees) and docstrings."""
    tree = _parsed(text, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


@cache
def _imported_names(text: str, path: str, package: str) -> tuple[str, ...]:
    """The dotted names that a file imports anywhere; for `from a import b`, both a and a.b, which may be a module."""
    names: list[str] = []
    for node in ast.walk(_parsed(text, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                names += [".".join(parts[: i + 1]) for i in range(len(parts))]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            parts = base.split(".")
            names += [".".join(parts[: i + 1]) for i in range(len(parts))] + [f"{base}.{a.name}" for a in node.names]
    return tuple(dict.fromkeys(name for name in names if name))


def _local_file(name: str, beside: Path) -> Path | None:
    """The file of a module of the user's or of this package, found without importing it; else None."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    if name.partition(".")[0] == _PACKAGE.name:
        return _own_file(name)
    above = sys.modules.get(name.rpartition(".")[0])
    if name in sys.modules:
        path = _file_of(sys.modules[name])
    elif above is not None and _holds_no_local_module(above):
        return None
    else:
        spec = _spec(name, beside)
        path = Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None
    return path if path is not None and path.suffix == ".py" and _is_local(path) else None


@cache
def _own_file(name: str) -> Path | None:
    """The file of a module of this package, as of the start: without the searches that took most of the time."""
    path = _PACKAGE.parent.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file in _LOADED), None)


def _holds_no_local_module(module: ModuleType) -> bool:
    """Is a loaded module no package, or an installed one, so that nothing in it is a module of the user's?"""
    path = _file_of(module)
    return not hasattr(module, "__path__") or (path is not None and not _is_local(path))


def _spec(name: str, beside: Path) -> importlib.machinery.ModuleSpec | None:
    """The file that a module not yet loaded would be loaded from."""
    top, *rest = name.split(".")
    find = importlib.machinery.PathFinder.find_spec
    if top in sys.modules:
        spec, places = None, getattr(sys.modules[top], "__path__", None)
    else:
        spec = find(top, [str(beside), *sys.path])
        if spec is None:
            with contextlib.suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(top)  # editable installs are not on the path
        places = spec.submodule_search_locations if spec is not None else None
    for i in range(len(rest)):
        spec = find(".".join([top, *rest[: i + 1]]), list(places)) if places else None
        places = spec.submodule_search_locations if spec is not None else None
    return spec


@cache
def _is_local(path: Path) -> bool:
    """Neither installed nor in the standard library; this package always counts."""
    if path.is_relative_to(_PACKAGE):
        return True
    installed = {"site-packages", "dist-packages"} & set(path.parts) or _installed_beside(path)
    return not installed and not any(path.is_relative_to(place) for place in _STANDARD_LIBRARY)


def _installed_beside(path: Path) -> bool:
    """Is it in a folder that a package was installed into (`pip install --target`)?"""
    place = path.parent
    while (place / "__init__.py").exists():
        place = place.parent
    return _holds_packages(place)


@cache
def _holds_packages(folder: Path) -> bool:
    return any(folder.glob("*.dist-info"))


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    path = _resolved(file) if file else None
    return path if path is not None and path.is_file() else None


@cache
def _resolved(file: str) -> Path:
    return Path(file).resolve()


def _plain_globals(module: ModuleType, tree: ast.Module, text: str) -> str:
    """The current values in a user's module that its functions use.

    Raises `UnknownCodeError` for one that is not a plain value, and for functions that differ from those in the file.
    """
    # dont_inherit: else this file's __future__ import of annotations would compile the same text differently
    code = set(_code_objects(compile(text, str(module.__file__), "exec", dont_inherit=True)))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    used = {n.id for f in functions for n in ast.walk(f) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    values = {}
    for name in sorted(used & set(vars(module))):
        value = inspect.unwrap(getattr(module, name)) if callable(getattr(module, name)) else getattr(module, name)
        if isinstance(value, FunctionType) and value.__module__ == module.__name__ and value.__code__ not in code:
            raise UnknownCodeError(
                f"'{name}' is not what its file holds now: it was edited or replaced since it was loaded"
            )
        if not _is_code(value):
            values[name] = _plain(value, name)
    return json.dumps(values, sort_keys=True)


def _code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_objects(constant)


def _is_code(value: Any) -> bool:
    """Is it determined by the files that are read anyway, or by the versions of libraries?"""
    kinds = (FunctionType, BuiltinFunctionType, ModuleType, type)
    library = str(getattr(type(value), "__module__", "")).partition(".")[0] in ("typing", "jaxtyping")
    ufunc = type(value).__module__ == "numpy" and callable(value)
    torch_kind = type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device")
    return isinstance(value, kinds) or library or ufunc or torch_kind


def _plain(value: Any, name: str) -> Any:
    """A value as text that identifies it. Raises `UnknownCodeError` where there is no such text."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | type(...) | Path):
        return repr(value)
    if isinstance(value, tuple | list):
        return [type(value).__name__, *(_plain(entry, name) for entry in value)]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, *sorted(json.dumps(_plain(entry, name)) for entry in value)]
    if isinstance(value, dict):
        return [[_plain(key, name), _plain(entry, name)] for key, entry in value.items()]
    if _is_code(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    raise UnknownCodeError(f"it uses the global '{name}', a {type(value).__name__}, which no file describes")


# of the package's files at load time: later edits are not what runs
_LOADED = {path: zlib.crc32(path.read_bytes()) for path in _PACKAGE.rglob("*.py")}
