"""What does `--prompts` stand for? Sets of sequences for a model, and which of them an experiment can take.

A set is written as one of

- `FILE.jsonl` a file of prompts, one per line (`interp.prompts.lines`);
- `text:FILE` windows of a text, in which every token is scored as its own answer;
- `ioi:N`, `greater_than:N`, `false_demonstrations:N` ready-made examples;
- `blocks:N`, `blocks:POOL:N` repeated blocks, whose last token is predicted;
- `{"text": "...", "answer": "..."}` the lines themselves, on the command line;
- `NAME=SET` any of these under a name of your own; the default is the file's or the example's name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from interp.prompts import examples
from interp.prompts.lines import lines_of, lines_of_file, lines_of_text
from interp.prompts.rows import AnswerTokens, assembled, row_of, rows_of_text
from interp.prompts.windows import WIDTH
from interp.tables import LabelledTable, table_of
from interp.tokens import Prompts

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

_EXAMPLES: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "blocks": examples.blocks,
    "ioi": examples.ioi,
    "greater_than": examples.greater_than,
    "false_demonstrations": examples.false_demonstrations,
}
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.S)
_EXAMPLE = re.compile(r"(\w+):(?:(.+):)?(\d+)", re.S)
_WINDOWS = 64  # windows of a text by default


@dataclass(frozen=True)
class PromptSet:
    """A requested set: a name, its written form, and what the written form stands for."""

    name: str
    spec: str
    kind: str  # file, text, an example's name, lines
    what: str


# --- requested sets ---------------------------------------------------------------------------------------------------


def prompt_set(spec: str) -> PromptSet:
    """Parse the written form of a set. Raises `InterpError` if it is invalid."""
    if spec.lstrip().startswith("{"):
        return PromptSet("prompts", spec, "lines", spec)
    if not _is_file(spec) and (named := _NAMED.fullmatch(spec)):
        return replace(prompt_set(named[2]), name=named[1], spec=spec)
    kind, colon, rest = spec.partition(":")
    if kind == "text" and colon:
        return PromptSet(Path(rest).stem, spec, "text", rest)
    example = _EXAMPLE.fullmatch(spec)
    if example and example[1] in _EXAMPLES and (not example[2] or example[1] == "blocks"):
        of_pool = "-" + re.sub(r"[^\w.-]+", "_", example[2]) if example[2] else ""
        return PromptSet(example[1] + of_pool, spec, example[1], rest)
    if kind in _EXAMPLES:
        raise InterpError(f"'{spec}': say how many, as {kind}:32")
    if not _is_file(spec):
        raise InterpError(f"no prompts at {spec}: give a JSON-lines file, text:FILE, {' or '.join(_EXAMPLES)}:N")
    return PromptSet(Path(spec).stem, spec, "file", spec)


def _is_file(spec: str) -> bool:
    try:
        return Path(spec).is_file()
    except (OSError, ValueError):  # not a possible file name
        return False


def spec_texts(prompts: Any) -> tuple[str, ...]:
    """Sets in their written form, from what Python takes: texts, paths, dictionaries, `Prompts`, lists of these.

    Raises:
        InterpError: for anything else.
    """
    if isinstance(prompts, str | Path):
        return (str(prompts),)
    if isinstance(prompts, Prompts):
        return (_written(prompts),)
    if isinstance(prompts, Mapping):
        if {"text", "ids"} & set(prompts):
            return (_json_lines([prompts]),)
        return tuple(f"{name}={_one(name, part)}" for name, part in prompts.items())
    if isinstance(prompts, Iterable):
        items = list(prompts)
        if items and all(isinstance(item, Mapping) for item in items):
            return (_json_lines(items),)
        return tuple(spec for item in items for spec in spec_texts(item))
    raise InterpError(f"a {type(prompts).__name__} is not a set of prompts: give a file, dictionaries, or Prompts")


def _one(name: str, prompts: Any) -> str:
    """The set that stands under a name."""
    found = spec_texts(prompts)
    if len(found) != 1 or not re.fullmatch(r"[\w.-]+", str(name)):
        raise InterpError(f"'{name}' names {len(found)} sets: use letters, digits, _, - and . for one set each")
    return found[0]


def _json_lines(values: Iterable[Mapping[str, Any]]) -> str:
    try:
        return "\n".join(json.dumps(dict(value), ensure_ascii=False) for value in values)
    except (TypeError, ValueError) as error:
        raise InterpError(f"prompts hold values that are not JSON ({error}): use texts, numbers and lists") from error


def _written(prompts: Prompts) -> str:
    """Equivalent lines of ids."""
    rows = []
    for i in range(len(prompts.ids)):
        row: dict[str, Any] = {}
        held = int(prompts.present[i].sum())
        ids, places = prompts.ids[i, :held].tolist(), prompts.read[i].nonzero()[:, 0].tolist()
        behind = len(places) == 1 and places[0] == held - 1 and prompts.answers is not None
        own = prompts.answers is not None and all(prompts.answers[i, p].tolist()[:1] == [ids[p]] for p in places)
        alone = prompts.answers is None or bool((prompts.answers[i, places, 1:] < 0).all())
        if behind and prompts.answers is not None:
            row = {"ids": ids[:-1], "answer": [t for t in prompts.answers[i, places[0]].tolist() if t >= 0]}
            if prompts.rivals is not None:
                row["rivals"] = [t for t in prompts.rivals[i, places[0]].tolist() if t >= 0]
        elif own and alone and prompts.rivals is None:
            row = {"ids": ids, **({"read": places} if places else {})}
        else:
            raise InterpError("these prompts are read in several places with answers of their own: write them as lines")
        if prompts.pair is not None:
            row["corrupted"] = prompts.pair.ids[i, : len(row["ids"])].tolist()
        spans = {}
        for name, mask in prompts.labels.items():
            at = mask[i].nonzero()[:, 0].tolist()
            if at and name != "last":
                if at != list(range(at[0], at[-1] + 1)):
                    raise InterpError(f"the positions named '{name}' have gaps: a span must be contiguous")
                spans[name] = [at[0], at[-1] + 1]
        rows.append(row | ({"spans": spans} if spans else {}))
    return f"{prompts.pool}={_json_lines(rows)}" if re.fullmatch(r"[\w.-]+", prompts.pool) else _json_lines(rows)


def prompt_sets(
    specs: Sequence[str],
    model: TransformerBridge,
    *,
    first: int | None,
    answer_tokens: AnswerTokens = "one",
    length: int | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> list[Prompts]:
    """The sequences that sets stand for on a model.

    Args:
        specs: sets, as above.
        model: the model, whose published tokenizer is used.
        first: the id put before every text, or None; prompts of ids are fed unchanged.
        answer_tokens: "one": an answer is one token; "each": it may be several, which are scored one by one.
        length: tokens in a window of a text (default: 64).
        batch: windows of a text (default: 64).
        seed: decides what is drawn of examples.

    Returns:
        A set for each, with unique names.

    Raises:
        InterpError: there is no such set, or a line of it is not a prompt for this model.
    """
    found: list[Prompts] = []
    asked = [prompt_set(spec) for spec in specs]
    if (length is not None or batch is not None) and not any(one.kind == "text" for one in asked):
        raise InterpError("batch and length apply to windows of a text: leave them out, or give text:FILE")
    for one in asked:
        name = one.name
        while name in {other.pool for other in found}:
            stem, _, count = name.rpartition("-")
            name = f"{stem}-{int(count) + 1}" if stem and count.isdigit() else f"{name}-2"
        if one.kind == "text":
            rows = rows_of_text(model, one.what, first, length or WIDTH, batch or _WINDOWS)
        else:
            if one.kind == "file":
                lines = lines_of_file(Path(one.what))
            elif one.kind == "lines":
                lines = lines_of_text(one.what, "prompts")
            else:
                pool, _, count = one.what.rpartition(":")
                given = {"pool": pool, "first": first} if one.kind == "blocks" else {}
                lines = lines_of(_EXAMPLES[one.kind](model, int(count), seed=seed, **given), one.spec)
            rows = [row_of(model, line, first, answer_tokens) for line in lines]
        found.append(assembled(model, rows, name, first))
    return found


def digest(prompts: Prompts) -> str:
    """A checksum of everything that affects what is measured on some prompts."""
    made = hashlib.sha256()
    parts: list[tuple[str, Tensor | None]] = [
        ("ids", prompts.ids), ("read", prompts.read), ("answers", prompts.answers), ("rivals", prompts.rivals),
        ("present", prompts.present), ("pair", None if prompts.pair is None else prompts.pair.ids),
        *sorted(prompts.labels.items()),
    ]  # fmt: skip
    for name, values in parts:
        made.update(f"{name} {None if values is None else tuple(values.shape)}".encode())
        made.update(b"" if values is None else values.cpu().numpy().tobytes())
    made.update(b"" if prompts.source is None else np.asarray(prompts.source).tobytes())
    return made.hexdigest()[:16]


# --- what is fed ------------------------------------------------------------------------------------------------------


def token_table(prompts: Prompts) -> Iterator[LabelledTable]:
    """A table of each prompt: positions, ids, texts, the corrupted prompt's, names, what is read."""
    pair = prompts.pair
    words = ("token", *(("corrupted",) if pair is not None else ()), "named", "read")
    for i in range(len(prompts.ids)):
        table = table_of("position", "id", *words, words=words)
        for at in range(int(prompts.present[i].sum())):
            texts = [_shown(prompts, i, at)]
            if pair is not None:
                texts.append(_shown(pair, i, at) if pair.ids[i, at] != prompts.ids[i, at] else "")
            named = ", ".join(name for name, mask in prompts.labels.items() if bool(mask[i, at]))
            table.add_row(str(at), str(int(prompts.ids[i, at])), *texts, named, _read_there(prompts, i, at))
        yield table


def _read_there(prompts: Prompts, i: int, at: int) -> str:
    """What is right where a token is read, and how many rivals it has."""
    if not bool(prompts.read[i, at]) or prompts.answers is None:
        return ""
    counts = [0 if t is None else int((t[i, at] >= 0).sum()) for t in (prompts.answers, prompts.rivals)]
    right = "right" if counts[0] == 1 else f"one of {counts[0]} that are right"
    return f"{right}, {counts[1]} rival{'' if counts[1] == 1 else 's'}" if counts[1] else right


def _shown(prompts: Prompts, i: int, at: int) -> str:
    return repr(str(prompts.text[i, at])) if prompts.text is not None else f"[{int(prompts.ids[i, at])}]"
