"""Which of the six published categories is a token in? Decode it alone, encode again (Land and Bartolo 2024).

As their code does, a tokenizer that puts a space in front of text is met by putting a quotation mark there and taking
it off again. "Unreachable" here means no more than that this round trip fails: see `witness` for whether any text
produces the token.
"""

from __future__ import annotations

from typing import Any

from interp.vocabulary.anatomy import encode

OK, OK_SPECIAL = "OK", "OK_SPECIAL"
_SPACES = " \u2581_\u0120"
_PREFIXES = ("«", "»")


def categories(tokenizer: Any, ids: list[int], special: frozenset[int]) -> dict[int, tuple[str, bool]]:
    """The category of each id, and whether it survives the round trip."""
    prefixes = _prefixes(tokenizer)
    decoded = _decoded(tokenizer, ids, prefixes)
    again = _encoded(tokenizer, decoded, prefixes)
    return {
        i: (_category(i, text, back, special), back == [i]) for i, text, back in zip(ids, decoded, again, strict=True)
    }


def _category(i: int, text: str, back: list[int], special: frozenset[int]) -> str:
    if back == [i]:
        return OK_SPECIAL if i in special else OK
    if len(text) >= 3 and text[0] in "[<" and text[-1] in "]>" and any(c.isalpha() for c in text):
        return "UNREACHABLE_SPECIAL"
    if "\ufffd" in text:
        return "UNDECODEABLE"
    return "UNREACHABLE_SINGLE_TOKEN" if len(back) == 1 else "UNREACHABLE_MULTI_TOKEN"


def _prefixes(tokenizer: Any) -> list[tuple[str, int]]:
    """Characters to shield a text's beginning with, and their ids; none where nothing is put in front of text."""
    first = tokenizer.convert_ids_to_tokens(encode(tokenizer, ["test"])[0][:1])
    if not first or first[0][:1] not in _SPACES:
        return []
    found = [(p, ids[0]) for p, ids in zip(_PREFIXES, encode(tokenizer, list(_PREFIXES)), strict=True) if len(ids) == 1]
    # "»" alone may be a space and the mark: inside a text it is the mark that counts
    return found or [(p, ids[-1]) for p, ids in zip(_PREFIXES, encode(tokenizer, list(_PREFIXES)), strict=True) if ids]


def _decoded(tokenizer: Any, ids: list[int], prefixes: list[tuple[str, int]]) -> list[str]:
    if not prefixes:
        return _decode(tokenizer, [[i] for i in ids])
    found = []
    for i, texts in zip(
        ids, zip(*(_decode(tokenizer, [[p, i] for i in ids]) for _, p in prefixes), strict=True), strict=True
    ):
        stripped = [text.removeprefix(" ") for text in texts]
        whole = [s[len(p) :] for s, (p, _) in zip(stripped, prefixes, strict=True) if s.startswith(p)]
        found.append(whole[0] if whole else _decode(tokenizer, [[i]])[0])
    return found


def _encoded(tokenizer: Any, texts: list[str], prefixes: list[tuple[str, int]]) -> list[list[int]]:
    if not prefixes:
        return encode(tokenizer, texts)
    tries = [(p, encode(tokenizer, [mark + text for text in texts])) for mark, p in prefixes]
    found = []
    for k, text in enumerate(texts):
        kept = next((ids[k][1:] for p, ids in tries if ids[k][:1] == [p]), None)
        found.append(encode(tokenizer, [text])[0] if kept is None else kept)
    return found


def _decode(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    return [tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in rows]
