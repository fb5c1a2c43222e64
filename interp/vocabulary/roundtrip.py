"""Which of the six published categories is a token in? Decode it alone, encode again (Land and Bartolo 2024).

As in their code, for a tokenizer that prepends a space to text, a quotation mark is prepended and then removed.
"Unreachable" here only means that this round trip fails: see `witness` for whether any text produces the token.
"""

from __future__ import annotations

from typing import Any

from interp.vocabulary.anatomy import encode

OK, OK_SPECIAL = "OK", "OK_SPECIAL"
_SPACES = " \u2581_\u0120"
_MARKS = ["«", "»"]


def categories(tokenizer: Any, ids: list[int], special: frozenset[int]) -> dict[int, tuple[str, bool]]:
    """The category of each id, and whether it survives the round trip."""
    marks = _shields(tokenizer)
    texts = _decode(tokenizer, [[i] for i in ids])
    for mark, shield in reversed(marks):  # the first mark that works overrides the others
        for k, shielded in enumerate(_decode(tokenizer, [[shield, i] for i in ids])):
            if shielded.removeprefix(" ").startswith(mark):
                texts[k] = shielded.removeprefix(" ")[len(mark) :]
    again = encode(tokenizer, texts)
    for mark, shield in reversed(marks):
        for k, back in enumerate(encode(tokenizer, [mark + text for text in texts])):
            if back[:1] == [shield]:
                again[k] = back[1:]
    return {
        i: (_category(i, text, back, special), back == [i]) for i, text, back in zip(ids, texts, again, strict=True)
    }


def _category(i: int, text: str, back: list[int], special: frozenset[int]) -> str:
    if back == [i]:
        return OK_SPECIAL if i in special else OK
    if len(text) >= 3 and text[0] in "[<" and text[-1] in "]>" and any(c.isalpha() for c in text):
        return "UNREACHABLE_SPECIAL"
    if "\ufffd" in text:
        return "UNDECODEABLE"
    return "UNREACHABLE_SINGLE_TOKEN" if len(back) == 1 else "UNREACHABLE_MULTI_TOKEN"


def _shields(tokenizer: Any) -> list[tuple[str, int]]:
    """Marks that shield the beginning of a text, and their ids; none if nothing is prepended to text."""
    first = tokenizer.convert_ids_to_tokens(encode(tokenizer, ["test"])[0][:1])
    if not first or first[0][:1] not in _SPACES:
        return []
    written = [(mark, ids) for mark, ids in zip(_MARKS, encode(tokenizer, _MARKS), strict=True) if ids]
    # "»" alone may be a space and the mark: inside a text it is the mark that counts
    return [(mark, ids[0]) for mark, ids in written if len(ids) == 1] or [(mark, ids[-1]) for mark, ids in written]


def _decode(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    return [tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in rows]
