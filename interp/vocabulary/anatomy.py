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
    whole word that is an entry is taken as it is; `unknown` the id that characters without an entry get;
    `ids_repeat` whether several entries share an id.
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
            and all(c in "0123456789ABCDEF" for c in entry[3:5])
        )  # fmt: skip

    @cached_property
    def exact_merging(self) -> bool:
        """Do the merges alone decide what a word becomes, and do they join nothing but characters?"""
        if "BPE" not in self.scheme:
            return False
        model = self.state["model"]
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
            return False
        fallback = model.get("byte_fallback")
        if fallback and self.scheme == "byte-level BPE" and not self.every_byte:
            return False
        # what is put for characters without an entry could be merged as well
        stand_ins = {model.get("unk_token"), *(f"<0x{b:02X}>" for b in range(256) if fallback)}
        return not any(part in stand_ins for pair in self.merges for part in pair)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """What is done to text before the model: normalizers, then splitting into words."""
        return [*_steps(self.state.get("normalizer")), *_steps(self.state.get("pre_tokenizer"))]

    @cached_property
    def bytes_last(self) -> bool:
        """Is text turned into bytes after all else, so that words are whole characters in valid UTF-8?"""
        return [step["type"] for step in self.steps].index("ByteLevel") == len(self.steps) - 1

    @cached_property
    def every_byte(self) -> bool:
        """Is every byte of UTF-8 an entry (else it is left out or replaced), and none matched before the model runs?"""
        vocabulary = self.state["model"]["vocab"]
        matched_before = {self.entries[i] for i in self.added | self.special}
        return all(
            c in vocabulary and (b < 0x80 or c not in matched_before)
            for b, c in BYTE_CHARACTERS.items() if b not in (0xC0, 0xC1) and b <= 0xF4
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
    """Take a Hugging Face tokenizer apart. A slow tokenizer is of scheme `unknown`, as is one that cannot be written."""
    vocabulary = tokenizer.get_vocab()
    entries = {i: entry for entry, i in sorted(vocabulary.items(), reverse=True)}
    special = frozenset(int(i) for i in tokenizer.all_special_ids if i is not None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return Anatomy(tokenizer, "unknown", entries, special, frozenset())
    backend.no_padding()  # as every call of the tokenizer does
    backend.no_truncation()
    try:
        state = json.loads(backend.to_str())
    except Exception:  # parts written in Python
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
        tokenizer, kind, entries, special, frozenset(added) - special, merges, bool(model.get("ignore_merges")),
        unknown=model["unk_id"] if "unk_id" in model else vocabulary.get(model.get("unk_token")),
        ids_repeat=len(set(vocabulary.values())) < len(vocabulary), state=state,
    )  # fmt: skip


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a sequence, of sequences within it, or the one step that there is."""
    if not part:
        return []
    inner = part.get("pretokenizers", part.get("normalizers"))
    return [part] if inner is None else [step for p in inner for step in _steps(p)]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text; none where the tokenizer refuses it (no entry for what it does not know)."""
    try:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []
    except Exception:  # a plain Exception is what the tokenizers library raises
        if len(texts) == 1:
            return [[]]
        half = len(texts) // 2
        return encode(tokenizer, texts[:half]) + encode(tokenizer, texts[half:])


def merging(about: Anatomy) -> Any:
    """The merges of a BPE alone: no normalizer, no splitting into words, no added tokens."""
    from tokenizers import Tokenizer, models

    model = about.state["model"]
    options = {k: model[k] for k in ("unk_token", "fuse_unk", "byte_fallback") if model.get(k) is not None}
    return Tokenizer(models.BPE(vocab=dict(model["vocab"]), merges=list(about.merges), **options))


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """A tokenizer from a bundled name, a folder, a tokenizer.json file, or a hub name, `name_or_path` saying which.

    Raises `InterpError` where there is none.
    """
    tokenizer = _loaded(source, revision)
    tokenizer.name_or_path = str(source)
    return tokenizer


def own_tokenizer(model: Any) -> Any:
    """A model's tokenizer as it was published. TransformerLens makes the one in the bridge put BOS in front of text."""
    from interp.models import origin
    from interp.organisms import WIRED

    known = model.__dict__.get("origin")
    if model.tokenizer is None or known is None or known["name"] == WIRED:
        return model.tokenizer
    if "own_tokenizer" not in model.__dict__:
        model.__dict__["own_tokenizer"] = load_tokenizer(known["name"], origin(model).get("revision"))
    return model.__dict__["own_tokenizer"]


def _loaded(source: str | Path, revision: str | None) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from interp.models import TOKENIZER_FILES, hub_source
    from interp.organisms import ORGANISMS, folder

    name = str(source)
    path = folder(name) if name in ORGANISMS else Path(name).expanduser()
    try:
        if path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        if path.is_dir():
            if not any((path / file).is_file() for file in TOKENIZER_FILES):
                raise InterpError(f"{path} holds no tokenizer: give a folder with a tokenizer.json, or --model")
            if (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
                return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
            return AutoTokenizer.from_pretrained(str(path))
        if name.startswith((".", "/", "~")):
            raise InterpError(f"no tokenizer at {path}: check the path, or use a bundled or hub name")
        where, commit = hub_source(name, revision)
        return AutoTokenizer.from_pretrained(where, revision=commit if where == name else None)
    except (InterpError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever a foreign file provokes; a panic in Rust is no Exception
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InterpError(f"'{source}' does not load as a tokenizer ({line[:200]}): check its files") from error
