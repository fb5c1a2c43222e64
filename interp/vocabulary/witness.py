"""Can any text produce this token? A witness text, a proof that none can, or what was tried.

Three facts carry the proofs.

1. Text is valid UTF-8, whatever a normalizer does to it: bytes that valid UTF-8 nowhere contains, no text contains.
2. Merging is local. A BPE applies the present merge of lowest rank, leftmost first. Inside the span of a token that it
   puts out, it has therefore applied the merges, and the order of merges, that it applies to that span alone. So a token that
   its own symbols do not merge to is never put out by merging, whatever stands around it; and of two neighbours
   in one word, the pair alone must encode to these two (for canonical pairs see Berglund and van der Merwe,
   "Formalizing BPE Tokenization", 2023).
3. Words are cut between characters. A token that begins or ends inside a character has its neighbour there in the same
   word, so 2. applies to the two; all neighbours can be enumerated.

1. and 3. hold only where text is turned into bytes after all else and every byte has an entry, 2. only where nothing
but characters is merged (`Anatomy.bytes_last`, `every_byte`, `exact_merging`); elsewhere they are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, product
from typing import NamedTuple

import numpy as np

from interp.progress import track
from interp.vocabulary.anatomy import BYTE_CHARACTERS, Anatomy, encode, merging
from interp.vocabulary.utf8 import START, passages, ways_in, ways_out

REACHABLE, IMPOSSIBLE, UNKNOWN = "reachable", "impossible", "unknown"
_AROUND = (
    "", "a", "A", " a", "1", " ", "\n", ".", ",", "(", "'", '"', "-", "/", "=", "é", "Я", "中", "あ", "한", "ا", "ก", "€", "😀",
)  # fmt: skip
_BYTE_LEVEL = frozenset(BYTE_CHARACTERS.values())
_CHUNK = 50_000
_TOKENS = 1000
_MOST_PATHS = 300


class Evidence(NamedTuple):
    """What is known of one token: `reachable`, `impossible` or `unknown`, the witness text, and how or why."""

    reachable: str
    witness: str
    reason: str


def evidence(about: Anatomy) -> dict[int, Evidence]:
    """Evidence for every entry of a tokenizer, by id. Each witness was encoded and holds its token."""
    search = _Search(about)
    steps: list[Callable[[], None]] = [search.alone, search.in_context]
    if about.scheme == "byte-level BPE":
        steps += [search.prove_bytes, search.prove_merges]
        steps += [partial(search.completed, most) for most in (24, 300, 3000)]
        steps += [search.between_tokens]
    else:
        steps += [search.fallback_bytes, search.prove_merges]
    steps += [search.prove_normal_form]
    for step in track(steps, "witnesses and proofs", total=len(steps)):
        step()
    return search.result()


class _Search:
    """What has been found so far, proved so far, and tried so far."""

    def __init__(self, about: Anatomy):
        self.about = about
        self.found: dict[int, tuple[str, str]] = {}
        self.proved: dict[int, str] = {}
        self.tried: dict[int, dict[str, int]] = {}
        self.merging = merging(about) if about.exact_merging else None
        self.passages = {
            i: passages(raw) for i, raw in about.raw.items() if raw and about.scheme == "byte-level BPE"
        }  # fmt: skip
        self._is_byte_level = about.scheme == "byte-level BPE" and about.bytes_last
        self._pairs: dict[tuple[int, int], bool] = {}

    def open(self) -> list[int]:
        """Ids with neither witness nor proof."""
        return [i for i in self.about.entries if i not in self.found and i not in self.proved]

    def prove(self, i: int, why: str) -> None:
        """Note a proof, which is about an entry, unless its id stands for something else as well."""
        if i != self.about.unknown and not self.about.ids_repeat:
            self.proved[i] = why

    def encode(self, texts: list[str]) -> list[list[int]]:
        backend = getattr(self.about.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return encode(self.about.tokenizer, texts)
        try:
            return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception:  # one text that it refuses is enough
            return encode(self.about.tokenizer, texts)

    def attempt(self, texts: Iterable[tuple[int, str]], how: str, what: str) -> None:
        """Encode texts, each meant for one id; whichever tokens appear have a witness."""
        counts: dict[int, int] = {}
        stream = iter(texts)
        while part := list(islice(stream, _CHUNK)):
            for (meant, text), ids in zip(part, self.encode([t for _, t in part]), strict=True):
                counts[meant] = counts.get(meant, 0) + 1
                for i in ids:
                    if i not in self.found:
                        self.found[i] = (text, how if i == meant else "inside a text tried for another token")
        for i, n in counts.items():
            if i not in self.found:
                tried = self.tried.setdefault(i, {})
                tried[what] = tried.get(what, 0) + n

    def alone(self) -> None:
        """Each token's own text."""
        self.attempt(((i, text) for i in self.open() if (text := self.text(i))), "alone", "its own text")

    def text(self, i: int) -> str:
        """The text a token stands for by itself; "" where it is not whole characters."""
        raw = self.about.raw[i]
        if raw is None:
            return self.about.entries[i]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return ""

    def in_context(self) -> None:
        """Its text with others before and after it, first common ones, then what its longer tokens have there."""
        one_sided = [(a, "") for a in _AROUND[1:]] + [("", b) for b in _AROUND[1:]]
        for pairs in (one_sided, list(product(_AROUND[1:], _AROUND[1:]))):
            undecided = [i for i in self.open() if self.text(i)]
            for start in range(0, len(undecided), _TOKENS):
                part, before = undecided[start : start + _TOKENS], len(self.found)
                self.attempt(
                    ((i, a + self.text(i) + b) for i in part if i not in self.found for a, b in pairs),
                    "between neighbours that keep it whole", "contexts",
                )  # fmt: skip
                if len(self.found) == before and pairs is not one_sided:
                    break  # a thousand tokens in 500 contexts each, and none helped: leave the rest undecided
        self.attempt(
            ((i, t) for i in self.open() if self.text(i) for t in self._among_children(i)),
            "beside what its longer tokens hold, cut short", "contexts made from longer tokens",
        )  # fmt: skip

    def _among_children(self, i: int) -> Iterator[str]:
        text = self.text(i)
        for child in self.about.children.get(i, [])[:16]:
            whole = self.text(child)
            before, here, after = whole.partition(text)
            if here:
                for left in {before[-1:], before[-2:]}:
                    for right in {after[:1], after[:2]}:
                        yield from (
                            a + left + text + right + b for a in ("", "\n", "x") for b in ("", "x", "\u00e9", " ")
                        )

    def prove_bytes(self) -> None:
        """No valid UTF-8 contains these bytes."""
        if not self._is_byte_level:
            return
        for i in self.open():
            raw = self.about.raw[i]
            if raw and not self.passages[i]:
                bad = next((b for b in raw if b in (0xC0, 0xC1) or b > 0xF4), None)
                why = f"the byte 0x{bad:02X}" if bad is not None else f"the bytes {raw.hex(' ').upper()} in a row"
                if bad is not None or self.about.every_byte:  # a byte left out would bring others together
                    self.prove(i, f"no valid UTF-8 contains {why}")

    def prove_merges(self) -> None:
        """Its own symbols do not merge to it."""
        if self.merging is None:
            return
        ids = [i for i in self.open() if self._comes_from_merging(i)]
        for i, merged in zip(ids, self._merged([self.about.entries[i] for i in ids]), strict=True):
            if not self.about.entries[i]:
                self.prove(i, "an empty entry is no part of any text")
            elif self._is_byte_level and not set(self.about.entries[i]) <= _BYTE_LEVEL:
                self.prove(i, "byte-level text is never written with the characters of this entry")
            elif merged != [i]:
                parts = " ".join(repr(self.about.entries.get(p, "?")) for p in merged[:6])
                more = " ..." if len(merged) > 6 else ""
                self.prove(i, f"its symbols merge to {parts or 'nothing'}{more}, whatever stands around them")

    def _comes_from_merging(self, i: int) -> bool:
        about = self.about
        if about.raw[i] is None or i in about.added or about.is_fallback_byte(i):
            return False
        # a whole word that is an entry may be taken unmerged; a fragment is never a whole word
        return not about.ignore_merges or self._is_fragment(i)

    def _is_fragment(self, i: int) -> bool:
        """Does it begin or end inside a character, so that it is no whole word?"""
        return self._is_byte_level and self.passages.get(i, {}).get(START, START) != START

    def _merged(self, texts: list[str]) -> list[list[int]]:
        assert self.merging is not None
        return [e.ids for e in self.merging.encode_batch_fast(texts, add_special_tokens=False)]

    def completed(self, most: int) -> None:
        """The shortest completions of its broken characters, up to `most` of them, spread over all there are."""
        open_ids = [i for i in self.open() if self.about.raw[i] and self.text(i) == ""]
        self.attempt(
            ((i, text) for i in open_ids for text in self._completions(i, most)),
            "with its characters completed", "completions of its characters",
        )  # fmt: skip

    def _completions(self, i: int, most: int) -> Iterator[str]:
        raw, rng = self.about.raw[i], np.random.default_rng(i)
        ways = list(self.passages[i].items())
        for start, end in ways:
            ins, outs = ways_in(start), list(islice(ways_out(end), 5000))
            total, wanted = len(ins) * len(outs), -(-most // len(ways))
            drawn = range(total) if total <= wanted else rng.choice(total, wanted, replace=False).tolist()
            for k in drawn:
                yield (ins[k % len(ins)] + (raw or b"") + outs[k // len(ins)]).decode()

    def between_tokens(self) -> None:
        """Every chain of tokens that completes its characters and that merging leaves as it is; if none, a proof."""
        open_ids = [i for i in self.open() if self.about.raw[i] and self.text(i) == "" and i not in self.about.added]
        if not open_ids or self.merging is None or not (self._is_byte_level and self.about.every_byte):
            return
        # only tokens that merging can put out can be neighbours
        symbols = [i for i in self.passages if self.about.raw[i] and i not in self.about.added]
        merged = self._merged([self._symbols(i) for i in symbols])
        stable = [i for i, ids in zip(symbols, merged, strict=True) if ids == [i]]
        self._enders: dict[str, list[tuple[int, str]]] = {}
        self._beginners: dict[str, list[tuple[int, str]]] = {}
        for i in stable:
            for start, end in self.passages[i].items():
                self._enders.setdefault(end, []).append((i, start))
                self._beginners.setdefault(start, []).append((i, end))
        for i in open_ids:
            chains = self._chains(i)
            texts = [b"".join(self.about.raw[t] or b"" for t in chain).decode() for chain in chains]
            # a chain is exact within a word; how text is cut into words, only encoding it tells
            for pairs in ([("", "")], list(product(_AROUND, _AROUND))[1:]):
                if i not in self.found:
                    around = ((i, a + text + b) for text in texts for a, b in pairs)
                    self.attempt(around, "between tokens that keep it whole", "texts of neighbouring tokens")
            if not chains and i not in self.found:
                self.prove(i, "every neighbour that completes its characters merges into it")

    def _symbols(self, i: int) -> str:
        return "".join(BYTE_CHARACTERS[b] for b in self.about.raw[i] or b"")

    def _chains(self, i: int) -> list[list[int]]:
        """Chains of tokens around `i` from one character boundary to another; empty only where there is none."""
        chains: list[list[int]] = []
        for start, end in self.passages[i].items():
            lefts, rights = self._reach(i, start, self._enders, -1), self._reach(i, end, self._beginners, 1)
            chains += [[*reversed(left), i, *right] for left, right in islice(product(lefts, rights), _MOST_PATHS)]
        return chains

    def _reach(self, i: int, state: str, table: dict[str, list[tuple[int, str]]], side: int) -> list[list[int]]:
        """Chains of neighbours on one side of `i` that end at a character boundary, nearest ones first."""
        if state == START:
            return [[]]
        seen: set[tuple[int, str]] = set()
        frontier: list[tuple[int, str, list[int]]] = [(i, state, [])]
        whole: list[list[int]] = []
        while frontier and not whole:
            following: list[tuple[int, str, list[int]]] = []
            for token, at, chain in frontier:
                options = [(t, s) for t, s in table.get(at, []) if (t, s) not in seen]
                self._test_pairs([(t, token) if side < 0 else (token, t) for t, _ in options])
                for other, then in options:
                    if self._pairs[(other, token) if side < 0 else (token, other)]:
                        seen.add((other, then))
                        if then == START:
                            whole.append([*chain, other])
                        else:
                            following.append((other, then, [*chain, other]))
            frontier = following
        # far apart from each other, so that one that splitting into words allows is likely to be among them
        stride = max(1, len(whole) // _MOST_PATHS)
        return whole[::stride][:_MOST_PATHS]

    def _test_pairs(self, pairs: list[tuple[int, int]]) -> None:
        """Which pairs merging leaves as they are."""
        new = [p for p in pairs if p not in self._pairs]
        for start in range(0, len(new), _CHUNK):
            part = new[start : start + _CHUNK]
            merged = self._merged([self._symbols(a) + self._symbols(b) for a, b in part])
            self._pairs.update({(a, b): ids == [a, b] for (a, b), ids in zip(part, merged, strict=True)})

    def fallback_bytes(self) -> None:
        """Byte tokens are written for characters that are no entries of the vocabulary."""
        about = self.about
        bytes_ = [i for i in self.open() if about.is_fallback_byte(i) and about.raw[i]]
        self.attempt(((i, about.entries[i]) for i in bytes_), "written out", "its name")
        wanted = {about.raw[i][0]: i for i in bytes_ if i not in self.found}  # type: ignore[index]
        if not wanted:
            return
        missing: dict[int, list[str]] = {b: [] for b in wanted}
        # what is matched before the model runs may have to stand alone for it
        entries = {e for i, e in about.entries.items() if i not in about.added | about.special} | set(self._replaced())
        for point in range(0x110000):
            if 0xD800 <= point < 0xE000 or chr(point) in entries:
                continue
            for b in chr(point).encode():
                if b in missing and len(missing[b]) < 200:
                    missing[b].append(chr(point))
        self.attempt(
            ((i, t) for b, i in wanted.items() for c in missing[b] for t in (c, "a" + c)),
            "in a character that is no entry", "characters that are no entries",
        )  # fmt: skip
        literal = self._literal_is_merged([i for i in wanted.values() if i not in self.found])
        for b, i in wanted.items():
            if i in self.found or about.scheme != "BPE with byte fallback" or self.merging is None or literal[i]:
                continue
            if not missing[b]:
                possible = b < 0x80 or 0xC2 <= b < 0xF5 or 0x80 <= b < 0xC0
                self.prove(
                    i, f"every character with the byte 0x{b:02X} is an entry or replaced by one" if possible
                    else f"no valid UTF-8 contains the byte 0x{b:02X}",
                )  # fmt: skip

    def _replaced(self) -> Iterator[str]:
        """Characters that are replaced wherever they stand, and that neither this step nor a later one puts in."""
        for k, step in enumerate(self.about.steps):
            pattern = " " if step["type"] == "Metaspace" else step.get("pattern", {}).get("String", "")
            later = self.about.steps[k:]
            put_in = "".join(str(s.get(key, "")) for s in later for key in ("content", "prepend", "replacement"))
            known = all(
                s["type"] in ("Replace", "Prepend", "Metaspace", "Split", "Digits", "Punctuation") for s in later
            )
            if step["type"] in ("Replace", "Metaspace") and len(pattern) == 1 and known and pattern not in put_in:
                yield pattern

    def _literal_is_merged(self, ids: list[int]) -> dict[int, bool]:
        """Could the six characters `<0xF5>` themselves merge to the byte token?"""
        made = {left + right for left, right in self.about.merges}
        return {i: self.about.entries[i] in made or self.about.ignore_merges for i in ids}

    def prove_normal_form(self) -> None:
        """The tokenizer normalizes, parts of normalized text are normalized (UAX #15, section 1.2), and this is not."""
        about = self.about
        form = (about.state.get("normalizer") or {}).get("type")
        if form not in ("NFC", "NFKC", "NFD", "NFKD") or not self._keeps_neighbours():
            return
        normalize = about.tokenizer.backend_tokenizer.normalizer.normalize_str
        for i in self.open():
            text = self.text(i)
            if text and i not in about.added and about.raw[i] is not None and normalize(text) != text:
                self.prove(i, f"text is brought to {form}, and this is not in {form}")

    def _keeps_neighbours(self) -> bool:
        """Does a token stand for characters that stood in a row, with none between them left out?"""
        about = self.about
        if any(step["type"] == "ByteLevel" for step in about.steps):
            return self._is_byte_level and about.every_byte
        return about.unknown is not None

    def result(self) -> dict[int, Evidence]:
        """Evidence for each id; witnesses are encoded once more, through the tokenizer's public face."""
        items = list(self.found.items())
        checked: dict[int, Evidence] = {}
        for start in range(0, len(items), _CHUNK):
            part = items[start : start + _CHUNK]
            encoded = encode(self.about.tokenizer, [text for _, (text, _) in part])
            for (i, (text, how)), ids in zip(part, encoded, strict=True):
                if i in ids:
                    checked[i] = Evidence(REACHABLE, text, how)
        found = {}
        for i in self.about.entries:
            if i in checked:
                found[i] = checked[i]
            elif i in self.proved:
                found[i] = Evidence(IMPOSSIBLE, "", self.proved[i])
            else:
                found[i] = Evidence(UNKNOWN, "", self._what_was_tried(i))
        return found

    def _what_was_tried(self, i: int) -> str:
        tried = self.tried.get(i, {})
        said = [what if n == 1 else f"{n} {what}" for what, n in tried.items()]
        return ("tried " + ", ".join(said) if said else "nothing to try") + self._cut(i)

    def _cut(self, i: int) -> str:
        """Whether its own text is cut into several words."""
        backend = getattr(self.about.tokenizer, "backend_tokenizer", None)
        text = self.text(i)
        if backend is None or backend.pre_tokenizer is None or not text or i in self.about.special:
            return ""
        return (
            "; by itself it is cut into several words" if len(backend.pre_tokenizer.pre_tokenize_str(text)) > 1 else ""
        )
