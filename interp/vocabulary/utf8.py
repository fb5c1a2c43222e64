"""Which bytes can occur where in valid UTF-8 (RFC 3629, section 4)?

A state determines what may come next: `START` is a character boundary, the others are inside a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

START = "start"
IMPOSSIBLE_BYTES = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
# by state: the ranges of the next byte (first, last), and the state after it
_NEXT = {
    START: (
        (0x00, 0x7F, START),
        (0xC2, 0xDF, "1"),
        (0xE0, 0xE0, "after E0"),
        (0xE1, 0xEC, "2"),
        (0xED, 0xED, "after ED"),
        (0xEE, 0xEF, "2"),
        (0xF0, 0xF0, "after F0"),
        (0xF1, 0xF3, "3"),
        (0xF4, 0xF4, "after F4"),
    ),
    "1": ((0x80, 0xBF, START),),
    "2": ((0x80, 0xBF, "1"),),
    "3": ((0x80, 0xBF, "2"),),
    "after E0": ((0xA0, 0xBF, "1"),),  # below are overlong forms
    "after ED": ((0x80, 0x9F, "1"),),  # above are surrogates
    "after F0": ((0x90, 0xBF, "2"),),
    "after F4": ((0x80, 0x8F, "2"),),  # nothing above: Unicode ends at U+10FFFF
}


def passages(data: bytes) -> dict[str, str]:
    """Every state in which `data` can begin inside valid text, with the state in which it then ends."""
    found = {state: state for state in _NEXT}
    for byte in data:
        found = {
            start: after for start, state in found.items() for low, high, after in _NEXT[state] if low <= byte <= high
        }
    return found


@cache
def ways_in(state: str) -> tuple[bytes, ...]:
    """The beginnings of a character that lead to `state`, short ones first; b"" for START."""
    if state == START:
        return (b"",)
    found = [
        head + bytes([byte])
        for before, steps in _NEXT.items()
        for low, high, after in steps
        if after == state
        for head in ways_in(before)
        for byte in range(low, high + 1)
    ]
    return tuple(sorted(found, key=len))


def ways_out(state: str) -> Iterator[bytes]:
    """Every ending that leads from `state` to the next character boundary; b"" for START."""
    if state == START:
        return iter([b""])
    ((low, high, after),) = _NEXT[state]
    return (bytes([byte]) + rest for byte in range(low, high + 1) for rest in ways_out(after))
