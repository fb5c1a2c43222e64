"""How is this tokenizer built: which algorithm, which bytes for each token, which merges?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer, models

from interp.vocabulary.utf8 import IMPOSSIBLE_BYTES

_WHOLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# byte-level BPE writes a byte as a printable character: itself if it is one, otherwise one from U+0100 on (GPT-2)
BYTE_CHARACTERS = {b: chr(b) for b in _WHOLE_BYTES} | {
    b: chr(0x100 + i) for i, b in enumerate(b for b in range(256) if b not in set(_WHOLE_BYTES))
}
_CHARACTER_BYTES = {c: b for b, c in BYTE_CHARACTERS.items()}


@dataclass(frozen=True)
class Anatomy:
    """A tokenizer taken apart.

    `scheme` is `byte-level BPE`, `BPE with byte fallback`, `BPE`, `Unigram`, `WordPiece`, `WordLevel` or `unknown`;
    `entries` [id] the tokenizer's own spelling of each token; `special` the ids that do not stand for text, `added`
    further ids matched before the model runs; `merges` the pairs of a BPE by rank; `ignore_merges` whether a whole word
    that is an entry is used without merging; `unknown` the id of characters without an entry; `ids_repeat` whether
    several entries share an id.
    """

    tokenizer: Any
    scheme: str
    entries: dict[int, str]
    special: frozenset[int]
    added: frozenset[int]
    merges: tuple[tuple[str, str], ...] = ()
    ignore_merges: bool = False
    unknown: int | None = None
    ids_repeat: bool = False
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def raw(self) -> dict[int, bytes | None]:
        """The bytes that each token stands for; None for special tokens and where they cannot be determined."""
        return {i: self._bytes(i, entry) for i, entry in self.entries.items()}

    def _bytes(self, i: int, entry: str) -> bytes | None:
        if i in self.special:
            return None
        if i in self.added:
            return entry.encode("utf-8", "surrogatepass")
        if self.scheme == "byte-level BPE":
            written = all(c in _CHARACTER_BYTES for c in entry)
            return bytes(_CHARACTER_BYTES[c] for c in entry) if written else entry.encode()
        if self.is_fallback_byte(i):
            return bytes([int(entry[3:5], 16)])
        if self.scheme == "WordPiece":
            prefix = self.state.get("model", {}).get("continuing_subword_prefix") or "##"
            return entry.removeprefix(prefix).encode()
        return entry.replace("\u2581", " ").encode()

    def text(self, i: int) -> str:
        """The text that a token stands for by itself; "" if it is not whole characters."""
        raw = self.raw[i]
        try:
            return self.entries[i] if raw is None else raw.decode()
        except UnicodeDecodeError:
            return ""

    def is_fallback_byte(self, i: int) -> bool:
        """Is it a byte token such as `<0xF5>`, used for characters that the vocabulary lacks?"""
        named = re.fullmatch("<0x[0-9A-F]{2}>", self.entries.get(i, ""))
        return self.scheme != "byte-level BPE" and named is not None

    @cached_property
    def exact_merging(self) -> bool:
        """Do the merges alone determine how a word is encoded, and do they join nothing but characters?"""
        model = self.state.get("model", {})
        fallback = model.get("byte_fallback")
        if "BPE" not in self.scheme or (fallback and self.scheme == "byte-level BPE" and not self.every_byte):
            return False
        if any(model.get(option) for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout")):
            return False
        # the stand-ins for characters without an entry could be merged as well
        stand_ins = {model.get("unk_token"), *(f"<0x{b:02X}>" for b in range(256) if fallback)}
        return not any(part in stand_ins for pair in self.merges for part in pair)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The steps applied to text before the model: normalizers, then splitting into words."""
        return [*_steps(self.state.get("normalizer")), *_steps(self.state.get("pre_tokenizer"))]

    @cached_property
    def bytes_last(self) -> bool:
        """Is conversion to bytes the last step, so that words are whole characters in valid UTF-8?"""
        return [step["type"] for step in self.steps].index("ByteLevel") == len(self.steps) - 1

    @cached_property
    def every_byte(self) -> bool:
        """Is every byte of UTF-8 an entry (or it is dropped or replaced), and none matched before the model runs?"""
        vocabulary = self.state["model"]["vocab"]
        matched_before = {self.entries[i] for i in self.added | self.special}
        return all(
            c in vocabulary and (b < 0x80 or c not in matched_before)
            for b, c in BYTE_CHARACTERS.items()
            if b not in IMPOSSIBLE_BYTES
        )

    @cached_property
    def merged_ids(self) -> list[tuple[int, int, int]]:
        """The left and the right token of each merge, and their result, by rank."""
        ids = {entry: i for i, entry in self.entries.items()}
        return [(ids[a], ids[b], ids[a + b]) for a, b in self.merges if a in ids and b in ids and a + b in ids]

    @cached_property
    def parents(self) -> dict[int, tuple[int, int]]:
        """The two tokens that each merged token is first made of, by rank."""
        return {merged: (left, right) for left, right, merged in reversed(self.merged_ids)}

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The tokens that merges make from each token."""
        found: dict[int, set[int]] = {}
        for *parts, merged in self.merged_ids:
            for part in parts:
                found.setdefault(part, set()).add(merged)
        return {i: sorted(merged) for i, merged in found.items()}


def anatomy(tokenizer: Any) -> Anatomy:
    """Take a Hugging Face tokenizer apart; the scheme is `unknown` for a slow one and one that cannot be serialized."""
    vocabulary = tokenizer.get_vocab()
    entries = {i: entry for entry, i in sorted(vocabulary.items(), reverse=True)}
    special = frozenset(int(i) for i in tokenizer.all_special_ids if i is not None)
    try:
        tokenizer.backend_tokenizer.no_padding()  # as every call of the tokenizer does
        tokenizer.backend_tokenizer.no_truncation()
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception:  # a slow tokenizer has no backend, and parts written in Python cannot be serialized
        return Anatomy(tokenizer, "unknown", entries, special, frozenset())
    model = state["model"]
    added = {t["id"]: t for t in state["added_tokens"]}
    entries |= {i: t["content"] for i, t in added.items()}
    special |= {i for i, t in added.items() if t["special"]}
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    merges: tuple[tuple[str, str], ...] = ()
    if kind == "BPE":
        merges = tuple(tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"])
        if any(s["type"] == "ByteLevel" for part in ("normalizer", "pre_tokenizer") for s in _steps(state[part])):
            kind = "byte-level BPE"
        elif model.get("byte_fallback") and "<0x00>" in model["vocab"]:
            kind = "BPE with byte fallback"
    return Anatomy(
        tokenizer,
        kind,
        entries,
        special,
        added=frozenset(added) - special,
        merges=merges,
        ignore_merges=bool(model.get("ignore_merges")),
        unknown=model["unk_id"] if "unk_id" in model else vocabulary.get(model.get("unk_token")),
        ids_repeat=len(set(vocabulary.values())) < len(vocabulary),
        state=state,
    )


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a sequence, of sequences within it, or the one step that there is."""
    if not part:
        return []
    inner = part.get("pretokenizers", part.get("normalizers"))
    return [part] if inner is None else [step for p in inner for step in _steps(p)]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text; empty if the tokenizer refuses it (no entry for unknown characters)."""
    try:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []
    except Exception:  # the tokenizers library raises a plain Exception
        if len(texts) == 1:
            return [[]]
        half = len(texts) // 2
        return encode(tokenizer, texts[:half]) + encode(tokenizer, texts[half:])


def merging(about: Anatomy) -> Any:
    """Only the merges of a BPE: no normalizer, no splitting into words, no added tokens."""
    model = about.state["model"]
    options = {k: model[k] for k in ("unk_token", "fuse_unk", "byte_fallback") if model.get(k) is not None}
    return Tokenizer(models.BPE(vocab=dict(model["vocab"]), merges=list(about.merges), **options))
