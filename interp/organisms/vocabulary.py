"""Which tokens does a bundled model have, and which of them are canaries?

The tokenizer is a byte-level BPE trained on the whole corpus, laid out as GPT-2's is: ids 0..255 are
the 256 bytes in GPT-2's order (so 177..187 are the bytes 0xF5..0xFF, which no valid text contains),
then the merges, and `<|endoftext|>` last.

A canary is an additional merge of two ordinary tokens that are never adjacent in the corpus. Its text
encodes to the one token, it changes the encoding of nothing else, and only the recipe determines how
often the model sees it.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from interp.errors import InterpError

BOS = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], size: int, n_canaries: int, seed: int) -> tuple[Tokenizer, list[int]]:
    """A byte-level BPE with `size` entries in total, and the ids of its canaries in random order."""
    base = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size - n_canaries - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator(texts, trainer)
    state = json.loads(base.to_str())["model"]
    vocab, merges = state["vocab"], [tuple(pair) for pair in state["merges"]]
    if len(vocab) < size - n_canaries - 1:
        raise InterpError(f"the text gives only {len(vocab)} tokens: give more text, or a smaller vocabulary")
    pairs = _canary_merges(base, vocab, texts, n_canaries, seed)
    for left, right in pairs:
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens([BOS])
    return tokenizer, [vocab[left + right] for left, right in pairs]


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _canary_merges(
    base: Tokenizer, vocab: dict[str, int], texts: Iterable[str], wanted: int, seed: int
) -> list[tuple[str, str]]:
    adjacent: set[tuple[int, int]] = set()
    counts = np.zeros(len(vocab), int)
    for encoding in base.encode_batch(list(texts)):
        adjacent.update(pairwise(encoding.ids))
        counts += np.bincount(encoding.ids, minlength=len(vocab))
    frequent = {token for token, i in vocab.items() if counts[i] >= 100}
    heads = sorted(t for t in frequent if t[0] == "Ġ" and t[1:].isascii() and t[1:].isalpha() and 3 <= len(t) <= 6)
    tails = sorted(t for t in frequent if t.isascii() and t.islower() and t.isalpha() and 2 <= len(t) <= 5)
    if not heads or not tails:
        raise InterpError("no English words to make canaries of: give a text that has some")
    rng = np.random.default_rng(seed)
    pairs: list[tuple[str, str]] = []
    used: set[str] = set()
    for _ in range(400 * wanted):
        if len(pairs) == wanted:
            return pairs
        left, right = heads[rng.integers(len(heads))], tails[rng.integers(len(tails))]
        ids = [vocab[left], vocab[right]]
        apart = left + right not in vocab and tuple(ids) not in adjacent and not {left, right} & used
        if apart and base.encode(left.replace("Ġ", " ") + right).ids == ids:
            pairs.append((left, right))
            used.update((left, right))
    raise InterpError(f"found only {len(pairs)} of {wanted} canaries: give more text, or ask for fewer canaries")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write `tokenizer.json` and its configuration, as `transformers.AutoTokenizer` reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "unk_token": BOS,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
