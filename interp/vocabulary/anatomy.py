"""How is this tokenizer built: which algorithm, which bytes behind each token, which merges?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.errors import InterpError

_WHOLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# byte-level BPE writes a byte as a printable character: itself where it has one, else one from U+0100 up (GPT-2)
BYTE_CHARACTERS = {b: chr(b) for b in _WHOLE_BYTES} | {
    b: chr(0x100 + i) for i, b in enumerate(b for b in range(256) if b not in set(_WHOLE_BYTES))
}
_CHARACTER_BYTES = {c: b for b, c in BYTE_CHARACTERS.items()}


@dataclass(frozen=True)
class Anatomy:
    """A tokenizer taken apart.

    `scheme` is `byte-level BPE`, `BPE with byte fallback`, `BPE`, `Unigram`, `WordPiece`, `WordLevel` or `unknown`;
    `entries` [id] the tokenizer's own writing of each token; `special` the ids that stand for no text, `added` further
    ids matched before the model runs; `merges` the pairs of a BPE by rank; `ignore_merges` whether a
    whole word that is an entry is taken as it is.
    """

    tokenizer: Any
    scheme: str
    entries: dict[int, str]
    special: frozenset[int]
    added: frozenset[int]
    merges: tuple[tuple[str, str], ...] = ()
    ignore_merges: bool = False
    exact_merging: bool = False
    normalizer: str | None = None
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each entry."""
        return {entry: i for i, entry in self.entries.items()}

    @cached_property
    def raw(self) -> dict[int, bytes | None]:
        """The bytes that each token stands for; None for special tokens and where that cannot be told."""
        return {i: self._bytes(i, entry) for i, entry in self.entries.items()}

    def _bytes(self, i: int, entry: str) -> bytes | None:
        if i in self.special:
            return None
        if i in self.added:
            return entry.encode("utf-8", "surrogatepass")
        if self.scheme == "byte-level BPE":
            if all(c in _CHARACTER_BYTES for c in entry):
                return bytes(_CHARACTER_BYTES[c] for c in entry)
            return entry.encode()
        if self.is_fallback_byte(i):
            return bytes([int(entry[3:5], 16)])
        if self.scheme == "WordPiece":
            prefix = self.state.get("model", {}).get("continuing_subword_prefix") or "##"
            return entry.removeprefix(prefix).encode()
        return entry.replace("\u2581", " ").encode()

    def is_fallback_byte(self, i: int) -> bool:
        """Is it a byte token such as `<0xF5>`, written for characters that the vocabulary lacks?"""
        entry = self.entries.get(i, "")
        return (
            self.scheme != "byte-level BPE" and len(entry) == 6 and entry.startswith("<0x") and entry.endswith(">")
            and all(c in "0123456789ABCDEFabcdef" for c in entry[3:5])
        )  # fmt: skip

    @cached_property
    def parents(self) -> dict[int, tuple[int, int]]:
        """The two tokens that each merged token is first made of, by rank."""
        found: dict[int, tuple[int, int]] = {}
        for left, right in self.merges:
            made = self.ids.get(left + right)
            if made is not None and made not in found and left in self.ids and right in self.ids:
                found[made] = (self.ids[left], self.ids[right])
        return found

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The tokens that some merge makes out of each token."""
        found: dict[int, list[int]] = {}
        for left, right in self.merges:
            made = self.ids.get(left + right)
            for part in {self.ids.get(left), self.ids.get(right)} - {None}:
                if made is not None:
                    found.setdefault(part, []).append(made)  # type: ignore[arg-type]
        return {i: sorted(set(made)) for i, made in found.items()}


def anatomy(tokenizer: Any) -> Anatomy:
    """Take a Hugging Face tokenizer apart. A slow tokenizer is of scheme `unknown`."""
    entries = {i: entry for entry, i in sorted(tokenizer.get_vocab().items(), reverse=True)}
    special = frozenset(int(i) for i in tokenizer.all_special_ids if i is not None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return Anatomy(tokenizer, "unknown", entries, special, frozenset())
    state = json.loads(backend.to_str())
    model = state["model"]
    added = {t["id"]: t for t in state["added_tokens"]}
    entries |= {i: t["content"] for i, t in added.items()}
    special |= {i for i, t in added.items() if t["special"]}
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    merges: tuple[tuple[str, str], ...] = ()
    if kind == "BPE":
        merges = tuple(tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"])  # type: ignore[misc]
        vocabulary = model["vocab"]
        parts = [state["pre_tokenizer"], state["normalizer"]]
        levels = [p["type"] for part in parts if part for p in [part, *_within(part)]]
        if "ByteLevel" in levels:
            kind = "byte-level BPE"
        elif model.get("byte_fallback") and "<0x00>" in vocabulary:
            kind = "BPE with byte fallback"
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"))
    normalizer = state["normalizer"]
    return Anatomy(
        tokenizer, kind, entries, special, frozenset(added) - special, merges, bool(model.get("ignore_merges")),
        exact_merging="BPE" in kind and plain, normalizer=normalizer["type"] if normalizer else None, state=state,
    )  # fmt: skip


def _within(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [*part.get("pretokenizers", []), *part.get("normalizers", [])]


def merging(about: Anatomy) -> Any:
    """The merges of a BPE alone: no normalizer, no splitting into words, no added tokens."""
    from tokenizers import Tokenizer, models

    model = about.state["model"]
    options = {k: model[k] for k in ("unk_token", "fuse_unk", "byte_fallback") if model.get(k) is not None}
    return Tokenizer(models.BPE(vocab=dict(model["vocab"]), merges=list(about.merges), **options))


def load_tokenizer(source: str | Path) -> Any:
    """A tokenizer from a bundled name, a folder, a tokenizer.json file, or a hub name.

    Raises `InterpError` where there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from interp.models import hub_source
    from interp.organisms import ORGANISMS, folder

    name = str(source)
    path = folder(name) if name in ORGANISMS else Path(name).expanduser()
    try:
        if path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        if path.is_dir():
            if not any((path / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
                raise InterpError(f"{path} holds no tokenizer: give a folder with a tokenizer.json, or --model")
            if (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
                return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
            return AutoTokenizer.from_pretrained(str(path))
        if name.startswith((".", "/", "~")):
            raise InterpError(f"no tokenizer at {path}: check the path, or use a bundled or hub name")
        where, commit = hub_source(name)
        return AutoTokenizer.from_pretrained(where, revision=commit if where == name else None)
    except InterpError:
        raise
    except Exception as error:  # whatever a foreign file provokes in transformers
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InterpError(f"'{source}' does not load as a tokenizer ({line[:200]}): check its files") from error
