"""Which token ids does a pool's name stand for on this model?

A pool is written as one of

- `177:188` ids from 177 to 187, `5,17,99` ids, `ids.txt` a file of ids;
- `texts=" the"," of"` texts that are one token each;
- `text` every token that is ordinary text by itself, `impossible-bytes` bytes that no valid UTF-8 contains;
- by what was found of the vocabulary: `unreachable` no text can produce it, `fragments` of UTF-8, no whole characters,
  `undertrained` called so by the default indicator;
- on a bundled model, by how often it was trained: `unexposed`, `ordinary`, `canaries`, `dose=30`,
  `exposure=1:200`, and `doses` for one pool at each dose;
- `control(POOL)` as many ordinary tokens, on a bundled model of the same text lengths; `control` alone that of all pools
  before it;
- `NAME=POOL` any of these under a name of your own.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from interp.organisms import Exposure, exposure
from interp.tokens import Pool

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ORDINARY_FROM = 200  # exposures from which a token counts as ordinary
UNDERTRAINED_TO = 10  # exposures up to which it counts as under-trained
_IMPOSSIBLE_BYTES = (0xC0, 0xC1, *range(0xF5, 0x100))  # RFC 3629: they occur in no UTF-8 text


def pools(specs: str | Pool | Iterable[str | Pool], model: TransformerBridge, *, seed: int = 0) -> list[Pool]:
    """Resolve pools for a model, in order; `doses` gives several.

    Raises `InterpError` for an unknown, empty or out-of-range pool, and for a name used twice.
    """
    found: list[Pool] = []
    for spec in [specs] if isinstance(specs, str | Pool) else specs:
        if isinstance(spec, str) and spec.strip() == "control":
            before = tuple(dict.fromkeys(i for pool in found for i in pool.ids))
            if not before:
                raise InterpError("'control' stands for ordinary tokens matched to the pools before it: name one first")
            found.append(Pool("control", _control(Pool("those before", before), model, seed).ids))
        else:
            found += [spec] if isinstance(spec, Pool) else _resolved(spec.strip(), model, seed)
    if not found:
        raise InterpError("no pool: name at least one, e.g. --pool 177:188")
    names = [pool.name for pool in found]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        remedy = "name it once" if doubled == "control" else f"name them apart, e.g. other={doubled}"
        raise InterpError(f"two pools are called '{doubled}': {remedy}")
    for pool in found:
        pool.check(vocabulary_size(model))
    return found


def default_pools(model: TransformerBridge) -> list[str]:
    """What to compare where nothing is asked for: `unexposed` and `ordinary`, or what a tokenizer alone tells."""
    if exposure_of(model) is not None:
        return ["unexposed", "ordinary"]
    try:
        _impossible_byte_ids(model)
    except InterpError:
        return ["text"]
    return ["impossible-bytes", "text"]


def ordinary_pool(model: TransformerBridge) -> Pool:
    """Healthy tokens of this model: `ordinary` where exposure is known, else `text`."""
    return pools("text" if exposure_of(model) is None else "ordinary", model)[0]


def vocabulary_size(model: TransformerBridge) -> int:
    """How many ids the model can be fed: the rows of its embedding."""
    return int(model.original_model.get_input_embeddings().weight.shape[0])


def token_texts(model: TransformerBridge, ids: Iterable[int]) -> list[str]:
    """A printable text for each id: the decoded token, or the tokenizer's own name of it where that is no text."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return [f"[{i}]" for i in ids]
    texts = []
    for i in ids:
        text = tokenizer.decode([i]) if i < len(tokenizer) else ""
        broken = not text or "\ufffd" in text or not text.replace(" ", "x").replace("\n", "x").isprintable()
        texts.append(f"{tokenizer.convert_ids_to_tokens(i) if i < len(tokenizer) else ''}[{i}]" if broken else text)
    return texts


def _resolved(spec: str, model: TransformerBridge, seed: int) -> list[Pool]:
    if re.fullmatch(r"\d+:\d+", spec):
        low, high = map(int, spec.split(":"))
        return [Pool(spec, tuple(range(low, high)))]
    if re.fullmatch(r"\d+(,\s*\d+)*", spec):
        return [Pool(spec, tuple(map(int, spec.split(","))))]
    if spec.startswith("control(") and spec.endswith(")"):
        return [_control(p, model, seed) for p in _resolved(spec[8:-1], model, seed)]
    if spec in ("unreachable", "fragments", "undertrained"):
        return [Pool(spec, _found(spec, model))]
    if spec == "text":
        return [Pool(spec, _plain_text_ids(model))]
    if spec == "impossible-bytes":
        return [Pool(spec, _impossible_byte_ids(model))]
    key, _, value = spec.partition("=")
    if value and key in (
        "unexposed",
        "ordinary",
        "canaries",
        "doses",
        "text",
        "control",
        "unreachable",
        "fragments",
        "undertrained",
    ):
        raise InterpError(f"'{key}' is a pool of its own and cannot name '{value}': write other={value}")
    if key == "texts":
        return [Pool(spec, _single_tokens(value, model))]
    if key in ("unexposed", "ordinary", "canaries", "doses", "dose", "exposure"):
        return _by_exposure(spec, key, value, model)
    if value and key.isidentifier():
        return [Pool(key, p.ids) for p in _resolved(value, model, seed)]
    if len(spec) < 200 and Path(spec).is_file():
        return [Pool(Path(spec).stem, _ids_from_file(Path(spec)))]
    raise InterpError(
        f"unknown pool '{spec}': use ids (177:188 or 5,17), a file of ids, texts=..., text, impossible-bytes, "
        "unreachable, fragments, undertrained, control(POOL), or on a bundled model unexposed, ordinary, canaries, doses, dose=30, exposure=1:200"
    )


def _control(pool: Pool, model: TransformerBridge, seed: int) -> Pool:
    """As many ordinary tokens; where exposure is known, each of a text as long as one of the pool's, as nearly as may be."""
    ordinary = ordinary_pool(model)
    drawn = pool.control(ordinary, seed=seed)  # raises where there are too few
    if exposure_of(model) is None or model.tokenizer is None:
        return drawn
    candidates = [i for i in ordinary.ids if i not in set(pool.ids)]
    order = np.random.default_rng(seed).permutation(len(candidates))
    left = {candidates[k]: len(model.tokenizer.decode([candidates[k]])) for k in order}
    chosen = []
    # the longest first: they have the fewest equals
    for length in sorted((len(model.tokenizer.decode([i])) for i in pool.ids), reverse=True):
        best = min(left, key=lambda i: abs(left[i] - length))
        chosen.append(best)
        del left[best]
    return Pool(drawn.name, tuple(sorted(chosen)))


def _found(what: str, model: TransformerBridge) -> tuple[int, ...]:
    """Ids by what the census, or the default indicator, says of them. Raises `InterpError` where there are none."""
    from interp.vocabulary import IMPOSSIBLE, REACHABLE, census

    if what == "undertrained":
        from interp.undertrained import called

        ids = called(model)
    else:
        table = census(model)
        broken = (table["kind"] == "fragment") | ((table["kind"] == "byte") & (table["bytes"] >= "80"))
        chosen = (
            table["reachable"] == IMPOSSIBLE if what == "unreachable" else broken & (table["reachable"] == REACHABLE)
        )
        ids = tuple(map(int, table["id"][chosen]))
    if not ids:
        raise InterpError(f"pool '{what}': this model has no such token")
    return ids


def _by_exposure(spec: str, key: str, value: str, model: TransformerBridge) -> list[Pool]:
    known = exposure_of(model)
    if known is None:
        raise InterpError(
            f"pool '{spec}' needs exposure counts, and '{model_name(model)}' has none: they are known only of the "
            "bundled models; name ids instead, e.g. --pool 177:188"
        )
    if key == "unexposed":
        return [Pool(spec, known.between(0, 0, canaries=True))]
    if key == "ordinary":
        return [Pool(spec, known.between(ORDINARY_FROM))]
    if key == "canaries":
        return [Pool(spec, tuple(sorted(known.canaries)))]
    if key == "doses":
        return [Pool(f"dose={dose}", ids) for dose, ids in sorted(known.doses.items())]
    if key == "dose":
        if not value.isdigit() or int(value) not in known.doses:
            raise InterpError(f"unknown dose '{value}': use one of {', '.join(map(str, sorted(known.doses)))}")
        return [Pool(spec, known.doses[int(value)])]
    if not re.fullmatch(r"\d+:\d*", value):
        raise InterpError(
            f"unknown range '{value}' in '{spec}': write exposure=1:200 for 1 to 199, exposure=200: for more"
        )
    low, high = value.split(":")
    return [Pool(spec, known.between(int(low), int(high) - 1 if high else None, canaries=True))]


def exposure_of(model: TransformerBridge) -> Exposure | None:
    """The exposure counts of a bundled model or a trained directory; None where they are not known."""
    return exposure(model_name(model))


def model_name(model: TransformerBridge) -> str:
    """What the model was loaded as; "" where `load` did not make it."""
    return str(model.__dict__.get("origin", {}).get("name", ""))


def _tokenizer(model: TransformerBridge, what: str) -> Any:
    if model.tokenizer is None:
        raise InterpError(f"pool '{what}' needs a tokenizer and this model has none: name ids instead, e.g. 177:188")
    return model.tokenizer


def _single_tokens(value: str, model: TransformerBridge) -> tuple[int, ...]:
    tokenizer = _tokenizer(model, f"texts={value}")
    try:
        texts = json.loads(f"[{value}]") if '"' in value else value.split(",")
    except ValueError as error:
        raise InterpError(f'cannot read texts={value}: write texts=a,b or texts=" a"," b"') from error
    return tuple(single_token(tokenizer, str(text)) for text in texts)


def single_token(tokenizer: Any, text: str) -> int:
    """The one id that `text` encodes to. Raises `InterpError` where it is several."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InterpError(f"'{text}' is {len(ids)} tokens here, {ids}: give a text that is one token, or ids")
    return int(ids[0])


def _plain_text_ids(model: TransformerBridge) -> tuple[int, ...]:
    """Ids whose text, encoded alone, is that id again; special tokens left out."""
    tokenizer = _tokenizer(model, "text")
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(min(len(tokenizer), vocabulary_size(model))) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    again = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tuple(i for i, text, back in zip(ids, texts, again, strict=True) if back == [i] and "\ufffd" not in text)


def _impossible_byte_ids(model: TransformerBridge) -> tuple[int, ...]:
    """Byte tokens 0xC0, 0xC1, 0xF5..0xFF, as byte-level BPE (GPT-2) or byte fallback (`<0xF5>`) writes them."""
    vocabulary = _tokenizer(model, "impossible-bytes").get_vocab()
    # Byte fallback names its bytes; there, the letter of the same number is an ordinary token. Byte-level BPE writes
    # these bytes as the Latin-1 character of the same number, and holds all 256 bytes.
    if "<0xF5>" in vocabulary:
        names = [f"<0x{b:02X}>" for b in _IMPOSSIBLE_BYTES]
    else:
        alphabet = set(map(chr, (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))))
        names = [chr(b) for b in _IMPOSSIBLE_BYTES] if alphabet <= set(vocabulary) else []
    ids = tuple(vocabulary[name] for name in names if name in vocabulary)
    if not ids:
        raise InterpError("the tokenizer of this model has no byte tokens: name pools, e.g. --pool text --pool 5,17")
    return ids


def _ids_from_file(path: Path) -> tuple[int, ...]:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # a quoted field may hold line ends
            text = file.read()
        if path.suffix == ".json":
            values: Sequence[Any] = json.loads(text)
        elif path.suffix == ".csv":
            values = [row["id"] for row in csv.DictReader(io.StringIO(text, newline=""))]
        else:
            values = text.split()
        return tuple(int(v) for v in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InterpError(
            f"cannot read token ids from {path}: write ids one to a line, a JSON list, or a CSV with a column 'id'"
        ) from error
