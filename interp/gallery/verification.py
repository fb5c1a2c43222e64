"""Are the files in the gallery's folder what the code makes?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interp import cache, catalog, results
from interp.errors import InterpError
from interp.exhibits import GalleryEntry
from interp.gallery import collection
from interp.gallery.comparison import diff_figures, diff_results
from interp.gallery.page import LARGEST_JSON, readme
from interp.gallery.regeneration import clear, draw, ensure_result, no_log, parts_folder, select
from interp.request import Request

_PNG = b"\x89PNG"
_OF_THE_CODE = {"versions", "source_sha256", "module"}  # provenance entries that may change while numbers stay


def check(
    folder: str | Path = "figures",
    only: Iterable[str] = (),
    *,
    model: str = "",
    drawn_only: bool = False,
    entries: Sequence[GalleryEntry] | None = None,
    log: cache.Log = no_log,
) -> pd.DataFrame:
    """Compare the files in a folder with what the code makes.

    Each result is made again and compared variable by variable, within the entry's tolerance; each figure's JSON must
    match what is drawn from the committed result (to 1e-6) and carry that file's checksum, each PNG must exist, with no
    other files; the result must come from the entry's request. After an interruption, the same call resumes.

    Args:
        folder: the gallery.
        only: the entries to check, by folder; none: all of the model's.
        model: a public model of the gallery, such as smollm2; "": the bundled ones.
        drawn_only: check every model's entries without running anything, so without comparing against regenerated
            results.
        entries: the gallery's entries; None: those of this package.
        log: receives one line for each finished entry.

    Returns:
        One row for each item checked: `folder`, `name`, `passed`, `said` (what is wrong).

    Raises:
        InterpError: there is no such folder, or no entry with a given name.
    """
    every, folder = entries or collection.entries(), Path(folder)
    chosen = select(only, every, None if drawn_only else model)
    if not folder.is_dir():
        raise InterpError(f"no folder {folder}: give the one that 'interp figures' wrote")
    page = folder / "README.md"
    same = page.is_file() and page.read_text(encoding="utf-8") == readme(every)
    rows = [("README.md", "README.md", "" if same else "is not the page of this list")]
    parts = None if drawn_only else parts_folder(folder)
    for i, entry in enumerate(chosen, start=1):
        found = _check_files(entry, folder / entry.folder)
        if parts is not None:
            found |= differences(entry, ensure_result(entry, parts), folder / entry.folder)
        rows += [(entry.folder, name, said) for name, said in found.items()]
        failed = sum(bool(said) for said in found.values())
        log(f"{i} of {len(chosen)}  {entry.folder}: {f'{failed} of {len(found)} differ' if failed else 'the same'}")
    if parts is not None:
        clear(parts, chosen)
    table = pd.DataFrame(rows, columns=["folder", "name", "said"])
    table.insert(2, "passed", table["said"] == "")
    return table


def _check_files(entry: GalleryEntry, target: Path) -> dict[str, str]:
    """What is wrong with each file of a folder, by name; "" if nothing is."""
    found = {}
    try:
        found["result.nc"] = _diff_requests(entry.request, results.provenance(results.load(target)))
        drawn = draw(entry, target)
    except InterpError as error:
        return {"result.nc": found.get("result.nc") or str(error)}
    for name, figure in drawn.items():
        image, page = target / f"{name}.png", target / f"{name}.json"
        whole = image.is_file() and image.read_bytes().startswith(_PNG)
        found[image.name] = "" if whole else "is damaged" if image.exists() else "is missing"
        text = figure.to_json()
        if page.is_file():
            found[page.name] = diff_figures(text, page.read_text(encoding="utf-8"))
        elif len(text.encode()) <= LARGEST_JSON:
            found[page.name] = "is missing"
    ignored = {"figure.html", *found}  # git does not track the page either
    for path in sorted(target.iterdir()):
        if path.name not in ignored and not path.name.startswith("."):
            found[path.name] = "does not belong here"
    return found


def _diff_requests(wanted: Request | None, record: Mapping[str, Any]) -> str:
    """How a result's recorded request differs from the entry's, if it does."""
    if wanted is None:
        return ""
    ours = _in_force(wanted)
    if "request" in record:
        theirs = _in_force(Request.from_json(record["request"]))
    else:
        theirs = _recorded(record)
        ours = {name: value for name, value in ours.items() if name in theirs or name in wanted.parameters}
    odd = next((name for name in ours | theirs if ours.get(name) != theirs.get(name)), None)
    return "" if odd is None else f"was made with {odd} {theirs.get(odd)}, and the request has {ours.get(odd)}"


def _in_force(request: Request) -> dict[str, Any]:
    model = {"model": request.model.name, **request.model.model_dump(include={"weights", "dtype"})}
    asked = {"experiment": _current_name(request.experiment), "pools": request.pools}
    return asked | model | request.in_force() | request.parameters


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The request as recorded in a provenance of schema 1."""
    said = {"experiment": _current_name(record.get("experiment", "census" if "census" in record else None))}
    said |= record.get("parameters", {}) | {"model": record.get("model", {}).get("name")}
    places = (record.get("sequences", {}), record.get("model", {}), record)
    names = ("seed", "weights", "dtype", "batch", "length", "copies", "mixed")
    return said | {name: place[name] for name in names for place in places if name in place}


def _current_name(experiment: str | None) -> str:
    return catalog.OLD_NAMES.get(str(experiment), str(experiment))


def differences(entry: GalleryEntry, place: Path, target: Path) -> dict[str, str]:
    """Where the committed result in `target` differs from the one in `place`, by variable; "" if it does not."""
    try:
        new, committed = results.load(place), results.load(target)
    except InterpError as error:
        return {"result.nc": str(error)}
    found = {f"result.nc: {name}": said for name, said in diff_results(new, committed, entry.tolerance).items()}
    ours, theirs = (results.provenance(result) for result in (new, committed))
    names = {*ours, *theirs}
    if "schema" not in theirs:  # schema 1 has no requests, no parameters at their defaults, and older names
        names = ours.keys() & theirs.keys()
        parameters = ours.get("parameters", {})
        # facts about a model recorded since then, such as its attention, do not count as a difference
        ours["model"] = {n: value for n, value in ours.get("model", {}).items() if n in theirs.get("model", {})}
        ours["parameters"] = {name: parameters.get(name) for name in theirs.get("parameters", {})}
        ours["experiment"], theirs["experiment"] = (_current_name(r.get("experiment")) for r in (ours, theirs))
    for name in sorted(names - _OF_THE_CODE):
        same = ours.get(name) == theirs.get(name)
        said = "" if same else f"is {str(theirs.get(name))[:60]}, made {str(ours.get(name))[:60]}"
        found[f"result.nc: provenance {name}"] = said
    return found
