"""How is an entry of the gallery made: its result by the library calls of its command, its figures as PNG and as JSON?"""

from __future__ import annotations

import hashlib
import inspect
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from interp import figures, kept, results
from interp.errors import InterpError
from interp.files import replacing, writable, write_text
from interp.gallery.entries import GALLERY, MOST, Entry
from interp.gallery.page import readme
from interp.run import run

Say = Callable[[str], None]

RUN = inspect.signature(run).parameters
_PARTS = ".parts"
_PACKAGE = Path(__file__).resolve().parents[1]


def regenerate(
    folder: str | Path = "figures",
    only: Iterable[str] = (),
    *,
    drawn_only: bool = False,
    entries: Sequence[Entry] = GALLERY,
    say: Say | None = None,
) -> list[Path]:
    """Make every entry (or `only` those named): `result.nc`, and each figure as PNG and as plotly's JSON; the folders.

    Nothing in `folder` changes before all of them are made, so that no result is stamped as that of an edited checkout.
    Interrupted, the same call goes on, as long as the code is the same. `drawn_only` runs nothing: it draws the
    figures again from the results in `folder`. `say` is told of each finished entry. A figure whose JSON would be above
    300 kB has none. Raises `InterpError` where there is no browser to draw the PNG files.
    """
    chosen, folder, say = chosen_of(only, entries), writable(folder), say or silent
    parts = parts_of(folder)
    for i, entry in enumerate(chosen, start=1):
        if drawn_only and not entry.command.startswith("show "):
            place = _taken(entry, parts, folder / entry.folder)
        else:
            place = made(entry, parts)
        _draw(entry, place)
        large = [f.name for f in entry.figures if not (place / f"{f.name}.json").exists()]
        noted = f"; above {MOST // 1000} kB as JSON, PNG only: {', '.join(large)}" if large else ""
        say(f"{i} of {len(chosen)}  {entry.folder}{noted}")
    for entry in chosen:
        _publish(entry, parts / entry.folder, folder / entry.folder)
    write_text(folder / "README.md", readme(entries))
    clear(parts, chosen)
    return [folder / entry.folder for entry in chosen]


def arguments(command: str) -> tuple[str, dict[str, Any]]:
    """The experiment, and the arguments of `interp.run`, that the words of a `run` command stand for."""
    from interp import experiments

    _, experiment, *rest = shlex.split(command)
    found: dict[str, Any] = {}
    while rest:
        name = rest.pop(0).removeprefix("--").replace("-", "_")
        if name == "pool":
            found.setdefault("pools", []).append(rest.pop(0))
            continue
        known: Any = RUN if name in RUN else experiments.parameters(experiments.find(experiment))
        if name not in known:
            raise InterpError(f"'{command}' has an unknown option {name}: mend the list")
        default = known[name].default
        found[name] = True if isinstance(default, bool) else type(default)(rest.pop(0))
    return experiment, found


def chosen_of(only: Iterable[str], entries: Sequence[Entry]) -> list[Entry]:
    """The entries of these names, or all where none is named. Raises `InterpError` for a name that is none."""
    names = [only] if isinstance(only, str) else list(only)
    known = [entry.folder for entry in entries]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise InterpError(f"unknown figures '{unknown}': use {', '.join(known)}")
    return [entry for entry in entries if not names or entry.folder in names]


def silent(line: str) -> None:
    """Tell nobody."""


def parts_of(folder: Path) -> Path:
    """Where entries lie until all are made; git is told to look away."""
    parts = writable(folder / _PARTS)
    write_text(parts / ".gitignore", "*\n")
    return parts


def clear(parts: Path, chosen: Sequence[Entry]) -> None:
    """Remove these entries from `parts`, and the folder where nothing else waits in it."""
    for entry in chosen:
        shutil.rmtree(parts / entry.folder, ignore_errors=True)
    if [path.name for path in parts.iterdir()] == [".gitignore"]:
        shutil.rmtree(parts, ignore_errors=True)


def made(entry: Entry, parts: Path) -> Path:
    """The folder below `parts` with the entry's new result, which an interrupted call may have left there."""
    place = parts / entry.folder
    question = {"command": entry.command, "code": kept.code()}
    kept.answer(place, question, lambda: _make(entry, place))
    return place


def _taken(entry: Entry, parts: Path, target: Path) -> Path:
    """The folder below `parts` with a copy of the result that lies in `target`."""
    results.load(target)  # says what is wrong with it
    place = writable(parts / entry.folder)
    (place / kept.ASKED).unlink(missing_ok=True)
    _copy(target / "result.nc", place / "result.nc")
    return place


def _make(entry: Entry, place: Path) -> None:
    """Write `result.nc` as the entry's command does."""
    verb, *words = shlex.split(entry.command)
    if verb == "run":
        experiment, given = arguments(entry.command)
        run(experiment, out=place, **given)
    elif verb == "census":
        from interp import models, vocabulary

        vocabulary.survey(models.load("organism"), place)
    else:  # a result that comes with the package
        _copy(_PACKAGE.parent / words[0], place / "result.nc")


def _copy(source: Path, target: Path) -> None:
    writable(target.parent)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def drawn_of(entry: Entry, place: Path) -> dict[str, go.Figure]:
    """The entry's figures of the result in `place`, each with that file's checksum, so that it cannot pass for another's."""
    found = figures.figures_of(results.load(place))
    named = [figure.name for figure in entry.figures]
    odd = set(found) ^ {*named, *entry.left_out}
    if odd:
        raise InterpError(
            f"{entry.folder}: the result and the gallery disagree about {', '.join(sorted(odd))}: mend the list"
        )
    digest = hashlib.sha256((place / "result.nc").read_bytes()).hexdigest()[:16]
    about = {"command": f"interp {entry.command}", "result_sha256": digest}
    return {name: found[name].update_layout(meta=about) for name in named}


def _draw(entry: Entry, place: Path) -> None:
    drawn = drawn_of(entry, place)
    if len(figures.write_images(drawn, place)) < len(drawn):
        raise InterpError(
            "PNG files are drawn by kaleido and a browser: pip install 'interp[figures]', and Chrome or Chromium"
        )
    for name, figure in drawn.items():
        text = figure.to_json()
        if len(text.encode()) <= MOST:
            write_text(place / f"{name}.json", text)
        else:
            (place / f"{name}.json").unlink(missing_ok=True)


def _publish(entry: Entry, place: Path, target: Path) -> None:
    """Copy what is finished to where it belongs, in place of what was there."""
    figures.clear(writable(target))
    for name in (*entry.left_out, *(figure.name for figure in entry.figures)):
        (target / f"{name}.json").unlink(missing_ok=True)
    for path in sorted(place.glob("*.*")):
        if path.suffix in (".nc", ".png", ".json") and path.name != kept.ASKED:
            _copy(path, target / path.name)
