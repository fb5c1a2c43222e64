"""How does a model go on? Greedy, by its own distribution, or as the article samples; many sequences in a pass.

Each sequence has random numbers of its own, so that what is said of it depends on its seed and on itself alone.
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

# S. Xiang (2024), by the names of transformers' generate. The last setting forbids every pair of tokens that is there
# already, in the prompt as well
ARTICLE_SAMPLING = {"top_k": 50, "top_p": 0.95, "no_repeat_ngram_size": 2}
_STREAM = 1 << 20  # of the random numbers, apart from what draws prompts


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen: `settings` are those of `ARTICLE_SAMPLING`, each of which may be left out."""

    name: str
    is_random: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def processors(self) -> LogitsProcessorList:
        """What is done to the logits, in the order of transformers' generate."""
        kinds = {
            "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
            "top_k": TopKLogitsWarper,
            "top_p": TopPLogitsWarper,
        }
        return LogitsProcessorList([kind(self.settings[name]) for name, kind in kinds.items() if name in self.settings])

    @property
    def allows_loops(self) -> bool:
        """Can a token, or several, be said again and again?"""
        return "no_repeat_ngram_size" not in self.settings


GREEDY = Decoding("greedy", is_random=False)
PURE = Decoding("pure")
AS_THE_ARTICLE = Decoding("article", settings=ARTICLE_SAMPLING)
DECODINGS = (AS_THE_ARTICLE, PURE, GREEDY)


def uniforms(first: int, count: int, steps: int, *, seed: int = 0) -> Tensor:
    """Random numbers [sequence step] between 0 and 1 of the sequences `first`, `first` + 1, ...

    Those of sequence i depend on the seed and on i alone.
    """
    rows = [
        torch.rand(steps, dtype=torch.float64, generator=local_generator(seed, _STREAM + i))
        for i in range(first, first + count)
    ]
    return torch.stack(rows)


def continued(way: Way, ids: Tensor, started: tuple[Tensor, Any], decoding: Decoding, random: Tensor) -> Tensor:
    """What a model says after prompts of equal length.

    Args:
        way: how the model is run.
        ids: [sequence position], the prompts.
        started: what `way.forward(ids, None)` gave: logits of the next token, and the cache, which is left as it is.
        decoding: how tokens are chosen.
        random: [sequence step], as `uniforms` draws them; they say how many steps there are.

    Returns:
        [sequence step] ids, on the CPU. The end of a text is no end here: what stands behind it is for the caller.

    Raises:
        InterpError: a step with no token left to choose, or logits that are no numbers.
    """
    logits, cache = started[0], copy.deepcopy(started[1])  # a pass writes into the cache that it is given
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
        decoding: what is done to the logits first.
        ids: [sequence position], all that stands before.
        logits: [sequence token].
        random: [sequence], between 0 and 1; without effect where nothing is random.
    """
    scores: Any = decoding.processors(ids, logits.float())
    if not decoding.is_random:
        return scores.argmax(-1)
    cumulative = scores.cpu().double().softmax(-1).cumsum(-1)
    if not bool((cumulative[:, -1] > 0).all()):
        raise InterpError("no token is left to choose, or logits are no numbers: load the model in float32")
    # a token without probability is passed over: the first whose end lies beyond
    return torch.searchsorted(cumulative, random[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp(
        max=cumulative.shape[-1] - 1
    )
