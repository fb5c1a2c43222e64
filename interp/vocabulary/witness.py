"""Can any text produce this token? A witness text, a proof that none can, or what was tried.

The proofs rest on three facts.

1. Text is valid UTF-8, whatever a normalizer does to it: no text contains byte sequences that valid UTF-8 cannot
   contain.
2. Merging is local. A BPE applies the applicable merge of lowest rank, leftmost first. Inside the span of an output
   token it has therefore applied the same merges, in the same order, as it would to that span alone. So a token that
   its own symbols do not merge to is never output by merging, whatever surrounds it; and two neighbours in one word
   must be the encoding of their pair alone (for canonical pairs see Berglund and van der Merwe, "Formalizing BPE
   Tokenization", 2023).
3. Words are split between characters. A token that begins or ends inside a character has its neighbour there in the
   same word, so 2. applies to the pair; all neighbours can be enumerated.

1. and 3. hold only if conversion to bytes is the last step and every byte has an entry, 2. only if nothing but
characters is merged (`Anatomy.bytes_last`, `every_byte`, `exact_merging`); otherwise they are not used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, product
from typing import NamedTuple

import numpy as np

from interp.progress import track
from interp.vocabulary.anatomy import BYTE_CHARACTERS, Anatomy, encode, merging
from interp.vocabulary.utf8 import IMPOSSIBLE_BYTES, START, passages, ways_in, ways_out

REACHABLE, IMPOSSIBLE, UNKNOWN = "reachable", "impossible", "unknown"
_AROUND = ("", "a", "A", " a", "1", " ", "\n", *".,('\"-/=éЯ中あ한اก€😀")
_BYTE_LEVEL = frozenset(BYTE_CHARACTERS.values())
_CHUNK = 50_000
_TOKENS = 1000
_MOST_PATHS = 300


class Evidence(NamedTuple):
    """What is known about one token: `reachable`, `impossible` or `unknown`, the witness text, and how or why."""

    reachable: str
    witness: str
    reason: str


def evidence(about: Anatomy) -> dict[int, Evidence]:
    """Evidence for every entry of a tokenizer, by id. Each witness was encoded, and its encoding contains the token."""
    search = _Search(about)
    alone = partial(search.attempt, search.whole(), "alone", "its own text")
    steps: list[Callable[[], None]] = [alone, search.in_context]
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
    """What has been found, proved and tried so far."""

    def __init__(self, about: Anatomy):
        self.about = about
        self.found: dict[int, tuple[str, str]] = {}
        self.proved: dict[int, str] = {}
        self.tried: dict[int, Counter[str]] = defaultdict(Counter)
        self.merging = merging(about) if about.exact_merging else None
        byte_level = about.scheme == "byte-level BPE"
        self.passages = {i: passages(raw) for i, raw in about.raw.items() if raw and byte_level}
        self._is_byte_level = byte_level and about.bytes_last
        self._pairs: dict[tuple[int, int], bool] = {}
        # by the state in which they end, or begin: tokens that can be neighbours, and the state at their other end
        self._enders: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._beginners: dict[str, list[tuple[int, str]]] = defaultdict(list)

    def open(self) -> list[int]:
        """Ids with neither witness nor proof."""
        return [i for i in self.about.entries if i not in self.found and i not in self.proved]

    def prove(self, i: int, why: str) -> None:
        """Record a proof, which is about an entry, unless its id also stands for something else."""
        if i != self.about.unknown and not self.about.ids_repeat:
            self.proved[i] = why

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, as fast as the tokenizer can."""
        try:
            found = self.about.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]
        except Exception:  # a slow tokenizer, or one text that it refuses
            return encode(self.about.tokenizer, texts)

    def attempt(self, texts: Iterable[tuple[int, str]], how: str, what: str) -> None:
        """Encode texts, each meant for one id; every token that appears gets a witness."""
        stream = iter(texts)
        while part := list(islice(stream, _CHUNK)):
            for (meant, text), ids in zip(part, self.encode([t for _, t in part]), strict=True):
                self.tried[meant][what] += 1
                for i in ids:
                    if i not in self.found:
                        self.found[i] = (text, how if i == meant else "inside a text tried for another token")

    def whole(self) -> list[tuple[int, str]]:
        """Ids with neither witness nor proof that stand for whole characters, and their texts."""
        return [(i, text) for i in self.open() if (text := self.about.text(i))]

    def broken(self) -> list[int]:
        """Ids with neither witness nor proof that begin or end inside a character."""
        return [i for i in self.open() if self.about.raw[i] and not self.about.text(i)]

    def in_context(self) -> None:
        """A token's text with other text before and after it: first common texts, then what its longer tokens have."""
        one_sided = [(a, "") for a in _AROUND[1:]] + [("", b) for b in _AROUND[1:]]
        for pairs in (one_sided, list(product(_AROUND[1:], _AROUND[1:]))):
            undecided = self.whole()
            for start in range(0, len(undecided), _TOKENS):
                part, before = undecided[start : start + _TOKENS], len(self.found)
                texts = ((i, a + text + b) for i, text in part if i not in self.found for a, b in pairs)
                self.attempt(texts, "between neighbours that do not merge with it", "contexts")
                if len(self.found) == before and pairs is not one_sided:
                    break  # a thousand tokens in 500 contexts each, and none helped: leave the rest undecided
        texts = ((i, among) for i, text in self.whole() for among in self._among_children(i, text))
        self.attempt(texts, "inside truncated longer tokens", "contexts made from longer tokens")

    def _among_children(self, i: int, text: str) -> Iterator[str]:
        for child in self.about.children.get(i, [])[:16]:
            before, here, after = self.about.text(child).partition(text)
            if here:
                lefts, rights = dict.fromkeys((before[-1:], before[-2:])), dict.fromkeys((after[:1], after[:2]))
                around = product(lefts, rights, ("", "\n", "x"), ("", "x", "é", " "))
                yield from (a + left + text + right + b for left, right, a, b in around)

    def prove_bytes(self) -> None:
        """No valid UTF-8 contains these bytes."""
        if not self._is_byte_level:
            return
        for i in self.open():
            raw = self.about.raw[i]
            if raw and not self.passages[i]:
                bad = next((b for b in raw if b in IMPOSSIBLE_BYTES), None)
                why = f"the byte 0x{bad:02X}" if bad is not None else f"the byte sequence {raw.hex(' ').upper()}"
                if bad is not None or self.about.every_byte:  # dropping a byte would join its neighbours
                    self.prove(i, f"no valid UTF-8 contains {why}")

    def prove_merges(self) -> None:
        """A token's own symbols do not merge to it."""
        if self.merging is None:
            return
        ids = [i for i in self.open() if self._comes_from_merging(i)]
        for i, merged in zip(ids, self._merged([self.about.entries[i] for i in ids]), strict=True):
            if not self.about.entries[i]:
                self.prove(i, "an empty entry occurs in no text")
            elif self._is_byte_level and not set(self.about.entries[i]) <= _BYTE_LEVEL:
                self.prove(i, "byte-level text never contains the characters of this entry")
            elif merged != [i]:
                parts = " ".join(repr(self.about.entries.get(p, "?")) for p in merged[:6])
                more = " ..." if len(merged) > 6 else ""
                self.prove(i, f"its symbols merge to {parts or 'nothing'}{more}, whatever surrounds them")

    def _comes_from_merging(self, i: int) -> bool:
        # a whole word that is an entry may be used without merging; a fragment of a character is never a whole word
        fragment = self._is_byte_level and self.passages.get(i, {}).get(START, START) != START
        put_in = self.about.raw[i] is None or i in self.about.added or self.about.is_fallback_byte(i)
        return not put_in and (fragment or not self.about.ignore_merges)

    def _merged(self, texts: list[str]) -> list[list[int]]:
        assert self.merging is not None
        return [e.ids for e in self.merging.encode_batch_fast(texts, add_special_tokens=False)]

    def completed(self, most: int) -> None:
        """Completions of a token's broken characters, up to `most` of them, spread over all that exist."""
        texts = ((i, text) for i in self.broken() for text in self._completions(i, most))
        self.attempt(texts, "with its characters completed", "completions of its characters")

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
        """Every chain of tokens that completes its characters and that merging leaves unchanged; if none, a proof."""
        open_ids = [i for i in self.broken() if i not in self.about.added]
        if not open_ids or self.merging is None or not (self._is_byte_level and self.about.every_byte):
            return
        # only tokens that merging can output can be neighbours
        symbols = [i for i in self.passages if i not in self.about.added]
        merged = self._merged([self._symbols(i) for i in symbols])
        for i in [i for i, ids in zip(symbols, merged, strict=True) if ids == [i]]:
            for start, end in self.passages[i].items():
                self._enders[end].append((i, start))
                self._beginners[start].append((i, end))
        for i in open_ids:
            chains = self._chains(i)
            texts = [b"".join(self.about.raw[t] or b"" for t in chain).decode() for chain in chains]
            # a chain is exact within a word; only encoding shows how the text is split into words
            for pairs in ([("", "")], list(product(_AROUND, _AROUND))[1:]):
                if i not in self.found:
                    around = ((i, a + text + b) for text in texts for a, b in pairs)
                    self.attempt(around, "between tokens that keep it whole", "texts of neighbouring tokens")
            if not chains and i not in self.found:
                self.prove(i, "every neighbour that completes its characters merges into it")

    def _symbols(self, i: int) -> str:
        return "".join(BYTE_CHARACTERS[b] for b in self.about.raw[i] or b"")

    def _chains(self, i: int) -> list[list[int]]:
        """Chains of tokens around `i` from one character boundary to another; empty only if there are none."""
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
                pairs = [(t, token) if side < 0 else (token, t) for t, _ in options]
                self._test_pairs(pairs)
                for (other, then), pair in zip(options, pairs, strict=True):
                    if self._pairs[pair]:
                        seen.add((other, then))
                        following.append((other, then, [*chain, other]))
            whole = [chain for _, then, chain in following if then == START]
            frontier = following
        # spread out, so that one that survives splitting into words is likely to be among them
        return whole[:: max(1, len(whole) // _MOST_PATHS)][:_MOST_PATHS]

    def _test_pairs(self, pairs: list[tuple[int, int]]) -> None:
        """Determine which pairs merging leaves unchanged."""
        new = [p for p in pairs if p not in self._pairs]
        merged = self._merged([self._symbols(a) + self._symbols(b) for a, b in new])
        self._pairs.update({(a, b): ids == [a, b] for (a, b), ids in zip(new, merged, strict=True)})

    def fallback_bytes(self) -> None:
        """Byte tokens are used for characters that are not entries of the vocabulary."""
        about = self.about
        bytes_ = {i: about.raw[i] for i in self.open() if about.is_fallback_byte(i) and about.raw[i]}
        self.attempt(((i, about.entries[i]) for i in bytes_), "written out", "its name")
        wanted = {raw[0]: i for i, raw in bytes_.items() if raw and i not in self.found}
        missing: dict[int, list[str]] = {b: [] for b in wanted}
        # added tokens may be matched only when they are words of their own
        entries = {e for i, e in about.entries.items() if i not in about.added | about.special} | set(self._replaced())
        for character in map(chr, range(0x110000 if wanted else 0)):
            if "\ud800" <= character <= "\udfff" or character in entries:
                continue
            for b in character.encode():
                if b in missing and len(missing[b]) < 200:
                    missing[b].append(character)
        texts = ((i, before + c) for b, i in wanted.items() for c in missing[b] for before in ("", "a"))
        self.attempt(texts, "in a character without an entry", "characters without entries")
        if about.scheme != "BPE with byte fallback" or self.merging is None:
            return
        made = {left + right for left, right in about.merges}  # the six characters `<0xF5>` themselves, perhaps
        for b, i in wanted.items():
            if i not in self.found and not missing[b] and not about.ignore_merges and about.entries[i] not in made:
                impossible = f"no valid UTF-8 contains the byte 0x{b:02X}"
                replaced = f"every character with the byte 0x{b:02X} is an entry or replaced by one"
                self.prove(i, impossible if b in IMPOSSIBLE_BYTES else replaced)

    def _replaced(self) -> Iterator[str]:
        """Characters that are replaced everywhere, and that neither this step nor a later one inserts."""
        for k, step in enumerate(self.about.steps):
            pattern = " " if step["type"] == "Metaspace" else step.get("pattern", {}).get("String", "")
            later = self.about.steps[k:]
            put_in = "".join(str(s.get(key, "")) for s in later for key in ("content", "prepend", "replacement"))
            known = all(
                s["type"] in ("Replace", "Prepend", "Metaspace", "Split", "Digits", "Punctuation") for s in later
            )
            if step["type"] in ("Replace", "Metaspace") and len(pattern) == 1 and known and pattern not in put_in:
                yield pattern

    def prove_normal_form(self) -> None:
        """The tokenizer normalizes, and parts of normalized text are normalized (UAX #15, section 1.2); this is not."""
        about = self.about
        form = (about.state.get("normalizer") or {}).get("type")
        # does a token always stand for consecutive characters, with none dropped between them?
        kept = about.unknown is not None
        if any(step["type"] == "ByteLevel" for step in about.steps):
            kept = self._is_byte_level and about.every_byte
        if form not in ("NFC", "NFKC", "NFD", "NFKD") or not kept:
            return
        normalize = about.tokenizer.backend_tokenizer.normalizer.normalize_str
        for i, text in self.whole():
            if i not in about.added and about.raw[i] is not None and normalize(text) != text:
                self.prove(i, f"text is normalized to {form}, and this is not in {form}")

    def result(self) -> dict[int, Evidence]:
        """Evidence for each id; witnesses are encoded once more, through the tokenizer's public interface."""
        again = encode(self.about.tokenizer, [text for text, _ in self.found.values()])
        held = {i for i, ids in zip(self.found, again, strict=True) if i in ids}
        evidence = {}
        for i in self.about.entries:
            if i in held:
                evidence[i] = Evidence(REACHABLE, *self.found[i])
            elif i in self.proved:
                evidence[i] = Evidence(IMPOSSIBLE, "", self.proved[i])
            else:
                evidence[i] = Evidence(UNKNOWN, "", self._what_was_tried(i))
        return evidence

    def _what_was_tried(self, i: int) -> str:
        tried = [what if n == 1 else f"{n} {what}" for what, n in self.tried[i].items()]
        words = "tried " + ", ".join(tried) if tried else "nothing to try"
        splitting = getattr(getattr(self.about.tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
        text = self.about.text(i)
        if splitting is None or not text or i in self.about.special or len(splitting.pre_tokenize_str(text)) < 2:
            return words
        return f"{words}; by itself it is split into several words"
