"""Which prompts ask a model to repeat a token? Built by id: the tested token is put in as an id, never as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interp.errors import InterpError
from interp.vocabulary.category import OK

HOLE = -1  # stands for the tested token


@dataclass(frozen=True)
class Prompt:
    """`preamble`, then `shots` times `question` and `answer`, then `question` and the answer up to the token.

    `separator` stands between shots; with `apart`, text and tokens are encoded one by one, as where a token would melt
    into a space before it.
    """

    name: str
    shots: int
    preamble: str
    question: str
    answer: str
    separator: str = ""
    apart: bool = False

    @property
    def text(self) -> str:
        """The whole prompt with `{token}` for the tested token."""
        shown = self.separator.join([self.question + self.answer] * self.shots)
        return self.preamble + shown + self.question + self.answer[: self.answer.index("{")]


# Land and Bartolo (2024), "Fishing for Magikarp", and its code
PUBLISHED = (
    Prompt(
        "input_output", 20, "This device repeats its input exactly, as shown in these 100 identical trials.",
        "\nInput: «{token}»\nOutput:", " «{token}»",
    ),
    Prompt(
        "assistant_explain", 0,
        "This helpful assistant explains what a phrase means, replying with identical responses to identical questions "
        "for reliability.",
        "\nUser: What does 'edslfkj' mean?\nAssistant: 'edslfkj' has no specific meaning I am aware of."
        "\nUser: what does '{token}' mean?\nAssistant:", " '{token}'",
    ),
    Prompt(
        "repeats", 50,
        "Below is the output, as you can see it's just giving the same phrase repeated indefinitely:\n",
        "{token}", "{token}",
    ),
)  # fmt: skip

# S. Xiang (2024), its spelling and spacing included. As text, a space would melt into the token of the shots and not into
# the open one, which ends in a bare space; by id, shots and open end are alike.
ARTICLE = Prompt(
    "article", 20, "Rpeats its input exactly", "Input: {token}, Output: ", "{token}", separator=", ", apart=True
)


def template(prompt: Prompt, tokenizer: Any, placeholders: list[str]) -> list[int]:
    """The prompt's ids with `HOLE` where the tested token goes.

    As published, it is encoded with a placeholder token, which is then replaced; the first of `placeholders` (token
    texts) that stays one token throughout is taken. Raises `InterpError` where none does, or where the tokenizer has no
    words for the prompt.
    """
    written = tokenizer.encode(prompt.preamble, add_special_tokens=False)
    if not written or tokenizer.unk_token_id in written:
        raise InterpError(f"this tokenizer cannot write the text of the prompt '{prompt.name}': it has other words")
    if prompt.apart:
        ids = [i for i in tokenizer.encode("") if i == tokenizer.bos_token_id]  # where the tokenizer itself puts one
        for i, piece in enumerate(prompt.text.split("{token}")):
            ids += [HOLE] * (i > 0) + list(tokenizer.encode(piece, add_special_tokens=False))
        return ids
    holes = prompt.text.count("{token}")
    for text in placeholders:
        placeholder = tokenizer.encode(text, add_special_tokens=False)[-1]
        ids = list(tokenizer.encode(prompt.text.replace("{token}", text)))
        if ids.count(placeholder) == holes:
            return [HOLE if i == placeholder else i for i in ids]
    raise InterpError(f"no token of this tokenizer stays whole in the prompt '{prompt.name}': ask with another prompt")


def placeholders(census: Any, most: int = 200) -> list[str]:
    """Texts of alphabetic tokens, those with the most different letters first, then the longest, as published."""
    usable = census[(census["category"] == OK) & (census["kind"] == "text")]
    texts = [t for t in usable["text"] if t.isalpha()]
    # sorted() is stable, so that ties stay in the order of their ids
    return sorted(texts, key=lambda t: (len(set(t)), len(t)), reverse=True)[:most]
