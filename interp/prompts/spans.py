"""Which tokens of a prompt belong to a named part of it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.prompts.lines import Line, Span


def positions_of(line: Line, name: str, span: Span, tokenizer: Any, size: int, front: int) -> list[int]:
    """The positions of the tokens that a span overlaps.

    Args:
        line: the prompt.
        name: the span's name.
        span: the span as the line gives it.
        tokenizer: the published one; None if there is none, which is enough for token positions.
        size: number of tokens in the prompt, including those put first.
        front: number of tokens that were put before the text.

    Raises:
        InterpError: there is no such part, or it is ambiguous.
    """
    if isinstance(span, tuple) and isinstance(span[0], int):
        start, end = int(span[0]), int(span[1])
        if not 0 <= start < end <= size:
            raise line.mistake(
                f"span '{name}' [{start}, {end}] does not exist: the prompt has tokens 0 to {size - 1} "
                "('interp tokens' shows them)"
            )
        return list(range(start, end))
    part, nth = (span, None) if isinstance(span, str) else (str(span[0]), int(span[1]))
    if not isinstance(line.prompt, str):
        raise line.mistake(f"span '{name}' is a text, and the prompt is ids: give token positions [from, up to]")
    starts = _occurrences(line.prompt, str(part))
    if not starts:
        raise line.mistake(f"span '{name}' does not exist: {part!r} is not in the text")
    if nth is None and len(starts) > 1:
        raise line.mistake(
            f"span '{name}' is ambiguous: {part!r} is in the text {len(starts)} times; [{part!r}, 1] is the first"
        )
    if nth is not None and not 1 <= nth <= len(starts):
        raise line.mistake(f"span '{name}' does not exist: {part!r} is in the text {len(starts)} times, not {nth}")
    first = starts[(nth or 1) - 1]
    offsets = _offsets(tokenizer, line)
    end = first + len(str(part))
    found = [front + i for i, (low, high) in enumerate(offsets) if low < end and high > first]
    if not found:
        raise line.mistake(f"span '{name}': the tokenizer makes no token of {part!r}; give positions [from, up to]")
    return found


def _occurrences(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def _offsets(tokenizer: Any, line: Line) -> Sequence[tuple[int, int]]:
    """Where each token of a text begins and ends in it."""
    try:
        made = tokenizer(line.prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return made["offset_mapping"]
    except (NotImplementedError, ValueError, KeyError, TypeError) as error:
        raise line.mistake(
            "this tokenizer does not report where its tokens are in a text: give token positions [from, up to]"
        ) from error
