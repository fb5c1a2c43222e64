"""A tokenizer of whole words, for models whose vocabulary was made up with them."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS = "<bos>"


def word_tokenizer(words: Sequence[str], context: int, *, bos: str | None = None) -> PreTrainedTokenizerFast:
    """Words with spaces between them, each with its place in the list as its id.

    Args:
        words: the vocabulary.
        context: the longest sequence.
        bos: the word that is BOS, and every other special token; None: there is no special token.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=bos or words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {} if bos is None else dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=context, **special)
