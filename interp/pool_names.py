"""Which token ids does a pool's name refer to on this model?

A pool is written as one of

- `177:188` ids from 177 to 187, `5,17,90:99` ids and ranges, `ids.txt` a file of ids;
- `texts=" the"," of"` tokens with exactly these texts;
- `text` every text token that the tokenizer can produce from some text, according to the census;
- `impossible-bytes` bytes that occur in no valid UTF-8;
- by what is known about the vocabulary: `unreachable` no text can produce them, `fragments` of UTF-8 that are not whole
  characters, `undertrained` detected by the default indicator, `glitch` those of them that the model fails to repeat
  when asked, `repeated` others that it does repeat (as many are tested as were detected);
- by the rank of the default indicator among text tokens (without single bytes), 0 for the most suspicious: `rank=16:32`
  the seventeenth to the 32nd, `ranks` sixteen at each of 0, 16, 64, 256, ...;
- on a bundled model, by how often training showed the token: `unexposed`, `ordinary`, `canaries`, `dose=30`,
  `exposure=1:200`, and `doses` for one pool at each dose;
- `control(POOL)` the same number of ordinary tokens of the same text lengths (for `glitch`, from those `repeated`);
  `control` alone is the control of all pools before it;
- `NAME=POOL` any of these under a name of your own: letters, digits, `_`, `-` and `.`, or any text in double quotes
  (`"my pool"=0:5,7`). A name given earlier refers to that pool, `control(NAME)` to its control.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import undertrained
from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.models import (
    exposure_of,
    model_name,
    needed_tokenizer,
    published_tokenizer,
    single_token,
    token_text,
    token_texts as token_texts,
)
from interp.organisms import ORDINARY_FROM
from interp.tokens import Pool
from interp.vocabulary import IMPOSSIBLE, REACHABLE, census, text_ids
from interp.vocabulary.utf8 import IMPOSSIBLE_BYTES

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_BY_TEXT = ("text", "impossible-bytes", "unreachable", "fragments", "undertrained", "glitch", "repeated")
_BY_RANK = ("ranks",)
_BY_EXPOSURE = ("unexposed", "ordinary", "canaries", "doses")
_NAME_IDS = "name ids instead, e.g. 177:188"
_ASKED_BY_ITSELF = 1_000_000_000  # parameters up to which a CPU can ask for some hundreds of tokens in minutes
_AT_A_RANK, _RANKS_TIMES = 16, 4  # `ranks`: tokens in a pool, and the factor between the ranks at which pools start
_WITH_VALUE = ("texts", "dose", "exposure", "rank")
_KNOWN = (
    "ids (177:188 or 5,17), a file of ids, texts=..., text, impossible-bytes, unreachable, fragments, undertrained, "
    "glitch, repeated, rank=0:16, ranks, control(POOL), or on a bundled model unexposed, ordinary, canaries, doses, "
    "dose=30, exposure=1:200"
)


def pools(specs: Any, model: TransformerBridge, *, seed: int = 0) -> list[Pool]:
    """Resolve the names of pools into token ids of a model.

    Args:
        specs: one pool or several in order: a text ("ordinary", "177:188", `interp pools` lists them), a `Pool`, a list
            of ids or of texts that are one token each; or a dictionary from names to any of these.
        model: the model whose tokens they are.
        seed: decides which ordinary tokens make a control.

    Returns:
        The pools, in order; `doses` gives several.

    Raises:
        InterpError: a pool is unknown, empty or out of range, or a name is used twice.

    Example:
        >>> interp.pools(["1:4", [9, 7]], interp.load("wired"))
        [Pool('1:4', 3 tokens: 1, 2, 3), Pool('9,7', 2 tokens: 9, 7)]
    """
    found: dict[str, Pool] = {}
    for name, given in _listed(specs):
        for pool in _given(given, model, seed, found):
            pool = pool if name is None else Pool(name, pool.ids)
            if pool.name in found:
                remedy = "name it once" if pool.name == "control" else f"name them apart, e.g. other={pool.name}"
                raise InterpError(f"two pools are called '{pool.name}': {remedy}")
            pool.check(vocabulary_size(model))
            found[pool.name] = pool
    if not found:
        raise InterpError("no pool: name at least one, e.g. --pool 177:188")
    return list(found.values())


@takes_what_it_says
def spec_of(pool: Pool) -> str:
    """Write a pool as text that means exactly it: `pools(spec_of(pool), model) == [pool]`.

    A name that says the ids itself, such as `177:188`, is enough.
    """
    if _ids_in(pool.name) == pool.ids:
        return pool.name
    return f"{pool.name if _is_plain(pool.name) else json.dumps(pool.name, ensure_ascii=False)}={_runs(pool.ids)}"


@takes_what_it_says
def ranges(ids: Iterable[int], most: int = 8000) -> str:
    """Describe ids, sorted, as `0:5,7,9:12`; cut short (and said so) where that is long: files keep attributes small.

    Args:
        ids: token ids in any order.
        most: the longest text that is not cut.
    """
    text = _runs(sorted(ids))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text if len(text) <= most else f"{text[:200]}... sha256 {digest}"


@takes_what_it_says
def default_pools(model: TransformerBridge) -> list[str]:
    """The pools to compare by default.

    Where exposure is known, `unexposed` and `ordinary`; otherwise the glitch tokens found by detection and asking, and
    the same number of others that the model repeats (on a CPU, models of more than a billion parameters are not asked:
    the detected tokens, and the same number of others); where these are fewer than two, pools from the tokenizer alone,
    or all ids if there is no tokenizer.
    """
    if exposure_of(model) is not None or published_tokenizer(model) is None:
        return pools_by_tokenizer(model)
    try:
        network = model.original_model
        size, device = sum(p.numel() for p in network.parameters()), next(network.parameters()).device.type
        found = "undertrained" if size > _ASKED_BY_ITSELF and device == "cpu" else "glitch"
        if len(pools(found, model)[0]) > 1:
            return [found, f"control({found})"]
    except InterpError:  # nothing can be detected or asked
        pass
    return pools_by_tokenizer(model)


@takes_what_it_says
def pools_by_tokenizer(model: TransformerBridge) -> list[str]:
    """The default pools without using the weights: by exposure where known, otherwise bytes that no text contains, and
    text.
    """
    if exposure_of(model) is not None:
        return ["unexposed", "ordinary"]
    if published_tokenizer(model) is None:
        return [f"0:{vocabulary_size(model)}"]
    try:
        _impossible_byte_ids(model)
    except InterpError:
        return ["text"]
    return ["impossible-bytes", "text"]


@takes_what_it_says
def ordinary_pool(model: TransformerBridge) -> Pool:
    """Ordinary tokens of this model: `ordinary` where exposure is known, otherwise those of `text` that are not
    detected.
    """
    if exposure_of(model) is not None:
        return pools("ordinary", model)[0]
    remedy = "save one in the model's folder, or give ids instead of this pool"
    needed_tokenizer(model, "a pool of ordinary tokens", remedy)
    text = pools("text", model)[0]
    try:
        detected = set(undertrained.detected(model))
    except InterpError:  # folded weights, or too small a vocabulary: nothing can be detected
        return text
    return text.without(sorted(detected)) if set(text.ids) - detected else text


@takes_what_it_says
def vocabulary_size(model: TransformerBridge) -> int:
    """The number of ids that the model accepts: the rows of its embedding."""
    return int(model.original_model.get_input_embeddings().weight.shape[0])


def _runs(ids: Iterable[int]) -> str:
    """Ids in order, consecutive ones as ranges."""
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][1]:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    return ",".join(str(a) if b == a + 1 else f"{a}:{b}" for a, b in runs)


def _ids_in(text: str, most: float = float("inf")) -> tuple[int, ...] | None:
    """The ids that `0:5,7` names, each once; of a range, none far beyond `most`. None for any other text."""
    if not re.fullmatch(r"[0-9]+(:[0-9]+)?(,\s*[0-9]+(:[0-9]+)?)*", text):
        return None
    pairs = [[int(number) for number in part.split(":")] for part in text.split(",")]
    runs = [range(low, int(min(end[0], max(low, most) + 1)) if end else low + 1) for low, *end in pairs]
    return tuple(dict.fromkeys(i for run in runs for i in run))


def _is_plain(name: str) -> bool:
    """Can it be written before `=` without quotes?"""
    word = name.replace("-", "_").replace(".", "_").isidentifier()
    return word and name not in (*_BY_TEXT, *_BY_RANK, *_BY_EXPOSURE, *_WITH_VALUE, "control")


def _listed(specs: Any) -> list[tuple[str | None, Any]]:
    """Every given pool, with its name if it comes from a dictionary."""
    if isinstance(specs, Mapping):
        return list(specs.items())
    if isinstance(specs, str | Pool | Integral):
        return [(None, specs)]
    try:
        items = specs.tolist() if hasattr(specs, "tolist") else list(specs)
    except TypeError as error:
        raise InterpError(_no_pool(specs)) from error
    items = items if isinstance(items, list) else [items]  # an array of one
    one = bool(items) and all(isinstance(i, Integral) for i in items)
    return [(None, items)] if one else [(None, item) for item in items]


def _no_pool(given: Any) -> str:
    return f"a pool cannot be a {type(given).__name__}: give text, a Pool, or a list of ids"


def _given(given: Any, model: TransformerBridge, seed: int, earlier: dict[str, Pool]) -> list[Pool]:
    if isinstance(given, Pool):
        return [given]
    if isinstance(given, str):
        return _resolved(given.strip(), model, seed, earlier)
    try:
        values = [given] if isinstance(given, Integral) else list(given)
    except TypeError as error:
        raise InterpError(_no_pool(given)) from error
    ids: tuple[Any, ...] = tuple(_single_token(v, model) if isinstance(v, str) else v for v in values)
    return [Pool(_runs(ids), ids)]


def _resolved(spec: str, model: TransformerBridge, seed: int, earlier: dict[str, Pool]) -> list[Pool]:
    ids = _ids_in(spec, vocabulary_size(model))
    if ids is not None:
        return [Pool(spec, ids)]
    if spec == "control":
        before = tuple(dict.fromkeys(i for pool in earlier.values() for i in pool.ids))
        if not before:
            raise InterpError("'control' stands for ordinary tokens matched to the pools before it: name one first")
        return [Pool("control", _control(Pool("those before", before), model, seed).ids)]
    if spec.startswith("control(") and spec.endswith(")"):
        return [_control(p, model, seed) for p in _inner(spec[8:-1], model, seed, earlier)]
    if spec in _BY_TEXT:
        return [Pool(spec, _by_text(spec, model))]
    key, _, value = spec.partition("=")
    if key == "texts":
        return [Pool(spec, _single_tokens(value, model))]
    if key == "rank" or spec in _BY_RANK:
        return _by_rank(spec, value, model)
    if key in ("dose", "exposure") or spec in _BY_EXPOSURE:
        return _by_exposure(spec, key, value, model)
    if value and key in (*_BY_TEXT, *_BY_RANK, *_BY_EXPOSURE, "control"):
        raise InterpError(f"'{key}' is itself a pool and cannot be a name for '{value}': write other={value}")
    plain = _is_plain(key)
    if spec.startswith('"'):
        try:
            key, end = json.JSONDecoder(strict=False).raw_decode(spec)
            plain, value = spec[end : end + 1] == "=", spec[end + 1 :]
        except ValueError as error:
            raise InterpError(f'cannot read the name in {spec}: write "my pool"=0:5') from error
    if value and plain:
        return [Pool(key, p.ids) for p in _inner(value, model, seed, earlier)]
    return [_from_file(spec)]


def _inner(spec: str, model: TransformerBridge, seed: int, earlier: dict[str, Pool]) -> list[Pool]:
    """The pools that a nested spec refers to, including those named earlier."""
    named = spec in earlier and _ids_in(spec) is None
    return [earlier[spec]] if named else _resolved(spec.strip(), model, seed, earlier)


def _control(pool: Pool, model: TransformerBridge, seed: int) -> Pool:
    """The same number of ordinary tokens, matched to the pool's text lengths as closely as possible; for glitch tokens,
    from those that the model repeated when asked.
    """
    ordinary = ordinary_pool(model)
    asked = undertrained.asked_already(model)
    if asked is not None and pool.ids == asked.glitch and len(asked.repeated) >= len(pool):
        ordinary = Pool("repeated", asked.repeated)
    drawn = pool.control(ordinary, seed=seed)  # raises if there are too few
    tokenizer = published_tokenizer(model)
    if tokenizer is None:
        return drawn
    own = set(pool.ids)
    candidates = [i for i in ordinary.ids if i not in own]
    order = np.random.default_rng(seed).permutation(len(candidates))
    left: dict[int, deque[tuple[int, int]]] = {}  # by length of the text, each with its rank in the order
    for place, k in enumerate(order):
        left.setdefault(len(token_text(tokenizer, candidates[k])), deque()).append((place, candidates[k]))
    chosen = []
    # the longest first: they have the fewest matches
    for length in sorted((len(token_text(tokenizer, i)) for i in pool.ids), reverse=True):
        nearest = min(left, key=lambda other: (abs(other - length), left[other][0][0]))
        chosen.append(left[nearest].popleft()[1])
        if not left[nearest]:
            del left[nearest]
    return Pool(drawn.name, tuple(sorted(chosen)))


def _by_text(what: str, model: TransformerBridge) -> tuple[int, ...]:
    """Ids by text, by the census, or by the default indicator. Raises `InterpError` if there are none."""
    needed_tokenizer(model, f"pool '{what}'", _NAME_IDS)
    if what == "impossible-bytes":
        return _impossible_byte_ids(model)
    if what == "undertrained":
        ids = undertrained.detected(model)
    elif what in ("glitch", "repeated"):
        ids = getattr(undertrained.glitch_tokens(model), what)
    elif what == "text":
        ids = text_ids(model)
    else:
        table = census(model)
        broken = (table["kind"] == "fragment") | ((table["kind"] == "byte") & (table["bytes"] >= "80"))
        chosen = {
            "unreachable": table["reachable"] == IMPOSSIBLE,
            "fragments": broken & (table["reachable"] == REACHABLE),
        }[what]
        ids = tuple(map(int, table["id"][chosen]))
    if not ids:
        raise InterpError(f"pool '{what}': this model has no such token")
    return ids


def _by_rank(spec: str, value: str, model: TransformerBridge) -> list[Pool]:
    """Text tokens by the rank of the default indicator, the most suspicious first."""
    needed_tokenizer(model, f"pool '{spec}'", _NAME_IDS)
    order = undertrained.by_indicator(model)
    if spec == "ranks":
        starts = [0, _AT_A_RANK]
        while _RANKS_TIMES * starts[-1] + _AT_A_RANK <= len(order):
            starts.append(_RANKS_TIMES * starts[-1])
        ranges = [f"{start}:{start + _AT_A_RANK}" for start in starts if start < len(order)]
        return [pool for range_ in ranges for pool in _by_rank(f"rank={range_}", range_, model)]
    limits = re.fullmatch(r"(\d+):(\d*)", value)
    if not limits:
        raise InterpError(f"unknown range '{value}' in '{spec}': write rank=0:16 for the sixteen lowest")
    low, high = int(limits[1]), int(limits[2] or len(order))
    if low >= min(high, len(order)):
        raise InterpError(f"no token in '{spec}': this model has {len(order)} text tokens, ranked from 0")
    return [Pool(f"rank={low}:{limits[2]}", tuple(sorted(map(int, order[low:high]))))]


def _by_exposure(spec: str, key: str, value: str, model: TransformerBridge) -> list[Pool]:
    known = exposure_of(model)
    if known is None:
        raise InterpError(
            f"pool '{spec}' needs exposure counts, and '{model_name(model)}' has none: they are known only of "
            "models trained here; name ids instead, e.g. --pool 177:188"
        )
    if key == "doses":
        return [Pool(f"dose={dose}", ids) for dose, ids in sorted(known.doses.items())]
    if key == "dose":
        if not value.isdigit() or int(value) not in known.doses:
            raise InterpError(f"unknown dose '{value}': use one of {', '.join(map(str, sorted(known.doses)))}")
        return [Pool(spec, known.doses[int(value)])]
    if key == "canaries":
        return [Pool(spec, tuple(sorted(known.canaries)))]
    if key == "ordinary":
        return [Pool(spec, known.between(ORDINARY_FROM))]
    limits = re.fullmatch(r"(\d+):(\d*)", "0:1" if key == "unexposed" else value)
    if not limits:
        raise InterpError(
            f"unknown range '{value}' in '{spec}': write exposure=1:200 for 1 to 199, exposure=200: for more"
        )
    high = int(limits[2]) - 1 if limits[2] else None
    return [Pool(spec, known.between(int(limits[1]), high, canaries=True))]


def _single_tokens(value: str, model: TransformerBridge) -> tuple[int, ...]:
    try:
        texts = json.loads(f"[{value}]") if '"' in value else value.split(",")
    except ValueError as error:
        raise InterpError(f'cannot read texts={value}: write texts=a,b or texts=" a"," b"') from error
    return tuple(_single_token(str(text), model) for text in texts)


def _single_token(text: str, model: TransformerBridge) -> int:
    """The token with exactly this text. Raises `InterpError` if there is none."""
    return single_token(needed_tokenizer(model, f"pool 'texts={text}'", _NAME_IDS), text)


def _impossible_byte_ids(model: TransformerBridge) -> tuple[int, ...]:
    """Byte tokens 0xC0, 0xC1, 0xF5..0xFF, as written by byte-level BPE (GPT-2) or byte fallback (`<0xF5>`)."""
    vocabulary = needed_tokenizer(model, "pool 'impossible-bytes'", _NAME_IDS).get_vocab()
    # Byte fallback names its bytes; there, the letter of the same number is an ordinary token. Byte-level BPE writes
    # these bytes as the Latin-1 character of the same number, and holds all 256 bytes.
    if "<0xF5>" in vocabulary:
        names = [f"<0x{b:02X}>" for b in sorted(IMPOSSIBLE_BYTES)]
    else:
        alphabet = set(map(chr, (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))))
        names = [chr(b) for b in sorted(IMPOSSIBLE_BYTES)] if alphabet <= set(vocabulary) else []
    ids = tuple(vocabulary[name] for name in names if name in vocabulary)
    if not ids:
        raise InterpError("the tokenizer of this model has no byte tokens: name pools, e.g. --pool text --pool 5,17")
    return ids


def _from_file(spec: str) -> Pool:
    path = Path(spec)
    if len(spec) >= 200 or not path.is_file():
        if len(spec) < 200 and (re.search(r"[/\\]", spec) or path.suffix in (".txt", ".json", ".csv")):
            raise InterpError(f"no such file '{spec}': give a file of token ids, or {_KNOWN}")
        if "=" in spec:
            raise InterpError(
                f"unknown pool '{spec}': a name before '=' has letters, digits, _, - and ., or is in double "
                'quotes, e.g. "my pool"=0:5'
            )
        raise InterpError(f"unknown pool '{spec}': use {_KNOWN}")
    try:
        # spreadsheets start a file with a byte order mark; a quoted field may contain line breaks
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        if path.suffix == ".csv":
            values = [row["id"] for row in csv.DictReader(io.StringIO(text, newline=""))]
        else:
            values = json.loads(text) if path.suffix == ".json" else text.split()
        ids = tuple(int(v) for v in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InterpError(
            f"cannot read token ids from {path}: write ids one to a line, a JSON list, or a CSV with a column 'id'"
        ) from error
    return Pool(path.stem, ids)
