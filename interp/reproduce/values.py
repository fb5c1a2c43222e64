"""Which values were published, by whom, and how is each measured here? A JSON file, read and checked as a whole.

The file's fields are described in docs/reproduce.md. A mistake in it is found before anything is run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from interp import catalog
from interp.errors import InterpError
from interp.reproduce.readers import LISTS, NUMBERS, READERS
from interp.request import SHARED, Drawing, Option, Request, own_options

_HERE = Path(__file__).resolve().parent
_SHARED = [option for option in SHARED if option.name in {*Drawing.model_fields, "seed", "budget"}]
Text = Annotated[str, Field(min_length=1)]
Folder = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Strict):
    """Who published it, and where (`url` is None where no address is known)."""

    citation: Text
    url: Text | None = None


class Check(_Strict):
    """One published value.

    `published` is a number, within `tolerance` of which ours must lie (in decades on the scale `log10`), or a tuple of
    heads or tokens, of which ours must name at least `minimum`; `why` says what the tolerance allows for. `read` and
    its `arguments` extract ours from the result of `run`. Where a source is ambiguous, `question` says what is open,
    and `reading` which interpretation this check uses.
    """

    id: Text
    what: Text
    source: Text
    published: float | tuple[Annotated[str, BeforeValidator(str)], ...]
    tolerance: float | None = Field(None, ge=0)
    minimum: int | None = Field(None, ge=1)
    scale: Literal["linear", "log10"] = "linear"
    why: Text
    run: Text
    read: Text
    arguments: dict[str, JsonValue] = {}
    question: Text | None = None
    reading: Text | None = None

    @field_validator("read", mode="before")
    @classmethod
    def _reader_of_today(cls, value: Any) -> Any:
        """Bring the name from the last release up to date."""
        return "classified_heads" if value == "called_heads" else value

    @field_validator("arguments", mode="before")
    @classmethod
    def _arguments_of_today(cls, value: Any) -> Any:
        """Bring the names from the last release up to date."""
        old = {"stripe": "key_kind"}
        return {old.get(name, name): entry for name, entry in value.items()} if isinstance(value, dict) else value

    @property
    def allowed(self) -> float:
        """How far ours may differ from a number, or how many of a list may be missing."""
        if isinstance(self.published, tuple):
            return float(len(self.published) - (self.minimum or 0))
        return self.tolerance or 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Check:
        if (self.question is None) != (self.reading is None):
            raise ValueError("a 'question' and its 'reading' go together: give both")
        published, several = self.published, isinstance(self.published, tuple)
        if self.read not in (LISTS if several else NUMBERS):
            known = ", ".join(LISTS if several else NUMBERS)
            raise ValueError(f"'{self.read}' does not read {'a list' if several else 'a number'}: use {known}")
        _check_settings(f"the reader '{self.read}'", own_options(READERS[self.read]), self.arguments)
        if isinstance(published, float):
            if self.tolerance is None or self.minimum is not None:
                raise ValueError("a number has no minimum but a 'tolerance', 0 or more: give that")
            if self.scale == "log10" and published <= 0:
                raise ValueError(f"{published} cannot be compared: give a number above 0 on the scale log10")
        elif not published or len(set(published)) < len(published):
            raise ValueError("'published' names nothing, or repeats something: name each once")
        elif self.tolerance is not None or self.minimum not in range(1, len(published) + 1):
            raise ValueError(f"a list has no tolerance but a 'minimum', from 1 to {len(published)}: give that")
        return self


class _Run(_Strict):
    """A request without the model, as in the file."""

    experiment: Text
    pools: tuple[Text, ...] | None = None
    parameters: dict[str, JsonValue] = {}


def _request(run: _Run) -> Request:
    if run.pools == ():
        raise ValueError("it names no pool: name one, or leave 'pools' out for the default ones")
    own = own_options(catalog.find(run.experiment))
    _check_settings(f"the experiment '{run.experiment}'", [*own, *_SHARED], run.parameters)
    # published values hold on any machine, whatever its default budget
    return Request.of(run.experiment, pools=run.pools, **({"budget": "standard"} | dict[str, Any](run.parameters)))


_ENTRIES: dict[Any, type[_Strict]] = {"sources": Source, "runs": _Run, "checks": Check}


class _File(_Strict):
    title: Text
    model: Text
    sources: dict[str, Source]
    runs: dict[Folder, Annotated[_Run, AfterValidator(_request)]]
    checks: tuple[Check, ...]
    left_out: tuple[Text, ...] = ()
    regression: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> _File:
        if not self.checks:
            raise ValueError("it has no checks: add one")
        for check in self.checks:
            for field, name, known in (("source", check.source, self.sources), ("run", check.run, self.runs)):
                if name not in known:
                    raise ValueError(f"check '{check.id}': unknown {field} '{name}': use {', '.join(known)}")
        name, count = Counter(check.id for check in self.checks).most_common(1)[0]
        if count > 1:
            raise ValueError(f"two checks are called '{name}': give them different names")
        for question in {check.question for check in self.checks} - {None}:
            readings = Counter(check.reading for check in self.checks if check.question == question)
            if len(readings) < 2 or len(set(readings.values())) > 1:
                raise ValueError(
                    f"'{question}' needs two or more readings, each with the same number of checks: add them"
                )
        return self


@dataclass(frozen=True)
class Values:
    """A file of published values; `left_out` says which published values are not compared, and why.

    With `regression`, the values are this package's own from an earlier release, and the checks test an installation.
    """

    name: str
    title: str
    model: str
    sources: Mapping[str, Source]
    runs: Mapping[str, Request]
    checks: tuple[Check, ...]
    left_out: tuple[str, ...]
    regression: bool
    sha256: str


def bundled() -> list[str]:
    """The names of the files of values that come with this package."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def read_values(values: str | Path) -> Values:
    """Read and check a file of published values.

    Args:
        values: the name of a bundled file, or the path of any other.

    Returns:
        Its content, each run as a request.

    Raises:
        InterpError: the file cannot be read, a field is missing, unknown or of the wrong type, or an experiment, a
            parameter or a reader does not exist.
    """
    path = _HERE / f"{values}.json" if str(values) in bundled() else Path(values)
    if not path.is_file():
        raise InterpError(f"no published values '{values}': use {', '.join(bundled())}, or the path of a JSON file")
    try:
        raw = path.read_bytes()
        from_json(raw)
    except (OSError, ValueError) as error:
        raise InterpError(f"{path} is not valid JSON ({str(error).splitlines()[0]}): fix it there") from error
    try:
        file = _File.model_validate_json(raw)
    except ValidationError as error:
        raise InterpError(f"{path}: {_first_mistake_in_file(error, from_json(raw))}") from error
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return Values(name=str(values), sha256=digest, **dict(file))


def _check_settings(who: str, options: Iterable[Option], given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a setting that is unknown, missing, or of the wrong type."""
    fields: dict[str, Any] = {}
    for option in options:
        kind: Any = Literal[(*option.choices, *option.old_values)] if option.choices else option.kind or Any
        kind = int | bool | kind if option.name == "bos" else kind  # an id, or whether there is one
        fields[option.name] = (kind, ...) if option.required else (kind | None, option.default)
    model = create_model("Settings", __base__=_Strict, **fields)
    try:
        model.model_validate(given)
    except ValidationError as error:
        raise ValueError(_first_mistake(error, who, model)) from error


def _first_mistake_in_file(error: ValidationError, content: Any) -> str:
    path = error.errors()[0]["loc"]
    if len(path) < 2 or path[0] not in _ENTRIES:
        return _first_mistake(error, "the file", _File)
    section, key = path[:2]
    entry = content[section][key]
    name = entry.get("id", key) if isinstance(entry, dict) else key
    place = f"{str(section)[:-1]} {name + 1 if isinstance(name, int) else repr(name)}"
    return _first_mistake(error, place, _ENTRIES[section], skipped=2)


def _first_mistake(error: ValidationError, place: str, model: type[BaseModel], skipped: int = 0) -> str:
    """The first error: where, what, and what to do about it, in one line.

    `skipped` is the length of the path to `place`, an instance of `model`.
    """
    first = error.errors()[0]
    field = next((str(part) for part in first["loc"][skipped:] if part != "[key]"), "")
    if first["type"] == "missing":
        needed = [name for name, known in model.model_fields.items() if known.is_required()]
        return f"{place} lacks '{field}': it needs {', '.join(needed)}"
    if first["type"] == "extra_forbidden":
        return f"{place} does not take '{field}': use {', '.join(model.model_fields) or 'none'}"
    named = f"{place}: '{field}'" if field else place
    if first["type"] == "value_error":
        return f"{named}: {first['ctx']['error']}"
    shown = json.dumps(first["input"], default=str)
    # for a value that may have one of several types, all of them
    same = [one["msg"] for one in error.errors() if json.dumps(one["input"], default=str) == shown]
    wanted = " or ".join(message.removeprefix("Input should be ") for message in same)
    return f"{named} is {shown[:40]}: {wanted if wanted.startswith('String') else f'use {wanted}'}"
