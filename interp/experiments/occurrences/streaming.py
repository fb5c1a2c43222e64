"""How often does each token occur in a file of any size? Counted window by window, as if it were tokenized whole.

The tokens of a text depend on the text around it, though not far. So windows overlap, and
the next one takes over where both have the same tokens in the middle of what they share. Where they
have not, the overlap grows, up to all that is not counted yet; then the window itself grows.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InterpError

WINDOW = 1 << 18  # bytes, or characters
OVERLAP = 1 << 12  # characters that two windows share, of which the middle half must agree
_LEAST = 8  # tokens that must agree
_GROWS = 4  # times, the overlap where it does not


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text: ids, and where each begins and ends in it, [token]."""

    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class Place:
    """Where counting continues: the byte of the file where a window begins, and how many of its tokens are counted."""

    byte: int = 0
    skip: int = 0


Encode = Callable[[str], Tokens]


def encoder(tokenizer: Any) -> Encode | None:
    """A tokenizer as a function from texts to `Tokens`; None where it does not report offsets."""
    if not getattr(tokenizer, "is_fast", False):
        return None

    def encode(text: str) -> Tokens:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return Tokens(np.array(found["input_ids"], dtype=np.int64), offsets[:, 0], offsets[:, 1])

    return encode


def pieces(file: str | Path, byte: int = 0, size: int = WINDOW) -> Iterator[str]:
    """A UTF-8 file as texts of `size` bytes or a few less, line ends as they are.

    Args:
        file: a path.
        byte: where to begin; a character must begin there.
        size: bytes that are read at a time, a positive integer.

    Raises:
        InterpError: the file cannot be read, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = byte
    try:
        with Path(file).open("rb") as stream:
            stream.seek(byte)
            while True:
                raw = stream.read(size)
                held = len(decoder.getstate()[0])
                text = decoder.decode(raw, final=not raw)
                if text:
                    yield text
                if not raw:
                    return
                at += len(raw)
    except UnicodeDecodeError as error:
        raise InterpError(
            f"{file} is not UTF-8 (byte {at - held + error.start}): give a UTF-8 text file, e.g. by iconv"
        ) from error
    except OSError as error:
        raise InterpError(f"cannot read {file} ({error.strerror or error}): give a UTF-8 text file") from error


def counted(
    encode: Encode,
    texts: Iterator[str],
    place: Place = Place(),
    *,
    rows: int,
    most: int | None = None,
    overlap: int = OVERLAP,
) -> tuple[np.ndarray, Place | None]:
    """Count the tokens of a text that comes in pieces.

    Args:
        encode: a tokenizer, as `encoder` gives it.
        texts: the text from `place` on, in order.
        place: where an earlier call has stopped; pieces may differ from those.
        rows: how many ids there are.
        most: stop after so many characters, or somewhat more; None: count all.
        overlap: characters that two windows share at first.

    Returns:
        How often each id occurs, [token], and where to continue; None at the end of the text.
    """
    counts = np.zeros(rows, dtype=np.int64)
    text, byte, skip, passed = next(texts, ""), place.byte, place.skip, 0
    tokens = encode(text)
    for ahead in texts:
        found = _continued(encode, text, tokens, skip, ahead, overlap)
        if found is None:
            wanted = 2 * len(text)  # so that all of it takes no more than some times as long
            text += ahead
            while len(text) < wanted and (more := next(texts, "")):
                text += more
            tokens = encode(text)
            continue
        until, begin, after = found
        add(counts, tokens.ids[skip:until])
        byte, passed = byte + len(text[:begin].encode()), passed + begin
        text, tokens, skip = text[begin:] + ahead, after[0], after[1]
        if most is not None and passed >= most:
            return counts, Place(byte, skip)
    add(counts, tokens.ids[skip:])
    return counts, None


def _continued(
    encode: Encode, text: str, tokens: Tokens, skip: int, ahead: str, overlap: int
) -> tuple[int, int, tuple[Tokens, int]] | None:
    """Up to which of its tokens the window counts; where the next one begins in it; the next one's tokens, and from
    which of them on it counts. None where no two windows agree.
    """
    first = int(tokens.start[skip]) if skip < len(tokens.ids) else len(text)
    while overlap <= len(text) - first:
        begin = len(text) - overlap
        after = encode(text[begin:] + ahead)
        seam = _seam(tokens, after, begin, overlap)
        if seam is not None and seam[0] >= skip:
            return seam[0], begin, (after, seam[1])
        overlap *= _GROWS
    return None


def _seam(one: Tokens, two: Tokens, begin: int, overlap: int) -> tuple[int, int] | None:
    """A shared token of both windows, from which the second may take over from the first."""
    low, high = begin + overlap // 4, begin + overlap - overlap // 4
    places = []
    for tokens, shift in ((one, 0), (two, begin)):
        inside = np.flatnonzero((tokens.start + shift >= low) & (tokens.end + shift <= high))
        if len(inside) < _LEAST or inside[-1] - inside[0] != len(inside) - 1:
            return None
        places.append(inside)
    if len(places[0]) != len(places[1]):
        return None
    same = (
        np.array_equal(one.ids[places[0]], two.ids[places[1]])
        and np.array_equal(one.start[places[0]], two.start[places[1]] + begin)
        and np.array_equal(one.end[places[0]], two.end[places[1]] + begin)
    )
    # between two tokens, not within the bytes of a character
    starts, ends = one.start[places[0]], one.end[places[0]]
    clean = np.flatnonzero(ends[:-1] <= starts[1:]) + 1
    if not same or not len(clean):
        return None
    middle = int(clean[len(clean) // 2])
    return int(places[0][middle]), int(places[1][middle])


def add(counts: np.ndarray, ids: np.ndarray) -> None:
    """Count ids, in place. Raises `InterpError` for one that has no row."""
    if ids.max(initial=0) >= len(counts):
        raise InterpError(
            f"the text holds token {ids.max()}, and this model embeds {len(counts)} tokens: its tokenizer is another "
            "model's"
        )
    counts += np.bincount(ids, minlength=len(counts))
