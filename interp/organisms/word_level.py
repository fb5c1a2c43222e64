"""How is a made-up vocabulary tokenized? By whole words, for models that were made with their own vocabulary."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS = "<bos>"


def word_tokenizer(words: Sequence[str], context: int, *, bos: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of space-separated words, whose ids are their indices in the list.

    Args:
        words: the vocabulary.
        context: the longest sequence.
        bos: the word that serves as BOS and as every other special token; None: no special tokens.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=bos or words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {} if bos is None else dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=context, **special)
