"""What stands in the place of a head's output when it is ablated on prompts? What it reads out on the other prompts.

A prompt's own output is never part of its baseline: of few prompts, their mean would hold much of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.tokens import Prompts


def mean_of_others(record: Mapping[str, Tensor], tokens: Prompts) -> tuple[dict[str, Tensor], str]:
    """Of each prompt, the mean of an activation over the others.

    Args:
        record: activations [batch position ...] of the prompts.
        tokens: the prompts.

    Returns:
        Activations of the same shape, and what the mean is over: "positions" where all prompts are of one length, so
        that it is position by position; else "prompts": over all positions of the others, but for the first, where
        heads rest and which has a mean of its own.

    Raises:
        InterpError: there are no others.
    """
    if len(tokens.ids) < 2:
        raise InterpError(
            f"'{tokens.pool}' is one prompt, and a mean is over the others: use kind zero, or more prompts"
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
    """Of each prompt, an activation of another one of the same length, drawn without fixed points.

    Raises:
        InterpError: a prompt has no other of its length.
    """
    lengths = tokens.present.sum(1).cpu().numpy()
    other = np.arange(len(lengths))
    rng = np.random.default_rng(seed)
    for length in np.unique(lengths):
        places = rng.permutation(np.flatnonzero(lengths == length))
        if len(places) < 2:
            raise InterpError(
                f"'{tokens.pool}' has one prompt of {length} tokens, and resampling takes another of the same length: "
                "use kind mean or zero"
            )
        other[places] = np.roll(places, 1)
    order = torch.from_numpy(other)
    return {name: value[order.to(value.device)] for name, value in record.items()}
