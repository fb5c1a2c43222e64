"""What does a model's published tokenizer do: which token comes first, what is put around text, how is a token written?

Everything here uses the tokenizer as it was published. TransformerLens changes its copy: a missing BOS becomes EOS, and
a token is added if there is neither.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, first_line
from interp.models.identity import IDENTITIES
from interp.models.sources import TOKENIZER_FILES, hub_source, local_path
from interp.organisms import ORGANISMS, folder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_BOUNDARIES = ("<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|im_end|>", "</s>", "<eos>", "[SEP]", "<s>", "<bos>")
_SPACE = "\u2581"  # what SentencePiece writes for a space
# prefixes that suppress a prefix space: what follows one of these is not the start of a text
_ANCHORS = ("»", "a", "1", ".", "é", "\n")
# files of any kind of tokenizer; `special_tokens_map.json` and `added_tokens.json` only accompany one
_LIKE_A_TOKENIZER = re.compile(
    r"tokenizer\b|tiktoken|tekken|vocab|merges|sentencepiece|spiece|\bspm\b|\bbpe\b|\.model\b|^encoder\.json$|^dict\.txt$",
    re.IGNORECASE,
)
_NO_TOKENIZER = re.compile(
    r"\.(safetensors|bin|pt|pth|gguf|py|md|nc|parquet|npz|npy|h5|msgpack|png|jpe?g|svg|html|csv|pdf)$|\.index\.json$"
)


# --- loading ----------------------------------------------------------------------------------------------------------


def load_tokenizer(source: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """A tokenizer, with `name_or_path` saying where it comes from.

    Args:
        source: a bundled or fetched name, a folder, a tokenizer.json or GGUF file, or a hub name.
        revision: of a hub name.
        trust_remote_code: run the Python files that come with it.

    Returns:
        A Hugging Face tokenizer.

    Raises:
        InterpError: there is none, or its files are damaged or of an unknown kind.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name = str(source)
    path = local_path(name)
    files = tokenizer_files(path) if path.is_dir() else []
    try:
        file = path if path.is_file() else path / "tokenizer.json"
        if path.suffix == ".gguf":
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        elif path.is_file() or (file.is_file() and not (path / "tokenizer_config.json").is_file()):
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
        elif path.is_dir():
            if not files:
                raise InterpError(f"{path} holds no tokenizer: give a folder with a tokenizer.json, or --model")
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        elif name.startswith((".", "/", "~")):
            raise InterpError(f"no tokenizer at {path}: check the path, or use a bundled or hub name")
        else:
            where, commit = hub_source(name, revision)
            tokenizer = AutoTokenizer.from_pretrained(
                where, revision=commit if where == name else None, trust_remote_code=trust_remote_code
            )
        if path.is_dir() and not file.is_file() and not _holds_text(tokenizer):
            raise ValueError("no vocabulary is found in it")
    except (InterpError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever a foreign file provokes; a panic in Rust is not an Exception
        line = first_line(error)[:200]
        if path.is_dir() and not file.is_file():
            raise InterpError(
                f"{path} holds {', '.join(files)}, which transformers does not read as a tokenizer ({line}): convert "
                "it to a tokenizer.json, or move it away to have the model without a tokenizer"
            ) from error
        raise InterpError(f"'{source}' does not load as a tokenizer ({line}): check its files") from error
    tokenizer.name_or_path = name
    return tokenizer


def tokenizer_files(path: Path) -> list[str]:
    """The names of the files in a folder that look like a tokenizer's, of any kind."""
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    return [n for n in names if n in TOKENIZER_FILES or (_LIKE_A_TOKENIZER.search(n) and not _NO_TOKENIZER.search(n))]


def _holds_text(tokenizer: Any) -> bool:
    """Is there any entry of text? transformers makes up an empty tokenizer if it finds no vocabulary."""
    return any(re.search(r"\w", e) and not re.fullmatch(r"<.*>|\[.*\]", e) for e in tokenizer.get_vocab())


def stand_in_tokenizer() -> Any:
    """A placeholder tokenizer for a loader that requires one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder(ORGANISMS[0])))


def give_tokenizer(bridge: TransformerBridge, published: Any) -> None:
    """Let TransformerLens's own text functions, such as `to_tokens`, work with a copy of a tokenizer, or with none.

    Nothing is made up: without a BOS they prepend none. They do need a padding token.
    """
    bridge.tokenizer = None  # otherwise TransformerLens would set it up, and use EOS as BOS
    if published is None:
        return
    own = copy.deepcopy(published)
    if own.pad_token_id is None:
        entries = own.get_vocab()
        own.pad_token = own.eos_token or own.unk_token or own.bos_token or min(entries, key=entries.__getitem__)
    front, back = added_by_template(published)
    bridge.tokenizer = own
    bridge.cfg.tokenizer_prepends_bos = bool(front) and front[0] in (own.bos_token_id, own.cls_token_id)
    bridge.cfg.tokenizer_appends_eos = bool(back) and back[-1] == own.eos_token_id


def share_tokenizer(model: TransformerBridge, other: TransformerBridge) -> None:
    """Let another bridge's text functions work as a model's do."""
    other.tokenizer = None
    other.tokenizer = model.tokenizer
    for name in ("tokenizer_prepends_bos", "tokenizer_appends_eos"):
        setattr(other.cfg, name, getattr(model.cfg, name))


def published_tokenizer(model: TransformerBridge) -> Any:
    """A model's tokenizer as it was published when `interp.load` loaded it; None if there was none.

    For a bridge that `load` did not make, it is the bridge's own, without a BOS that TransformerLens set to EOS.
    """
    if model in IDENTITIES:
        return IDENTITIES[model].tokenizer
    own = model.tokenizer
    bos = getattr(own, "bos_token", None)
    if bos is not None and bos == own.eos_token and own.init_kwargs.get("bos_token") is None:
        own = copy.deepcopy(own)
        own.bos_token = None
    return own


def needed_tokenizer(model: TransformerBridge, what: str, remedy: str = "") -> Any:
    """The published tokenizer. Raises `InterpError`, which names `what` needs it, if there is none."""
    tokenizer = published_tokenizer(model)
    if tokenizer is None:
        remedy = remedy or "save one in the model's folder"
        raise InterpError(f"{what} needs a tokenizer and this model has none: {remedy}")
    return tokenizer


def tokenizer_state(model: TransformerBridge) -> str:
    """Everything that determines the published tokenizer's behaviour, and the bridge's own, which users may use."""
    states = []
    for tokenizer in (published_tokenizer(model), model.tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else type(tokenizer).__name__
        states.append(f"{text} {getattr(tokenizer, 'special_tokens_map', None)}")
    return " ".join(states)


# --- what is put around text ------------------------------------------------------------------------------------------


def bos_id(model: TransformerBridge, bos: int | str | None = "auto") -> int | None:
    """The id of the first token, or None.

    Args:
        model: any loaded model.
        bos: "auto": the published tokenizer's BOS, if it has one; "none" or None; "required"; an id; or the text of a
            token.

    Raises:
        InterpError: a required BOS is missing, an id does not exist, or a text is not one token.
    """
    if bos is None or bos == "none":
        return None
    rows = int(model.original_model.get_input_embeddings().weight.shape[0])
    if isinstance(bos, int):
        if not 0 <= bos < rows:
            raise InterpError(f"bos {bos}: the vocabulary ends at {rows - 1}: use an id of it, a token, auto or none")
        return int(bos)
    if bos in ("auto", "required"):
        tokenizer = published_tokenizer(model)
        found = None if tokenizer is None else tokenizer.bos_token_id
        if found is None and bos == "required":
            raise InterpError("this model's tokenizer has no BOS token: give an id or a token, or leave BOS out")
        if found is not None and not 0 <= found < rows:
            raise InterpError(
                f"the tokenizer's BOS is token {found}, and this model embeds {rows}: use bos none, or an id"
            )
        return None if found is None else int(found)
    return bos_id(model, single_token(needed_tokenizer(model, f"bos {bos!r}", "give an id, or none"), bos))


def boundary_ids(model: TransformerBridge) -> list[int]:
    """The ids of the published tokenizer's tokens for the beginning and the end of a text, without repeats."""
    tokenizer = published_tokenizer(model)
    if tokenizer is None:
        return []
    entries = tokenizer.get_vocab()
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id]
    ids += [entries.get(text) for text in _BOUNDARIES]
    return list(dict.fromkeys(int(i) for i in ids if i is not None and i >= 0))


def eos_id(model: TransformerBridge) -> int | None:
    """The published tokenizer's EOS, or None."""
    tokenizer = published_tokenizer(model)
    return None if tokenizer is None else tokenizer.eos_token_id


def added_by_template(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after a text by itself: BOS or [CLS], EOS or [SEP]."""
    for text in ("a", "1", "."):
        plain, whole = encoded(tokenizer, text), list(tokenizer.encode(text))
        for at in range(len(whole) - len(plain) + 1):
            if plain and whole[at : at + len(plain)] == plain:
                return whole[:at], whole[at + len(plain) :]
    return [], []


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without what a template adds; empty if the tokenizer refuses it."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except Exception:  # the tokenizers library raises a plain Exception for text without an entry
        return []


def encoded_inside(tokenizer: Any, text: str) -> list[int] | None:
    """The ids of a text that follows other text, so that no space is put before it; None if they cannot be determined.

    A tokenizer that adds no prefix space encodes it as it is.
    """
    if not text or not puts_space(tokenizer):
        return encoded(tokenizer, text)
    for anchor in _ANCHORS:
        head = encoded(tokenizer, anchor)
        whole = encoded(tokenizer, anchor + text)
        if head and token_text(tokenizer, head[-1]).endswith(anchor) and whole[: len(head)] == head:
            return whole[len(head) :]
    return None


def puts_space(tokenizer: Any) -> bool:
    """Does it put a space before text?"""
    ids = encoded(tokenizer, "a") or encoded(tokenizer, "1")
    return bool(ids) and token_text(tokenizer, ids[0]).startswith(" ")


# --- how a token is written -------------------------------------------------------------------------------------------


def entry(tokenizer: Any, i: int) -> str | None:
    """The tokenizer's own spelling of a token; None if it has no such token."""
    try:
        found = tokenizer.convert_ids_to_tokens(int(i))
    except (IndexError, KeyError, OverflowError, TypeError):
        return None
    return found if found is None else str(found)


def token_text(tokenizer: Any, i: int) -> str:
    """The text that a token stands for, including a leading space; "" if it has none."""
    written = entry(tokenizer, i)
    if written is None:
        return ""
    text = str(tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    # SentencePiece's decoders strip the first space of a text
    return written.replace(_SPACE, " ") if written.startswith(_SPACE) and _SPACE not in text else text


def token_texts(model: TransformerBridge, ids: Iterable[int]) -> list[str]:
    """A printable text for each id: what the token stands for, or the tokenizer's name for it if that is not text."""
    tokenizer = published_tokenizer(model)
    if tokenizer is None:
        return [f"[{i}]" for i in ids]
    texts = []
    for i in ids:
        text = token_text(tokenizer, i)
        broken = not text or "\ufffd" in text or not text.replace(" ", "x").replace("\n", "x").isprintable()
        texts.append(f"{entry(tokenizer, i) or ''}[{i}]" if broken else text)
    return texts


def single_token(tokenizer: Any, text: str) -> int:
    """The one token that is written exactly like this: a text as inside other text, or an entry of the vocabulary.

    Raises:
        InterpError: the text is several tokens, none, or only a token with another spelling.
    """
    alone = encoded(tokenizer, text)
    for ids in (alone, encoded_inside(tokenizer, text) or []):
        if len(ids) == 1 and token_text(tokenizer, ids[0]) == text:
            return int(ids[0])
    entries = tokenizer.get_vocab()
    for written in (text, text.replace(" ", _SPACE)):
        if written in entries:
            return int(entries[written])
    if len(alone) == 1:
        other = token_text(tokenizer, alone[0])
        raise InterpError(
            f"{text!r} is not a token here: the tokenizer encodes it as token {alone[0]}, {other!r} "
            f"({entry(tokenizer, alone[0])!r}); write that, or the id"
        )
    if not alone:
        raise InterpError(f"{text!r} is not a token of this model's tokenizer: give a text that is one token, or ids")
    raise InterpError(f"{text!r} is {len(alone)} tokens here, {alone}: give a text that is one token, or ids")
