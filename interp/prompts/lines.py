"""What may a line of a prompt file hold? JSON, one prompt per line; errors name the line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import InterpError

_FIELDS = ("text", "ids", "answer", "rivals", "corrupted", "spans", "read")
# a part of the text that occurs once; such a part and which occurrence, from 1; token positions [from, up to)
Span = str | tuple[str, int] | tuple[int, int]
Tokens = str | tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """A prompt as it is written in a file.

    Attributes:
        where: the prefix of error messages: the file and the line number.
        number: the line number, from 1.
        prompt: a text, or ids, which are fed unchanged.
        answers: the correct next tokens: texts of tokens, or ids.
        rivals: the tokens that the answers are compared with.
        corrupted: the other prompt of a pair, in the same form as the prompt.
        spans: parts of the prompt by name.
        read: tokens of the prompt itself that are scored: positions, the name of a span, or "all".
    """

    where: str
    number: int
    prompt: Tokens
    answers: tuple[str | int, ...] = ()
    rivals: tuple[str | int, ...] = ()
    corrupted: Tokens | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)
    read: str | tuple[int, ...] = ()

    def mistake(self, what: str) -> InterpError:
        """An error about this line."""
        return InterpError(f"{self.where}: {what}")


def lines_of_file(path: Path) -> list[Line]:
    """The prompts of a JSON-lines file.

    Raises:
        InterpError: it cannot be read, is empty, or a line is not a prompt; with the line number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors may put a byte-order mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InterpError(f"cannot read {path} ({reason}): give a JSON-lines file, ioi:N, or text:FILE") from error
    return lines_of_text(text, str(path))


def lines_of_text(text: str, name: str) -> list[Line]:
    """The prompts of a text of JSON lines; empty lines are skipped. `name` is what messages call it."""
    found = []
    for number, written in enumerate(text.split("\n"), start=1):
        if written.strip():
            try:
                value = json.loads(written)
            except (ValueError, RecursionError) as error:
                said = str(error).partition(":")[0] or "nested too deep"
                raise InterpError(
                    f'{name}, line {number}: this is not JSON ({said}): write {{"text": "...", "answer": "..."}}'
                ) from error
            found.append(line_of(value, f"{name}, line {number}", number))
    if not found:
        raise InterpError(f'{name} is empty: write a prompt a line, {{"text": "...", "answer": "..."}}')
    return found


def lines_of(values: Iterable[Mapping[str, Any]], name: str) -> list[Line]:
    """The prompts of dictionaries with the same fields as the lines of a file."""
    found = [line_of(value, f"{name}, prompt {number}", number) for number, value in enumerate(values, start=1)]
    if not found:
        raise InterpError(f"{name} is empty: give at least one prompt")
    return found


def line_of(value: Any, where: str, number: int) -> Line:
    """One prompt. Raises `InterpError` for anything else."""
    if not isinstance(value, Mapping):
        raise InterpError(
            f'{where}: a {type(value).__name__} is not a prompt: write {{"text": "...", "answer": "..."}}'
        )
    odd = next((name for name in value if name not in _FIELDS), None)
    if odd is not None:
        raise InterpError(f"{where}: unknown field '{odd}': use {', '.join(_FIELDS)}")
    if ("text" in value) == ("ids" in value):
        raise InterpError(f"{where}: give either text or ids")
    kind = "text" if "text" in value else "ids"
    prompt = _tokens(value[kind], kind, where)
    corrupted = value.get("corrupted")
    read = value.get("read", ())
    if isinstance(read, list | tuple):
        read = _ids(read, "read", where)
    elif not isinstance(read, str):
        raise InterpError(f"{where}: read {read!r}: give positions, the name of a span, or all")
    made = Line(
        where,
        number,
        prompt,
        _several(value.get("answer", ()), "answer", where),
        _several(value.get("rivals", ()), "rivals", where),
        None if corrupted is None else _tokens(corrupted, kind, where, "corrupted"),
        _spans(value.get("spans", {}), where),
        read,
    )
    if made.read and made.answers:
        raise made.mistake("answer is read after the prompt, and read names tokens within it: give only one of them")
    if made.rivals and not made.answers:
        raise made.mistake("rivals need an answer to be compared with: give answer, too")
    both = [answer for answer in made.answers if answer in made.rivals]
    if both:
        raise made.mistake(f"{both[0]!r} is an answer and a rival: give it once")
    return made


def _tokens(value: Any, kind: str, where: str, name: str = "") -> Tokens:
    """A text, or ids, whichever the prompt is."""
    if kind == "text":
        if not isinstance(value, str) or not value:
            raise InterpError(f"{where}: {name or 'text'} must be a non-empty text, because the prompt is one")
        return value
    found = _ids(value, name or "ids", where)
    if not found:
        raise InterpError(f"{where}: {name or 'ids'} is empty: give at least one id")
    return found


def _ids(value: Any, name: str, where: str) -> tuple[int, ...]:
    whole = isinstance(value, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    if not whole or any(i < 0 for i in value):
        raise InterpError(f"{where}: {name} must hold non-negative integers: give a list such as [5, 17]")
    return tuple(value)


def _several(value: Any, name: str, where: str) -> tuple[str | int, ...]:
    """One text or id, or several; each once."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
            raise InterpError(f"{where}: {name} {item!r} is not a token: give a text or an id, or a list of these")
    return tuple(dict.fromkeys(items))


def _spans(value: Any, where: str) -> dict[str, Span]:
    if not isinstance(value, Mapping):
        raise InterpError(f'{where}: spans are named parts of the prompt, such as {{"subject": "Mary"}}')
    found: dict[str, Span] = {}
    for name, part in value.items():
        pair = isinstance(part, list | tuple) and len(part) == 2
        numbered = pair and isinstance(part[1], int) and not isinstance(part[1], bool)
        if isinstance(part, str) and part:
            found[name] = part
        elif numbered and isinstance(part[0], str | int) and not isinstance(part[0], bool):
            found[name] = (part[0], part[1])  # type: ignore[assignment]
        else:
            raise InterpError(
                f"{where}: span '{name}' {part!r}: give a part of the text, [part, which occurrence], or token "
                "positions [from, up to]"
            )
    return found
