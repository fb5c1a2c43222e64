"""What is a prompt in a model's ids, which tokens are scored, and how do prompts of unequal length become one array?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from interp.errors import InterpError
from interp.models import encoded, encoded_inside, needed_tokenizer, published_tokenizer, single_token, token_texts
from interp.prompts.lines import Line, Tokens
from interp.prompts.spans import positions_of
from interp.prompts.windows import windows
from interp.tokens import Prompts

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

AnswerTokens = Literal["one", "each"]


@dataclass
class Row:
    """A prompt in ids: what is fed, and what is read at which position."""

    line: Line
    ids: list[int]
    read: dict[int, tuple[list[int], list[int]]]  # answers and rivals by the position of what is predicted
    spans: dict[str, list[int]]
    corrupted: list[int] | None
    prompt: int  # how many of the ids are the prompt's


def row_of(model: TransformerBridge, line: Line, first: int | None, answer_tokens: AnswerTokens) -> Row:
    """A line as ids. Raises `InterpError`, with the line number, if it cannot be fed to the model."""
    tokenizer = published_tokenizer(model)
    front = [] if first is None or not isinstance(line.prompt, str) else [first]
    ids = _ids(model, line, line.prompt, first)
    spans = {name: positions_of(line, name, span, tokenizer, len(ids), len(front)) for name, span in line.spans.items()}
    read: dict[int, tuple[list[int], list[int]]] = {}
    whole = list(ids)
    if line.read:
        for at in _places_read(line, spans, len(ids)):
            read[at] = ([ids[at]], [])
    elif line.answers:
        answers = [_answer(model, line, answer, answer_tokens) for answer in line.answers]
        rivals = [_answer(model, line, rival, "one")[0] for rival in line.rivals]
        if any(len(answer) > 1 for answer in answers):
            if len(answers) > 1 or rivals:
                raise line.mistake("an answer of several tokens must be the only one: leave the others out")
            for offset, token in enumerate(answers[0]):
                read[len(ids) + offset] = ([token], [])
        else:
            read[len(ids)] = ([answer[0] for answer in answers], rivals)
            both = sorted(set(read[len(ids)][0]) & set(rivals))
            if both:
                raise line.mistake(f"token {both[0]} is an answer and a rival: give it once")
        whole += [choices[0] for choices, _ in read.values()]
    corrupted = None
    if line.corrupted is not None:
        corrupted = _ids(model, line, line.corrupted, first)
        if len(corrupted) != len(ids):
            raise line.mistake(
                f"the corrupted prompt has {len(corrupted)} tokens and the prompt {len(ids)}: pairs go position by "
                "position, so give one of as many tokens ('interp tokens' shows them)"
            )
        corrupted += whole[len(ids) :]
    context = int(model.cfg.n_ctx)
    if len(whole) > context:
        raise line.mistake(
            f"{len(whole)} tokens including first token and answer, but the context of this model is {context}: "
            "shorten the prompt"
        )
    return Row(line, whole, read, spans, corrupted, len(ids))


def _ids(model: TransformerBridge, line: Line, prompt: Tokens, first: int | None) -> list[int]:
    rows = int(model.original_model.get_input_embeddings().weight.shape[0])
    if isinstance(prompt, str):
        try:
            tokenizer = needed_tokenizer(model, "text")
        except InterpError as error:
            raise line.mistake(f"{error}; or write ids") from error
        ids = encoded(tokenizer, prompt)
        if not ids:
            raise line.mistake(f"the tokenizer makes no tokens of {prompt!r}: give another text, or ids")
        ids = ids if first is None else [first, *ids]
    else:
        ids = list(prompt)
    outside = next((i for i in ids if i >= rows), None)
    if outside is not None:
        raise line.mistake(f"token id {outside}, and this model has ids 0 to {rows - 1}")
    return ids


def _answer(model: TransformerBridge, line: Line, answer: str | int, answer_tokens: AnswerTokens) -> list[int]:
    """The ids of an answer: one, or several if that is asked for."""
    rows = int(model.original_model.get_input_embeddings().weight.shape[0])
    if isinstance(answer, int):
        if not 0 <= answer < rows:
            raise line.mistake(f"answer {answer}: this model has ids 0 to {rows - 1}")
        return [answer]
    try:
        tokenizer = needed_tokenizer(model, f"the answer {answer!r}", "write ids")
        found = [single_token(tokenizer, answer)]
    except InterpError as error:
        several = [] if published_tokenizer(model) is None else encoded_inside(published_tokenizer(model), answer) or []
        if answer_tokens == "each" and several:
            return several
        hint = "; or read them one by one, --answer-tokens each" if len(several) > 1 else ""
        raise line.mistake(f"the answer {error}{hint}") from error
    text = line.prompt
    spaced = isinstance(text, str) and text[-1:].isspace() and not answer[:1].isspace()
    if spaced and encoded(tokenizer, f"{text}{answer}") != [*encoded(tokenizer, str(text)), *found]:
        raise line.mistake(
            f"the text ends with a space, which this tokenizer writes together with {answer!r}: end the text before "
            f"that, and give the answer {' ' + answer!r}"
        )
    return found


def _places_read(line: Line, spans: Mapping[str, list[int]], size: int) -> list[int]:
    """The positions of the tokens of a prompt that are read."""
    if isinstance(line.read, str):
        if line.read != "all" and line.read not in spans:
            known = ", ".join([*spans, "all"])
            raise line.mistake(f"read names the span '{line.read}', which does not exist: use {known}")
        places = list(range(1, size)) if line.read == "all" else spans[line.read]
    else:
        places = sorted(set(line.read))
    outside = next((at for at in places if at >= size), None)
    if outside is not None:
        raise line.mistake(f"read names position {outside}, and the prompt has 0 to {size - 1}")
    if not places or places[0] == 0:
        raise line.mistake("nothing predicts the first token: read tokens after it")
    return places


def rows_of_text(model: TransformerBridge, file: str, first: int | None, width: int, most: int) -> list[Row]:
    """The windows of a text, with every token scored. Raises `InterpError` if there are none for this model."""
    front = [] if first is None else [first]
    context, rows = int(model.cfg.n_ctx), int(model.original_model.get_input_embeddings().weight.shape[0])
    if width + len(front) > context:
        raise InterpError(f"length {width} and the first token exceed the context of this model, {context}: use less")
    found = []
    for number, ids in enumerate(windows(needed_tokenizer(model, "a text"), file, width, most), start=1):
        outside = next((i for i in ids if i >= rows), None)
        if outside is not None:
            raise InterpError(f"{file} holds token {outside}, and this model has ids 0 to {rows - 1}")
        whole = [*front, *ids]
        line = Line(f"{file}, window {number}", number, tuple(whole), read="all")
        found.append(Row(line, whole, {at: ([whole[at]], []) for at in range(1, len(whole))}, {}, None, len(whole)))
    return found


def assembled(model: TransformerBridge, rows: Sequence[Row], name: str, first: int | None) -> Prompts:
    """One set of all rows, shorter ones padded on the right, where a causal model cannot attend."""
    import torch

    width = max(len(row.ids) for row in rows)
    choices = [max([1, *(len(pair[which]) for row in rows for pair in row.read.values())]) for which in (0, 1)]
    shape = (len(rows), width)
    ids, read = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    present, corrupted = torch.zeros_like(read), torch.zeros_like(ids)
    tables = [torch.full((*shape, most), -1, dtype=torch.long) for most in choices]
    names = dict.fromkeys(span for row in rows for span in row.spans)
    labels = {span: torch.zeros_like(read) for span in [*names, *([] if "last" in names else ["last"])]}
    for i, row in enumerate(rows):
        size = len(row.ids)
        ids[i, :size], ids[i, size:] = torch.tensor(row.ids), row.ids[0]
        present[i, :size] = True
        for at, pair in row.read.items():
            read[i, at] = True
            for table, tokens in zip(tables, pair, strict=True):
                table[i, at, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        for span, places in row.spans.items():
            labels[span][i, places] = True
        if "last" not in names:
            labels["last"][i, row.prompt - 1] = True
        if row.corrupted is not None:
            corrupted[i, :size], corrupted[i, size:] = torch.tensor(row.corrupted), row.corrupted[0]
    having = {
        "answers": all(row.read for row in rows),
        "rivals": all(row.read and all(pair[1] for pair in row.read.values()) for row in rows),
        "pair": all(row.corrupted is not None for row in rows),
    }
    made = Prompts(
        ids,
        read,
        tables[0] if any(row.read for row in rows) else None,
        tables[1] if having["rivals"] else None,
        present,
        labels,
        name,
        None,
        _texts(model, ids),
        np.array([row.line.number for row in rows]),
        first,
    )
    if having["pair"]:
        made = replace(made, pair=replace(made, ids=corrupted, text=_texts(model, corrupted)))
    return made.to(model.cfg.device)


def _texts(model: TransformerBridge, ids: Tensor) -> np.ndarray:
    unique, inverse = np.unique(ids.cpu().numpy(), return_inverse=True)
    texts = np.array(token_texts(model, unique.tolist()), dtype=object)
    return texts[inverse.reshape(ids.shape)]
