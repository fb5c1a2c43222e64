"""Is what lies in the gallery's folder what the code makes?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from interp import results
from interp.errors import InterpError
from interp.gallery.comparing import parted, redrawn
from interp.gallery.entries import GALLERY, MOST, Entry
from interp.gallery.making import RUN, Say, arguments, chosen_of, clear, drawn_of, made, parts_of, silent
from interp.gallery.page import readme

_PNG = b"\x89PNG"


def check(
    folder: str | Path = "figures",
    only: Iterable[str] = (),
    *,
    drawn_only: bool = False,
    entries: Sequence[Entry] = GALLERY,
    say: Say | None = None,
) -> pd.DataFrame:
    """Is what lies in `folder` what the code makes? One row for each thing looked at: `folder`, `name`, `passed`, `said`.

    Each result is made again and compared variable by variable, within the entry's tolerance; each figure's JSON must be
    what is drawn from the committed result (to 1e-6) and carry that file's checksum, each PNG must be there, and
    nothing else; the command must be the one that the result says it was made by. `drawn_only` runs nothing and
    leaves out the comparison with results that are made again. Interrupted, the same call goes on.
    """
    chosen, folder, say = chosen_of(only, entries), Path(folder), say or silent
    if not folder.is_dir():
        raise InterpError(f"no folder {folder}: give the one that 'interp figures' wrote")
    page = folder / "README.md"
    same = page.is_file() and page.read_text(encoding="utf-8") == readme(entries)
    rows = [("README.md", "README.md", "" if same else "is not the page of this list")]
    parts = None if drawn_only else parts_of(folder)
    for i, entry in enumerate(chosen, start=1):
        found = _of_folder(entry, folder / entry.folder)
        if parts is not None:
            found |= differences(entry, made(entry, parts), folder / entry.folder)
        rows += [(entry.folder, name, said) for name, said in found.items()]
        failed = sum(bool(said) for said in found.values())
        say(f"{i} of {len(chosen)}  {entry.folder}: {f'{failed} of {len(found)} differ' if failed else 'the same'}")
    if parts is not None:
        clear(parts, chosen)
    table = pd.DataFrame(rows, columns=["folder", "name", "said"])
    table.insert(2, "passed", table["said"] == "")
    return table


def _of_folder(entry: Entry, target: Path) -> dict[str, str]:
    """What is wrong with each file of a folder, by name; nothing where all is well."""
    try:
        committed = results.load(target)
        drawn = drawn_of(entry, target)
    except InterpError as error:
        return {"result.nc": str(error)}
    found = {"result.nc": _of_command(entry, committed)}
    for name, figure in drawn.items():
        image, page = target / f"{name}.png", target / f"{name}.json"
        whole = image.is_file() and image.read_bytes().startswith(_PNG)
        found[image.name] = "" if whole else "is damaged" if image.exists() else "is missing"
        text = figure.to_json()
        if page.is_file():
            found[page.name] = redrawn(text, page.read_text(encoding="utf-8"))
        elif len(text.encode()) <= MOST:
            found[page.name] = "is missing"
    ignored = {"figure.html", *found}  # git does not keep the page, either
    for path in sorted(target.iterdir()):
        if path.name not in ignored and not path.name.startswith("."):
            found[path.name] = "does not belong here"
    return found


def _of_command(entry: Entry, committed: xr.Dataset) -> str:
    """What a result says of how it was made, where that is not the entry's command."""
    record = results.provenance(committed)
    if not entry.command.startswith("run "):
        return ""
    experiment, given = arguments(entry.command)
    usual = {name: p.default for name, p in RUN.items()}
    drawn = record.get("sequences", {})
    wanted = {
        "experiment": (experiment, record.get("experiment")),
        "model": (given.get("model", usual["model"]), record.get("model", {}).get("name")),
    }
    wanted |= {
        name: (given.get(name, usual[name]), drawn[name])
        for name in ("batch", "length", "copies", "mixed")
        if name in drawn
    }
    wanted |= {name: (v, record.get("parameters", {}).get(name)) for name, v in given.items() if name not in usual}
    odd = next(((name, a, b) for name, (a, b) in wanted.items() if a != b), None)
    return f"was made with {odd[0]} {odd[2]}, and the command has {odd[1]}" if odd else ""


def differences(entry: Entry, place: Path, target: Path) -> dict[str, str]:
    """Where each variable of the committed result in `target` parts from the one in `place`, by name; "" where it does not."""
    try:
        new, committed = results.load(place), results.load(target)
    except InterpError as error:
        return {"result.nc": str(error)}
    found = {f"result.nc: {name}": said for name, said in parted(new, committed, entry.tolerance).items()}
    ours, theirs = (results.provenance(result) for result in (new, committed))
    for name in sorted({*ours, *theirs} - {"versions", "source_sha256"}):
        same = ours.get(name) == theirs.get(name)
        found[f"result.nc: provenance {name}"] = (
            "" if same else f"is {str(theirs.get(name))[:60]}, made {str(ours.get(name))[:60]}"
        )
    return found
