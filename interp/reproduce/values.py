"""Which values were published, by whom, and how is each measured here? A JSON file, read and checked as a whole.

The file's fields are described in docs/reproduce.md. A mistake in it is found before anything is run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp import experiments
from interp.errors import InterpError
from interp.reproduce.readers import LISTS, NUMBERS, READERS
from interp.run import run

_HERE = Path(__file__).resolve().parent
SCALES = ("linear", "log10")
# what interp.run itself takes, less what the command decides
_OF_RUN = {
    name: parameter
    for name, parameter in inspect.signature(run).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "out"
}


@dataclass(frozen=True)
class Source:
    """Who published it, and where (`url` is None where no address is known)."""

    citation: str
    url: str | None


@dataclass(frozen=True)
class Run:
    """One call of `interp.run`: the experiment, its pools (None: the default ones) and all its parameters."""

    experiment: str
    pools: tuple[str, ...] | None
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One published value.

    `published` is a number, within `tolerance` of which ours must lie (in decades on the scale `log10`), or a tuple of
    heads or tokens, of which ours must name at least `minimum`; `why` says what the tolerance allows for. `read` and
    its `arguments` take ours off the result of `run`.
    """

    id: str
    what: str
    source: str
    published: float | tuple[str, ...]
    tolerance: float
    minimum: int
    scale: str
    why: str
    run: str
    read: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Values:
    """A file of published values; `left_out` says what was published and is not compared, and why."""

    name: str
    title: str
    model: str
    sources: dict[str, Source]
    runs: dict[str, Run]
    checks: tuple[Check, ...]
    left_out: tuple[str, ...]
    sha256: str


def bundled() -> list[str]:
    """The names of the files of values that come with this package."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def read_values(values: str | Path) -> Values:
    """Read a bundled file of values by its name, or any such file by its path.

    Raises `InterpError` for a file that cannot be read, a field that is missing, unknown or of the wrong kind, and for
    an experiment, a parameter or a reader that does not exist.
    """
    path = _HERE / f"{values}.json" if str(values) in bundled() else Path(values)
    if not path.is_file():
        raise InterpError(f"no published values '{values}': use {', '.join(bundled())}, or the path of a JSON file")
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError) as error:
        raise InterpError(f"{path} is no JSON ({str(error).splitlines()[0]}): mend it there") from error
    try:
        return _values(content, str(values), hashlib.sha256(raw).hexdigest()[:16])
    except InterpError as error:
        raise InterpError(f"{path}: {error}") from error


def _values(content: Any, name: str, digest: str) -> Values:
    known = {"title": str, "model": str, "sources": dict, "runs": dict, "checks": list}
    found = _fields(content, "the file", known, {"left_out": list})
    sources = {key: _source(key, value) for key, value in found["sources"].items()}
    runs = {key: _run(key, value) for key, value in found["runs"].items()}
    checks = tuple(_check(i, value, sources, runs) for i, value in enumerate(found["checks"]))
    if not checks:
        raise InterpError("it has no checks: add one")
    ids = [check.id for check in checks]
    doubled = next((i for i in ids if ids.count(i) > 1), None)
    if doubled is not None:
        raise InterpError(f"two checks are called '{doubled}': name them apart")
    left_out = tuple(_texts(found.get("left_out", []), "left_out"))
    return Values(name, found["title"], found["model"], sources, runs, checks, left_out, digest)


def _source(key: str, value: Any) -> Source:
    found = _fields(value, f"source '{key}'", {"citation": str}, {"url": str})
    return Source(found["citation"], found.get("url"))


def _run(key: str, value: Any) -> Run:
    where = f"run '{key}'"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
        raise InterpError(f"{where}: its results lie in a folder of that name, so use letters, digits, - and _")
    found = _fields(value, where, {"experiment": str}, {"pools": list, "parameters": dict})
    try:
        function = experiments.find(found["experiment"])
    except InterpError as error:
        raise InterpError(f"{where}: {error}") from error
    known = experiments.parameters(function) | _OF_RUN
    given = found.get("parameters", {})
    for name, setting in given.items():
        if name not in known:
            raise InterpError(f"{where}: {found['experiment']} has no parameter '{name}': use {', '.join(known)}")
        _check_kind(setting, known[name].default, f"{where}: '{name}'")
    if "pools" in found and not found["pools"]:
        raise InterpError(f"{where} names no pool: name one, or leave 'pools' out for the default ones")
    pools = tuple(_texts(found["pools"], f"{where}: pools")) if "pools" in found else None
    return Run(found["experiment"], pools, given)


def _check(i: int, value: Any, sources: dict[str, Source], runs: dict[str, Run]) -> Check:
    where = f"check '{value['id']}'" if isinstance(value, dict) and "id" in value else f"check {i + 1}"
    needed = dict.fromkeys(("id", "what", "source", "why", "run", "read"), str) | {"published": (int, float, list)}
    more = {"tolerance": (int, float), "minimum": int, "scale": str, "arguments": dict}
    found = _fields(value, where, needed, more)
    for field, known in (("source", sources), ("run", runs), ("read", READERS)):
        if found[field] not in known:
            what = "reader" if field == "read" else field
            raise InterpError(f"{where}: unknown {what} '{found[field]}': use {', '.join(known)}")
    arguments = found.get("arguments", {})
    _check_arguments(found["read"], arguments, where)
    published, several = found["published"], isinstance(found["published"], list)
    if several != (found["read"] in LISTS):
        right = ", ".join(LISTS if several else NUMBERS)
        raise InterpError(f"{where}: '{found['read']}' reads {'a number' if several else 'a list'}: use {right}")
    if several:
        names = tuple(map(str, published))
        if not names or len(set(names)) < len(names):
            raise InterpError(f"{where}: 'published' names nothing, or something twice: name each once")
        if "tolerance" in found or not 1 <= found.get("minimum", 0) <= len(names):
            raise InterpError(f"{where}: a list has no tolerance but a 'minimum', from 1 to {len(names)}: give that")
        return _made(found, names, float(len(names) - found["minimum"]), found["minimum"], arguments)
    if "minimum" in found or not (math.isfinite(found.get("tolerance", -1)) and found.get("tolerance", -1) >= 0):
        raise InterpError(f"{where}: a number has no minimum but a 'tolerance', 0 or more: give that")
    if found.get("scale", "linear") not in SCALES:
        raise InterpError(f"{where}: unknown scale '{found['scale']}': use {' or '.join(SCALES)}")
    if not math.isfinite(published) or (found.get("scale") == "log10" and published <= 0):
        raise InterpError(f"{where}: {published} cannot be compared: give a finite number, above 0 on the scale log10")
    return _made(found, float(published), float(found["tolerance"]), 0, arguments)


def _made(
    found: dict[str, Any], published: float | tuple[str, ...], tolerance: float, least: int, arguments: dict[str, Any]
) -> Check:
    texts = {name: found[name] for name in ("id", "what", "source", "why", "run", "read")}
    scale = found.get("scale", SCALES[0])
    return Check(**texts, published=published, tolerance=tolerance, minimum=least, scale=scale, arguments=arguments)


def _check_arguments(reader: str, arguments: dict[str, Any], where: str) -> None:
    signature = inspect.signature(READERS[reader]).parameters
    known = {n: p for n, p in signature.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name, value in arguments.items():
        if name not in known:
            have = ", ".join(known) or "none"
            raise InterpError(f"{where}: the reader '{reader}' has no argument '{name}': it has {have}")
        _check_kind(value, known[name].default, f"{where}: '{name}'")
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise InterpError(f"{where}: the reader '{reader}' needs '{missing[0]}': give it in 'arguments'")


def _check_kind(value: Any, default: Any, where: str) -> None:
    """A setting must be of the kind of its default, where that has one."""
    if not isinstance(default, bool | int | float | str):
        return
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    # some take an id in the place of a word (bos)
    if type(value) not in (*kinds[type(default)], *((bool, int) if default == "auto" else ())):
        raise InterpError(f"{where} takes a {type(default).__name__}, and {json.dumps(value)} is none: mend it")


def _fields(value: Any, where: str, needed: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The value, if it is an object with all the needed fields and no others, each of its kind."""
    if not isinstance(value, dict):
        raise InterpError(f"{where} is no JSON object: write {{{', '.join(needed)}}}")
    known = needed | more
    for name in needed:
        if name not in value:
            raise InterpError(f"{where} has no '{name}': it needs {', '.join(needed)}")
    for name, content in value.items():
        if name not in known:
            raise InterpError(f"{where} has an unknown field '{name}': use {', '.join(known)}")
        if not isinstance(content, known[name]) or isinstance(content, bool) or content == "":
            raise InterpError(f"{where}: '{name}' is {json.dumps(content)[:40]}: {_wanted(known[name])}")
    return value


def _wanted(kind: Any) -> str:
    words = {str: "a text", dict: "an object", list: "a list", int: "a whole number", float: "a number"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return "use " + " or ".join(words[k] for k in kinds)


def _texts(values: list[Any], where: str) -> list[str]:
    if not all(isinstance(value, str) and value for value in values):
        raise InterpError(f"{where}: every entry is a text: put it in quotation marks")
    return values
