"""What replaces a head's output when it is ablated on prompts? Its output on the other prompts.

A prompt's own output is never part of its baseline: with few prompts, it would make up much of their mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.tokens import Prompts


def mean_of_others(record: Mapping[str, Tensor], tokens: Prompts) -> tuple[dict[str, Tensor], str]:
    """For each prompt, the mean of an activation over the other prompts.

    Args:
        record: activations [batch position ...] of the prompts.
        tokens: the prompts.

    Returns:
        Activations of the same shape, and what the mean is over: "positions" (position by position) where all prompts
        have the same length; otherwise "prompts": over all positions of the others except the first, where heads rest
        and which has its own mean.

    Raises:
        InterpError: there is only one prompt.
    """
    if len(tokens.ids) < 2:
        raise InterpError(
            f"'{tokens.pool}' is one prompt, and the mean is over the other prompts: use kind zero, or more prompts"
        )
    present = tokens.present
    aligned = bool((present == present[0]).all())
    found = {}
    for name, value in record.items():
        here = present.to(value.device).view(*present.shape, *[1] * (value.ndim - 2))
        kept = torch.where(here, value, torch.zeros_like(value))
        by_position = (kept.sum(0, keepdim=True) - kept) / (here.sum(0, keepdim=True) - here.int()).clamp_min(1)
        if not aligned:
            inner, count = kept[:, 1:].sum(1, keepdim=True), here[:, 1:].sum(1, keepdim=True)
            pooled = (inner.sum(0, keepdim=True) - inner) / (count.sum(0, keepdim=True) - count).clamp_min(1)
            by_position = torch.cat([by_position[:, :1], pooled.expand_as(value[:, 1:])], 1)
        found[name] = by_position
    return found, "positions" if aligned else "prompts"


def of_another(record: Mapping[str, Tensor], tokens: Prompts, *, seed: int = 0) -> dict[str, Tensor]:
    """For each prompt, an activation from a different prompt of the same length, drawn at random.

    Raises:
        InterpError: no other prompt has the length of some prompt.
    """
    lengths = tokens.present.sum(1).cpu().numpy()
    other = np.arange(len(lengths))
    rng = np.random.default_rng(seed)
    for length in np.unique(lengths):
        places = rng.permutation(np.flatnonzero(lengths == length))
        if len(places) < 2:
            raise InterpError(
                f"'{tokens.pool}' has only one prompt of {length} tokens, and resampling needs another of the same "
                "length: use kind mean or zero"
            )
        other[places] = np.roll(places, 1)
    order = torch.from_numpy(other)
    return {name: value[order.to(value.device)] for name, value in record.items()}
