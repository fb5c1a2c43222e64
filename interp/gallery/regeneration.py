"""How is an entry of the gallery made? Its result from its request, its figures as PNG and as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from interp import cache, pages, results, runner, views
from interp.errors import InterpError
from interp.exhibits import GalleryEntry
from interp.files import replacing, writable, write_text
from interp.gallery import collection
from interp.gallery.page import LARGEST_JSON, readme
from interp.models import PUBLIC

_PARTS = ".parts"


def no_log(line: str) -> None:
    """Tell nobody."""


def regenerate(
    folder: str | Path = "figures",
    only: Iterable[str] = (),
    *,
    model: str = "",
    drawn_only: bool = False,
    entries: Sequence[GalleryEntry] | None = None,
    log: cache.Log = no_log,
) -> list[Path]:
    """Regenerate the gallery: for each entry `result.nc`, and every figure as PNG and as plotly JSON.

    Nothing in `folder` changes until all of them are made, so that no result is stamped as coming from an edited
    checkout. After an interruption, the same call resumes. A figure whose JSON would exceed 300 kB has none.

    Args:
        folder: the gallery, with a subfolder for each entry.
        only: the entries to make, by folder; none: all of the model's.
        model: a public model of the gallery, such as smollm2; "": the bundled ones.
        drawn_only: run nothing, and redraw the figures from the results in `folder`, for every model.
        entries: the gallery's entries; None: those of this package.
        log: receives one line for each finished entry.

    Returns:
        The folders of the entries that were made.

    Raises:
        InterpError: there is no browser to draw the PNG files, or no entry with a given name.
    """
    every, folder = entries or collection.entries(), writable(folder)
    chosen = select(only, every, None if drawn_only else model)
    parts = parts_folder(folder)
    for i, entry in enumerate(chosen, start=1):
        if drawn_only and entry.request is not None:
            results.load(folder / entry.folder)  # reports what is wrong with it
            _copy(folder / entry.folder / "result.nc", parts / entry.folder / "result.nc")
        else:
            ensure_result(entry, parts)
        large = _draw(entry, parts / entry.folder)
        noted = f"; above {LARGEST_JSON // 1000} kB as JSON, PNG only: {', '.join(large)}" if large else ""
        log(f"{i} of {len(chosen)}  {entry.folder}{noted}")
    for entry in chosen:
        _publish(entry, parts / entry.folder, folder / entry.folder)
    write_text(folder / "README.md", readme(every))
    clear(parts, chosen)
    return [folder / entry.folder for entry in chosen]


def select(only: Iterable[str], entries: Sequence[GalleryEntry], model: str | None = None) -> list[GalleryEntry]:
    """The entries with these names or, if none are named, all of a model's: "": the bundled ones; None: every model's.

    Raises `InterpError` for an unknown name, and for a model without entries.
    """
    names = [only] if isinstance(only, str) else list(only)
    known = [entry.folder for entry in entries]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise InterpError(f"unknown figures '{unknown}': use {', '.join(known)}")
    if names or model is None:
        return [entry for entry in entries if not names or entry.folder in names]
    found = [entry for entry in entries if _public_model(entry) == model]
    if not found:
        public = ", ".join(sorted({_public_model(entry) for entry in entries} - {""})) or "none"
        raise InterpError(f"the gallery has no figures of '{model}': use {public}, or leave --model out")
    return found


def _public_model(entry: GalleryEntry) -> str:
    """The model of an entry, "" for a bundled one."""
    name = "" if entry.request is None else entry.request.model.name
    return name if name in PUBLIC else ""


def parts_folder(folder: Path) -> Path:
    """Where entries are kept until all are made; ignored by git."""
    parts = writable(folder / _PARTS)
    write_text(parts / ".gitignore", "*\n")
    return parts


def clear(parts: Path, chosen: Sequence[GalleryEntry]) -> None:
    """Remove these entries from `parts`, and the folder if nothing else is left in it."""
    for entry in chosen:
        shutil.rmtree(parts / entry.folder, ignore_errors=True)
    if [path.name for path in parts.iterdir()] == [".gitignore"]:
        shutil.rmtree(parts, ignore_errors=True)


def ensure_result(entry: GalleryEntry, parts: Path) -> Path:
    """The folder in `parts` with the entry's new result, possibly left by an interrupted call."""
    place = parts / entry.folder
    if entry.request is None:
        _copy(collection.PACKAGE.parent / entry.stored, place / "result.nc")
    else:
        runner.run_request(entry.request, out=place, log=no_log)
    return place


def _copy(source: Path, target: Path) -> None:
    writable(target.parent)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def draw(entry: GalleryEntry, place: Path) -> dict[str, go.Figure]:
    """The entry's figures for the result in `place`, each with that file's checksum, so that they cannot be mistaken
    for another's.
    """
    problems: list[str] = []
    found = views.figures(results.load(place), log=problems.append)
    if problems:
        raise InterpError(f"{entry.folder}: {problems[0].removesuffix(': plain ones instead')}")
    named = [caption.name for caption in entry.captions]
    odd = set(found) ^ {*named, *entry.left_out}
    if odd:
        raise InterpError(
            f"{entry.folder}: the result and the gallery disagree about {', '.join(sorted(odd))}: fix the entry"
        )
    about = {"command": entry.command, "result_sha256": cache.file_sha256(place / "result.nc")}
    return {name: found[name].update_layout(meta=about) for name in named}


def _draw(entry: GalleryEntry, place: Path) -> list[str]:
    """Write the figures; return the names of those too large for JSON."""
    drawn = draw(entry, place)
    if len(pages.write_images(drawn, place)) < len(drawn):
        raise InterpError(
            "PNG files are drawn by kaleido and a browser: pip install 'interp[figures]', and Chrome or Chromium"
        )
    texts = {name: figure.to_json() for name, figure in drawn.items()}
    for name, text in texts.items():
        if len(text.encode()) <= LARGEST_JSON:
            write_text(place / f"{name}.json", text)
        else:
            (place / f"{name}.json").unlink(missing_ok=True)
    return [name for name in texts if not (place / f"{name}.json").exists()]


def _publish(entry: GalleryEntry, place: Path, target: Path) -> None:
    """Copy what is finished to where it belongs, in place of what was there."""
    pages.clear(writable(target))
    names = (*entry.left_out, *(caption.name for caption in entry.captions))
    for name in ("result.nc", *(f"{name}{suffix}" for name in names for suffix in (".png", ".json"))):
        if (place / name).exists():
            _copy(place / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
