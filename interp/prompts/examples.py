"""Which prompts show a known circuit? Repeated blocks, indirect objects, greater-than, false demonstrations.

All return what the lines of a prompt file hold, for a model's own tokenizer: names and numbers are one token in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from interp import pool_names
from interp.errors import InterpError
from interp.models import bos_id, encoded, needed_tokenizer
from interp.prompts.demonstrations import lines
from interp.prompts.tasks import tasks_of
from interp.tokens import check_context, paired, repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_NAMES = (
    "Adam Alan Alice Amy Andrew Anna Anne Arthur Ben Bob Brian Carl Carol Charles Chris Claire Dan Daniel David Diana "
    "Edward Ellen Emily Emma Eric Eva Frank Fred George Grace Greg Hannah Harry Helen Henry Ian Jack James Jane Jason "
    "Jennifer Jim Joe John Julia Karen Kate Kevin Laura Linda Lisa Louis Lucy Luke Maria Mark Martin Mary Max Michael "
    "Nick Nina Oliver Oscar Paul Peter Rachel Richard Robert Ruth Sam Sarah Simon Sophie Stephen Steve Susan Thomas "
    "Tim Tom Victoria William"
)
# {a} and {b} are the two names in either order, {s} is the one that comes again
_STORIES = (
    "When {a} and {b} went back to the {place}, {s} gave the {thing} to",
    "After {a} and {b} had lunch at the {place}, {s} sent a {thing} to",
    "While {a} and {b} waited near the old {place}, {s} showed the {thing} to",
    "Since {a} and {b} both worked at the {place}, {s} brought a {thing} to",
)
_PLACES = "school station garden library office market park hospital restaurant museum store house"
_THINGS = "book letter key ball picture map drink box note card ring present"
_EVENTS = "war festival project journey strike conflict program campaign experiment season voyage debate"


def blocks(
    model: TransformerBridge, count: int = 32, *, pool: str = "", first: int | str | None = "auto", seed: int = 0
) -> list[dict[str, Any]]:
    """Repeated blocks of a pool as prompts: a block and its repeat without the last token, which is the answer.

    This makes every metric and every experiment on prompts available for blocks. `corrupted` substitutes an ordinary
    token for each of the pool's, one to one, and the rival is the substitute of the answer. The spans are `key` (the
    answer in the first copy, to which an induction head attends) and `before` (the token before it there).

    Args:
        model: any loaded model.
        count: how many.
        pool: what the blocks are drawn from, as for `interp.pools`; by default the model's first.
        first: the first token, as for `interp.models.bos_id`.
        seed: decides the draws.

    Raises:
        InterpError: no prompts are asked for, `pool` means several pools, or one too small to pair.
    """
    _check(count)
    several = pool_names.pools([pool or pool_names.default_pools(model)[0]], model)
    if len(several) != 1:
        raise InterpError(f"'{pool}' means {len(several)} pools: name one for the blocks")
    drawn = repeated(several[0], batch=count, bos=bos_id(model, first), seed=seed)
    check_context(drawn, model.cfg.n_ctx)
    other = paired(drawn, pool_names.ordinary_pool(model), seed=seed)
    start = int(drawn.bos is not None)
    key = start + drawn.length - 1
    return [
        {
            "ids": one[:-1],
            "answer": [one[-1]],
            "rivals": [two[-1]],
            "corrupted": two[:-1],
            "spans": {"key": [key, key + 1], "before": [key - 1, key]},
        }
        for one, two in zip(drawn.ids.tolist(), other.ids.tolist(), strict=True)
    ]


def ioi(model: TransformerBridge, count: int = 32, *, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts for indirect object identification: two names, one of which is repeated; the answer is the other.

    Half of them have the answer's name first. In `corrupted` the other name is repeated, so that answer and rival are
    swapped and nothing else differs. The spans are `io` (the answer's name), `s1` and `s2` (the first and second
    occurrence of the other) and `s1+1` (the token after the first).

    Args:
        model: a model with a tokenizer.
        count: how many.
        seed: decides names, stories and words.

    Raises:
        InterpError: no prompts are asked for, or fewer than 8 of the names are one token of the model's tokenizer.

    Source:
        Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593; with different stories and names.
    """
    tokenizer = needed_tokenizer(model, "ioi")
    _check(count)
    names = _single(tokenizer, _NAMES.split(), 8, "ioi")
    places, things = (_single(tokenizer, words.split(), 2, "ioi") for words in (_PLACES, _THINGS))
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        # the order alternates and stories rotate, so that any number of prompts is balanced
        story, first = _STORIES[i // 2 % len(_STORIES)], i % 2 == 0
        io, s = (names[k] for k in rng.permutation(len(names))[:2])
        words = {"place": places[rng.integers(len(places))], "thing": things[rng.integers(len(things))]}
        words |= {"a": io if first else s, "b": s if first else io}
        text = story.format(**words, s=s)
        before = text[: text.index(s) + len(s)]
        behind = text[len(before) :].split(" ")[1]  # the word after the subject's first occurrence
        nth = (before + " ").count(behind) + 1
        found.append(
            {
                "text": text,
                "answer": f" {io}",
                "rivals": f" {s}",
                "corrupted": story.format(**words, s=io),
                "spans": {"io": [io, 1], "s1": [s, 1], "s2": [s, 2], "s1+1": [behind, nth]},
            }
        )
    return found


def greater_than(model: TransformerBridge, count: int = 32, *, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts whose answers are all numbers greater than an earlier one: "from the year 1743 to the year 17".

    If the tokenizer writes a year as two tokens of two digits, the answers are the numbers greater than the last two
    digits; if it writes it digit by digit, the digits greater than the last. Rivals are the others. `corrupted` has 01
    (or 0) instead of the number. The span `number` is the number.

    Args:
        model: a model with a tokenizer.
        count: how many.
        seed: decides events and years.

    Raises:
        InterpError: no prompts are asked for, or the tokenizer writes years in some other way.

    Source:
        Hanna, Liu and Variengien 2023, How does GPT-2 compute greater-than?, arXiv 2305.00586.
    """
    tokenizer = needed_tokenizer(model, "greater_than")
    _check(count)
    pairs = [f"{i:02d}" for i in range(2, 99)]
    digits = [str(i) for i in range(10)]

    def split(year: str) -> list[int]:
        text = f"the year {year}"
        return encoded(tokenizer, text)[len(encoded(tokenizer, "the year")) :]

    def ends_with(year: str, part: str) -> bool:
        return split(year)[-1:] == encoded(tokenizer, part) and len(split(year)) == len(split(year[: -len(part)])) + 1

    if all(ends_with(f"17{pair}", pair) for pair in pairs):
        width, lowest, highest = 2, 2, 97
    elif all(ends_with(f"174{digit}", digit) for digit in digits):
        width, lowest, highest = 1, 1, 8
    else:
        raise InterpError(
            "greater_than needs a tokenizer that writes years as two tokens of two digits, or digit by digit, and this "
            "model's does neither: give prompts of your own"
        )
    every = [f"{i:0{width}d}" for i in range(10**width)]
    every = [number for number in every if len(encoded(tokenizer, number)) == 1]
    lowest_of_all = "01" if width == 2 else "0"
    events, rng = _EVENTS.split(), np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        century = f"{rng.integers(11, 18)}" + ("" if width == 2 else f"{rng.integers(1, 10)}")
        number = f"{rng.integers(lowest, highest + 1):0{width}d}"
        event = events[rng.integers(len(events))]
        text = f"The {event} lasted from the year {century}{{}} to the year {century}"
        whole, corrupted = text.format(number), text.format(lowest_of_all)
        if len(encoded(tokenizer, whole)) != len(encoded(tokenizer, corrupted)):
            continue  # a year that is a single token: the pair would not align
        place = text.index("{}")
        nth = sum(whole.startswith(number, at) for at in range(place + 1))
        found.append(
            {
                "text": whole,
                "answer": [other for other in every if other > number],
                "rivals": [other for other in every if other <= number],
                "corrupted": corrupted,
                "spans": {"number": [number, nth]},
            }
        )
    return found


def false_demonstrations(model: TransformerBridge, count: int = 32, *, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts that demonstrate a task with permuted labels, and a query whose answer is nevertheless the true label.

    Two demonstrations of each class; `corrupted` has their true labels. Tasks (`interp.prompts.tasks`) take turns; the
    span `query` is the token from which the label is predicted.

    Args:
        model: a model with a tokenizer.
        count: how many.
        seed: decides what is drawn.

    Raises:
        InterpError: no prompts are asked for, or the model's tokenizer cannot encode the tasks.

    Source:
        Halawi, Denain and Steinhardt 2023, Overthinking the Truth, arXiv 2307.09476; with different tasks.
    """
    _check(count)
    return lines(model, tasks_of(model), count, seed=seed)


def _check(count: int) -> None:
    if count < 1:
        raise InterpError(f"{count} prompts: use a positive integer")


def _single(tokenizer: Any, words: list[str], least: int, what: str) -> list[str]:
    """Those that are one token inside a text."""
    found = [word for word in words if len(encoded(tokenizer, f"a {word}")) == len(encoded(tokenizer, "a")) + 1]
    if len(found) < least:
        raise InterpError(
            f"{what} needs {least} words such as {words[0]!r} that are one token, and this model's tokenizer has "
            f"{len(found)}: give prompts of your own"
        )
    return found
