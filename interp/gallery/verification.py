"""Is what lies in the gallery's folder what the code makes?"""

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
_OF_THE_CODE = {"versions", "source_sha256", "module"}  # entries of a provenance that may change while numbers stay


def check(
    folder: str | Path = "figures",
    only: Iterable[str] = (),
    *,
    model: str = "",
    drawn_only: bool = False,
    entries: Sequence[GalleryEntry] | None = None,
    log: cache.Log = no_log,
) -> pd.DataFrame:
    """Compare what lies in a folder with what the code makes.

    Each result is made again and compared variable by variable, within the entry's tolerance; each figure's JSON must
    be what is drawn from the committed result (to 1e-6) and carry that file's checksum, each PNG must be there, and
    nothing else; the result must be that of the entry's request. Interrupted, the same call goes on.

    Args:
        folder: where the gallery lies.
        only: the entries to check, by their folders; none: all of the model.
        model: a public model of the gallery, such as smollm2; "": the bundled ones.
        drawn_only: look at every model's, run nothing, and leave out the comparison with results that are made again.
        entries: the gallery's entries; None: those of this package.
        log: is told, in a line, of each finished entry.

    Returns:
        One row for each thing looked at: `folder`, `name`, `passed`, `said` (what is wrong).

    Raises:
        InterpError: there is no such folder, or no entry of a name.
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
    """What is wrong with each file of a folder, by name; "" where all is well."""
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
    ignored = {"figure.html", *found}  # git does not keep the page, either
    for path in sorted(target.iterdir()):
        if path.name not in ignored and not path.name.startswith("."):
            found[path.name] = "does not belong here"
    return found


def _diff_requests(wanted: Request | None, record: Mapping[str, Any]) -> str:
    """What a result says of how it was asked for, where that is not what the entry asks for."""
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
    """What the first schema of a provenance says of the request."""
    said = {"experiment": _current_name(record.get("experiment", "census" if "census" in record else None))}
    said |= record.get("parameters", {}) | {"model": record.get("model", {}).get("name")}
    places = (record.get("sequences", {}), record.get("model", {}), record)
    names = ("seed", "weights", "dtype", "batch", "length", "copies", "mixed")
    return said | {name: place[name] for name in names for place in places if name in place}


def _current_name(experiment: str | None) -> str:
    return catalog.OLD_NAMES.get(str(experiment), str(experiment))


def differences(entry: GalleryEntry, place: Path, target: Path) -> dict[str, str]:
    """Where the committed result in `target` differs from the one in `place`, by variable; "" where it does not."""
    try:
        new, committed = results.load(place), results.load(target)
    except InterpError as error:
        return {"result.nc": str(error)}
    found = {f"result.nc: {name}": said for name, said in diff_results(new, committed, entry.tolerance).items()}
    ours, theirs = (results.provenance(result) for result in (new, committed))
    names = {*ours, *theirs}
    if "schema" not in theirs:  # the first has no requests, no parameters that are as by default, and older names
        names = ours.keys() & theirs.keys()
        parameters = ours.get("parameters", {})
        # what is recorded of a model since then, such as its attention, is no difference
        ours["model"] = {n: value for n, value in ours.get("model", {}).items() if n in theirs.get("model", {})}
        ours["parameters"] = {name: parameters.get(name) for name in theirs.get("parameters", {})}
        ours["experiment"], theirs["experiment"] = (_current_name(r.get("experiment")) for r in (ours, theirs))
    for name in sorted(names - _OF_THE_CODE):
        same = ours.get(name) == theirs.get(name)
        said = "" if same else f"is {str(theirs.get(name))[:60]}, made {str(ours.get(name))[:60]}"
        found[f"result.nc: provenance {name}"] = said
    return found
