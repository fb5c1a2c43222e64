"""What did a model generate: a loop, an echo, text, or something else? One rule for all cases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

OUTCOMES = ("ended", "loop", "echo", "text", "other")
LEAST = 8  # tokens before the end of a text, below which a continuation is not classified
CYCLES = 3  # minimum number of periods of a loop
RUN = 5  # length of a sequence of tokens that no text repeats by chance
_LOWEST = 0.025  # share of the text's own windows that fall below the threshold
_ROUNDING = 1e-9  # nats by which equal means may differ
_ADDED = 0.5  # to each count, so that what never occurs has a probability: the expected-likelihood estimate


@dataclass(frozen=True, eq=False)
class Unigram:
    """How often each token occurs in a text, and how likely its windows are.

    Attributes:
        ids: [token], the text.
        counts: [vocabulary], how often each occurs.
    """

    ids: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, vocabulary: int) -> Unigram:
        """Of a text [token], for a vocabulary of this many ids."""
        return cls(ids, np.bincount(ids, minlength=vocabulary))

    @cached_property
    def log_probs(self) -> np.ndarray:
        """[vocabulary], nats: half a count is added to each."""
        counts = self.counts + _ADDED
        return np.log(counts / counts.sum())

    def share(self, ids: Sequence[int]) -> float:
        """How much of the text is one of these tokens, nothing added."""
        return float(self.counts[list(ids)].sum() / self.counts.sum())

    def is_text(self, said: Sequence[int]) -> bool:
        """Are these tokens as frequent, on average, as those of 97.5% of the text's own windows of this length?"""
        return float(self.log_probs[list(said)].mean()) >= _lowest(self, len(said)) - _ROUNDING


@lru_cache(64)
def _lowest(text: Unigram, length: int) -> float:
    """The mean log-prob that 2.5% of a text's windows fall below; of a shorter text, its own mean."""
    of_each = text.log_probs[text.ids]
    count = max(1, len(of_each) // length)
    windows = of_each[: count * length].reshape(count, -1).mean(1)
    return float(np.quantile(windows, _LOWEST))


def outcome(
    said: Sequence[int], prompt: Sequence[int], text: Unigram | None, ends: Collection[int] = ()
) -> tuple[str, int]:
    """The kind of a continuation, the first of these that applies, and a loop's period (otherwise 0).

    - `ended`: an end of the text comes before 8 tokens. What follows an end does not count below, either.
    - `loop`: the last half of it, and at least three times the period, repeats with one period; the smallest counts.
    - `echo`: it begins with the last token of the prompt, or holds five consecutive tokens of the prompt.
    - `text`: the mean log-prob of its tokens, by how often they occur in a text, is no lower than that of the lowest
      2.5% of the text's own windows of this length.
    - `other`: none of these.

    Args:
        said: the continuation.
        prompt: the preceding tokens; the token under test is the last.
        text: what is known of a text; None: `text` and `other` cannot be distinguished, and "" is returned.
        ends: ids that begin or end a text.
    """
    end = next((i for i, token in enumerate(said) if token in ends), len(said))
    said = list(said[:end])
    if len(said) < LEAST:
        return "ended", 0
    if found := period(said):
        return "loop", found
    if said[0] == prompt[-1] or _copies(said, list(prompt)):
        return "echo", 0
    if text is None:
        return "", 0
    return ("text" if text.is_text(said) else "other"), 0


def period(said: Sequence[int]) -> int:
    """The smallest period with which the end of a sequence repeats; 0: there is none.

    The end is the last half, or three periods where these are longer.
    """
    n = len(said)
    for p in range(1, n // CYCLES + 1):
        tail = said[-max(CYCLES * p, -(-n // 2)) :]
        if all(a == b for a, b in zip(tail, tail[p:], strict=False)):
            return p
    return 0


def _copies(said: list[int], prompt: list[int]) -> bool:
    """Do five consecutive tokens also occur in the prompt?"""
    runs = {tuple(prompt[i : i + RUN]) for i in range(len(prompt) - RUN + 1)}
    return any(tuple(said[i : i + RUN]) in runs for i in range(len(said) - RUN + 1))
