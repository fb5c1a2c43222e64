"""Which bytes can stand where in valid UTF-8 (RFC 3629, section 4)?

A state says what must come next: `START` is a character boundary, the others lie inside a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

START = "start"
_ANY = (0x80, 0xBF)
# inside a character: which range the next byte must lie in, and the state after it
_NEXT = {
    "1": (_ANY, START),
    "2": (_ANY, "1"),
    "3": (_ANY, "2"),
    "after E0": ((0xA0, 0xBF), "1"),  # below lie overlong forms
    "after ED": ((0x80, 0x9F), "1"),  # above lie surrogates
    "after F0": ((0x90, 0xBF), "2"),
    "after F4": ((0x80, 0x8F), "2"),  # above lies nothing: Unicode ends at U+10FFFF
}
STATES = (START, *_NEXT)
_LEADS = (
    (0x00, 0x7F, START), (0xC2, 0xDF, "1"), (0xE0, 0xE0, "after E0"), (0xE1, 0xEC, "2"), (0xED, 0xED, "after ED"),
    (0xEE, 0xEF, "2"), (0xF0, 0xF0, "after F0"), (0xF1, 0xF3, "3"), (0xF4, 0xF4, "after F4"),
)  # fmt: skip


def step(state: str, byte: int) -> str | None:
    """The state after one more byte; None where that is no UTF-8."""
    if state != START:
        (low, high), after = _NEXT[state]
        return after if low <= byte <= high else None
    return next((after for low, high, after in _LEADS if low <= byte <= high), None)


def run(state: str, data: bytes) -> str | None:
    """The state after `data`; None where that is no UTF-8."""
    now: str | None = state
    for byte in data:
        if now is None:
            return None
        now = step(now, byte)
    return now


def passages(data: bytes) -> dict[str, str]:
    """Every state in which `data` can begin inside valid text, with the state in which it then ends."""
    return {state: end for state in STATES if (end := run(state, data)) is not None}


@cache
def ways_in(state: str) -> tuple[bytes, ...]:
    """Beginnings of one character after which the text is in `state`, short ones first; b"" for START."""
    if state == START:
        return (b"",)
    found = [bytes([b]) for b in range(0xC2, 0xF5) if step(START, b) == state]
    for before in _NEXT:
        if _NEXT[before][1] == state:
            low, high = _NEXT[before][0]
            found += [head + bytes([b]) for head in ways_in(before) for b in range(low, high + 1)]
    return tuple(sorted(found, key=len))


def ways_out(state: str) -> Iterator[bytes]:
    """Every ending that leads from `state` to the next character boundary; b"" for START."""
    if state == START:
        yield b""
        return
    (low, high), after = _NEXT[state]
    for byte in range(low, high + 1):
        for rest in ways_out(after):
            yield bytes([byte]) + rest
