"""Where does a model's name lead: to a bundled or fetched model, a local folder, or a commit on the hub?"""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import HfApi, errors, try_to_load_from_cache

from interp.errors import InterpError
from interp.models.package_index import PUBLIC, fetched_file
from interp.organisms import BUNDLED, FLIP_FLOP_LSTM, HAND_WIRED, folder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
_HASHED = (".json", ".safetensors", ".bin", ".txt", ".model", ".py")
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_BUNDLED = (*BUNDLED, *HAND_WIRED, *PUBLIC)


def is_local(name: str) -> bool:
    """Whether a name means a bundled or fetched model or a path, rather than a hub repository."""
    try:
        return (
            name in (*_BUNDLED, FLIP_FLOP_LSTM) or Path(name).expanduser().exists() or name.startswith((".", "/", "~"))
        )
    except (RuntimeError, OSError) as error:  # an unknown user's home, a name too long for a file
        raise InterpError(
            f"unknown model '{name[:80]}' ({error}): use a bundled name, a hub name or a directory"
        ) from error


def split_revision(name: str) -> tuple[str, str | None]:
    """A model's name and its revision, of NAME@REVISION; a folder may have an @ in its name."""
    plain, at, revision = name.rpartition("@")
    return (plain, revision) if at and not Path(name).expanduser().exists() else (name, None)


def weight_bytes(name: str, revision: str | None = None) -> int | None:
    """How large a model's files of weights are, without reading them; None where they are not on this machine."""
    if name in HAND_WIRED:
        return 1_000_000
    if is_local(name):
        path = local_path(name)
    else:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        path = Path(config).parent
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files) or None


def located(name: str | Path, revision: str | None = None) -> None:
    """Raise `InterpError` if there is no such model to load, before anything large is read."""
    name = str(name)
    if not is_local(name):
        hub_source(name, revision)
    elif revision is not None:
        raise InterpError(f"'{name}' has no revisions: leave @{revision} out, or name a hub model")
    elif name not in HAND_WIRED and gguf_file(name) is None:
        model_folder(name)


def local_path(name: str) -> Path:
    """The folder or file of a bundled name, a fetched one or a path. Raises `InterpError` if it was not fetched."""
    return fetched_file(name) if name in PUBLIC else folder(name)


def model_folder(name: str) -> Path:
    """The directory of a bundled name or a path. Raises `InterpError` if it cannot hold a model."""
    if name == FLIP_FLOP_LSTM:
        raise InterpError(f"'{name}' is not a transformer: load it with interp.organisms.flip_flop_lstm('{name}')")
    path = folder(name)
    if not path.exists():
        raise InterpError(f"no model directory at {path}: check the path, or use a bundled or hub name")
    if not (path / "config.json").is_file():
        raise InterpError(f"{path} is not a model directory, it has no config.json: give a Hugging Face directory")
    return path


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without other weights; otherwise None.

    Raises:
        InterpError: the folder holds several.
    """
    path = local_path(name)
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    if not found or any(path.glob("*.safetensors*")) or any(path.glob("pytorch_model*")):
        return None
    if len(found) > 1:
        raise InterpError(f"{path} holds {len(found)} GGUF files: name one, for example {found[0]}")
    return found[0]


def content_hash(path: Path) -> str:
    """A fingerprint of the names and bytes of a model directory's files, or of a file's."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.suffix in _HASHED)
    for file in files:
        if file != path:
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]


def hub_source(name: str, revision: str | None = None) -> tuple[str, str]:
    """Where to load a hub repository from, its name or its folder in the cache, and the commit meant.

    The commit is fixed, so that a newer one cannot slip in. Offline it is the cached folder itself: given a name, the
    hub client would first retry the network for every optional file.

    Args:
        name: the repository, for example "EleutherAI/pythia-70m".
        revision: a branch, tag or commit; without it, the main branch.

    Returns:
        The source and the commit's hash.

    Raises:
        InterpError: there is no such repository, or none within reach.
    """
    bundled = ", ".join(_BUNDLED)
    refusals = {
        errors.HFValidationError: f"unknown model '{name}': use {bundled}, a hub name, or a local directory",
        errors.RevisionNotFoundError: f"'{name}' has no revision '{revision}': see its page on the hub",
        errors.GatedRepoError: f"'{name}' is gated: accept its licence on the hub, then 'hf auth login'",
        errors.RepositoryNotFoundError: f"unknown model '{name}': use {bundled}, a public hub name, or a directory",
    }
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=10).sha
        if commit:
            return name, commit
    except tuple(refusals) as error:
        reason = next(text for kind, text in refusals.items() if isinstance(error, kind))
        raise InterpError(reason) from error
    except Exception:  # noqa: S110 - each kind of broken network fails differently; the cache serves them all
        pass
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(config, str):
        return str(Path(config).parent), Path(config).parent.name
    what = f"'{name}'" if revision is None else f"revision '{revision}' of '{name}'"
    raise InterpError(
        f"{what} is not bundled, not in the hub cache, and the hub cannot be reached: "
        f"use {bundled}, a local directory, or go online once"
    )
