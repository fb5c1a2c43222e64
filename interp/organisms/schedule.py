"""Which phase of a training does a step belong to, and what is its learning rate?"""

import math
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Steps(Protocol):
    """Anything with a number of steps."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        ...  # pragma: no cover


Phases = TypeVar("Phases", bound=Steps)


def phase_at(phases: Iterable[Phases], step: int) -> Phases:
    """The phase that `step` (from 0) belongs to."""
    left = step
    for phase in phases:
        if left < phase.steps:
            return phase
        left -= phase.steps
    raise IndexError(f"step {step} lies beyond the recipe's {step - left} steps")


def learning_rate(peak: float, warmup: int, steps: int, step: int) -> float:
    """The rate at a step: a linear warm-up to the peak, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * share))
