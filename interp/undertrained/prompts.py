"""Which prompts ask a model to repeat a token? Built by id: the tested token is put in as an id, never as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from interp.errors import InterpError, first_line
from interp.models import added_by_template, encoded, encoded_inside, token_text
from interp.vocabulary.roundtrip import OK

HOLE = -1  # stands for the tested token


@dataclass(frozen=True)
class Prompt:
    """`preamble`, then `shots` times `question` and `answer`, then `question` and the answer up to the token.

    `separator` is put between shots; with `apart`, text and tokens are encoded separately, because a token would
    otherwise merge with a space before it.
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
        "input_output",
        20,
        "This device repeats its input exactly, as shown in these 100 identical trials.",
        "\nInput: «{token}»\nOutput:",
        " «{token}»",
    ),
    Prompt(
        "assistant_explain",
        0,
        "This helpful assistant explains what a phrase means, replying with identical responses to identical questions "
        "for reliability.",
        "\nUser: What does 'edslfkj' mean?\nAssistant: 'edslfkj' has no specific meaning I am aware of."
        "\nUser: what does '{token}' mean?\nAssistant:",
        " '{token}'",
    ),
    Prompt(
        "repeats",
        50,
        "Below is the output, as you can see it's just giving the same phrase repeated indefinitely:\n",
        "{token}",
        "{token}",
    ),
)

# S. Xiang (2024), with its spelling and spacing. As text, a space would merge into the token of the shots and not
# into the open one, which ends in a bare space; by id, shots and open end are alike.
ARTICLE = Prompt(
    "article", 20, "Rpeats its input exactly", "Input: {token}, Output: ", "{token}", separator=", ", apart=True
)


def template(prompt: Prompt, tokenizer: Any, placeholders: Iterable[str], *, chat: bool = False) -> list[int]:
    """The prompt's ids with `HOLE` where the tested token goes; nothing follows its text.

    As published, it is encoded with a placeholder token, which is then replaced; the first of `placeholders` (token
    texts) that stays a single token throughout is used. If none does (in WordPiece, no token both begins and continues
    a word), the text between the tested tokens is encoded piece by piece.

    Args:
        prompt: which one.
        tokenizer: a published tokenizer. What it puts before a text, such as BOS, comes first.
        placeholders: texts of tokens.
        chat: use the tokenizer's chat template: the user asks, and the assistant's turn is prefilled up to the answer.

    Raises:
        InterpError: the tokenizer has no entries for the prompt's text, or no chat template.
    """
    text = in_chat(prompt, tokenizer) if chat else prompt.text
    front = [] if chat else added_by_template(tokenizer)[0]  # a chat template inserts BOS itself
    _check_words(prompt, tokenizer)
    for filler in () if prompt.apart else placeholders:
        form = _with_placeholder(text, filler, tokenizer)
        if form:
            return front + form
    first, *rest = text.split("{token}")
    pieces = [encoded(tokenizer, first), *(encoded_inside(tokenizer, piece) for piece in rest)]
    if None in pieces:
        raise InterpError(f"this tokenizer cannot write the prompt '{prompt.name}' piece by piece: ask with another")
    ids = front + list(pieces[0] or [])
    for piece in pieces[1:]:
        ids += [HOLE, *(piece or [])]
    return ids


def _with_placeholder(text: str, filler: str, tokenizer: Any) -> list[int]:
    """The ids of a text with one token at each `{token}`, replaced by `HOLE`; empty if it does not stay one token."""
    ids = encoded(tokenizer, text.replace("{token}", filler))
    for alone in (encoded_inside(tokenizer, filler), encoded(tokenizer, filler)):
        # exactly this text, so that none of it is left next to the token
        if alone and token_text(tokenizer, alone[-1]) == filler and ids.count(alone[-1]) == text.count("{token}"):
            return [HOLE if i == alone[-1] else i for i in ids]
    return []


def in_chat(prompt: Prompt, tokenizer: Any) -> str:
    """The prompt's text in the tokenizer's chat template, with `{token}` for the tested token.

    The question is in the user's turn, the beginning of the answer (an open quotation mark) in the assistant's.

    Raises:
        InterpError: there is no chat template, or it fails.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InterpError("this model's tokenizer has no chat template: leave chat out, or load a model that was tuned")
    opened = prompt.answer[: prompt.answer.index("{")]
    asked = prompt.text.removesuffix(opened)
    try:
        turns = [{"role": "user", "content": asked}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program
        raise InterpError(
            f"the chat template of this model's tokenizer fails ({first_line(error)}): leave chat out"
        ) from error
    if text.count("{token}") != asked.count("{token}"):
        raise InterpError("the chat template of this model's tokenizer leaves out what the user says: leave chat out")
    return text + opened.lstrip()


def _check_words(prompt: Prompt, tokenizer: Any) -> None:
    """Raise `InterpError` where the tokenizer has no entries for the prompt's text, or leaves some of it out."""
    text = prompt.text.replace("{token}", " ")
    ids, unknown = encoded(tokenizer, text), tokenizer.unk_token_id
    known = [i for i in ids if i != unknown]
    written = set(tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)

    def is_written(c: str) -> bool:
        normal = c if normalizer is None else normalizer.normalize_str(c).replace("\u2581", "")
        return c in written or c.isspace() or (bool(normal) and set(normal) <= written)

    missing = [c for c in sorted(set(text)) if not is_written(c)]
    if missing or len(known) < len(ids) or not ids:
        lacking = f" ({' '.join(missing[:8])})" if missing else ""
        raise InterpError(
            f"this tokenizer cannot write the text of the prompt '{prompt.name}'{lacking}: ask with another prompt"
        )


def placeholders(census: Any, most: int = 200) -> list[str]:
    """Texts of alphabetic tokens, most distinct letters first, then longest first, as published."""
    usable = census[(census["category"] == OK) & (census["kind"] == "text")]
    texts = [t for t in usable["text"] if t.isalpha()]
    # sorted() is stable, so that ties stay in the order of their ids
    return sorted(texts, key=lambda t: (len(set(t)), len(t)), reverse=True)[:most]
