"""How does a model continue a prompt? Greedily, by its own distribution, or as the article samples; many sequences in a
pass.

Each sequence has its own random numbers, so its continuation depends only on the seed and on itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from interp.errors import InterpError
from interp.tokens import local_generator

if TYPE_CHECKING:
    from interp.undertrained.forward_passes import Way

# S. Xiang (2024), by the names of transformers' generate. The last setting forbids every pair of tokens that
# occurred before, in the prompt as well
ARTICLE_SAMPLING = {"top_k": 50, "top_p": 0.95, "no_repeat_ngram_size": 2}
_STREAM = 1 << 20  # the stream of the random numbers, separate from the one that draws prompts


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen: `settings` has the keys of `ARTICLE_SAMPLING`, each optional."""

    name: str
    is_random: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def processors(self) -> LogitsProcessorList:
        """The processing of the logits, in the order of transformers' generate."""
        kinds = {
            "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
            "top_k": TopKLogitsWarper,
            "top_p": TopPLogitsWarper,
        }
        return LogitsProcessorList([kind(self.settings[name]) for name, kind in kinds.items() if name in self.settings])

    @property
    def allows_loops(self) -> bool:
        """Can the decoding fall into a loop over one or more tokens?"""
        return "no_repeat_ngram_size" not in self.settings


GREEDY = Decoding("greedy", is_random=False)
PURE = Decoding("pure")
AS_THE_ARTICLE = Decoding("article", settings=ARTICLE_SAMPLING)
DECODINGS = (AS_THE_ARTICLE, PURE, GREEDY)


def uniforms(first: int, count: int, steps: int, *, seed: int = 0) -> Tensor:
    """Random numbers [sequence step] between 0 and 1 for the sequences `first`, `first` + 1, ...

    Those of sequence i depend only on the seed and on i.
    """
    rows = [
        torch.rand(steps, dtype=torch.float64, generator=local_generator(seed, _STREAM + i))
        for i in range(first, first + count)
    ]
    return torch.stack(rows)


def continued(way: Way, ids: Tensor, started: tuple[Tensor, Any], decoding: Decoding, random: Tensor) -> Tensor:
    """The model's continuations of prompts of equal length.

    Args:
        way: how the model is run.
        ids: [sequence position], the prompts.
        started: the result of `way.forward(ids, None)`: logits of the next token, and the cache, which is not modified.
        decoding: how tokens are chosen.
        random: [sequence step], from `uniforms`; its length sets the number of steps.

    Returns:
        [sequence step] ids, on the CPU. An end-of-text token does not stop generation; what follows it is for the
        caller to handle.

    Raises:
        InterpError: no token is left to choose at some step, or logits are not finite numbers.
    """
    logits, cache = started[0], copy.deepcopy(started[1])  # a pass modifies the cache that it receives
    said, steps = ids, random.shape[1]
    for step in range(steps):
        chosen = choose(decoding, said, logits, random[:, step])
        said = torch.cat([said, chosen[:, None].to(said)], 1)
        if step < steps - 1:
            logits, cache = way.forward(said[:, -1:], cache)
    return said[:, ids.shape[1] :].cpu()


def choose(decoding: Decoding, ids: Tensor, logits: Tensor, random: Tensor) -> Tensor:
    """The next token [sequence]: the arg-max, or the one at which the cumulative probability passes a random number.

    Args:
        decoding: how the logits are processed first.
        ids: [sequence position], all preceding tokens.
        logits: [sequence token].
        random: [sequence], between 0 and 1; without effect under greedy decoding.
    """
    scores: Any = decoding.processors(ids, logits.float())
    if not decoding.is_random:
        return scores.argmax(-1)
    cumulative = scores.cpu().double().softmax(-1).cumsum(-1)
    if not bool((cumulative[:, -1] > 0).all()):
        raise InterpError("no token is left to choose, or logits are not numbers: load the model in float32")
    # tokens of zero probability are skipped: the first whose cumulative probability exceeds the number
    return torch.searchsorted(cumulative, random[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp(
        max=cumulative.shape[-1] - 1
    )
