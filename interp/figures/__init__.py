"""Which figure shows which result? One function per published figure: saved Dataset in, `go.Figure` out; no torch.

`copying` has those of repeated sequences and of training, `vocabulary` those of tokens and their detection, `pages` writes
files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import xarray as xr

from interp.figures import pages
from interp.figures.common import has
from interp.figures.copying import (
    dose_response,
    halves,
    has_doses,
    head_scores,
    is_repeated,
    log_prob_by_position,
    training_curve,
)  # fmt: skip
from interp.figures.pages import write_images, write_page
from interp.figures.vocabulary import (
    census,
    detection,
    exposure_response,
    indicator_against_probability,
    indicator_histogram,
    is_census,
    is_detection,
    is_known,
    is_verified,
    largest_log_prob,
    repeat_probability,
)  # fmt: skip

__all__ = [
    "census", "clear", "detection", "dose_response", "exposure_response", "figures_of", "halves", "head_scores",
    "indicator_against_probability", "indicator_histogram", "largest_log_prob", "log_prob_by_position",
    "repeat_probability", "training_curve", "write_images", "write_page",
]  # fmt: skip

# every figure, and which results have the variables and coordinates for it
_FITS: dict[Callable[[xr.Dataset], go.Figure], Callable[[xr.Dataset], bool]] = {
    dose_response: has_doses,
    log_prob_by_position: is_repeated,
    halves: is_repeated,
    head_scores: lambda result: has(result, "score", "pool", "stripe", "layer", "head", "batch"),
    training_curve: lambda result: has(result, "second_half", "checkpoint", "pool") and "score" in result,
    census: is_census,
    indicator_against_probability: is_verified,
    indicator_histogram: is_detection,
    detection: is_known,
    exposure_response: lambda result: has(result, "correlation", "response", "group") and "canary" in result.coords,
    repeat_probability: lambda result: has(result, "probability", "token", "new_token") and "prompt" in result.attrs,
    largest_log_prob: lambda result: has(result, "largest", "token", "measure"),
}


def figures_of(result: xr.Dataset) -> dict[str, go.Figure]:
    """Every figure that this result has the variables and coordinates for, by name."""
    return {make.__name__: make(result) for make, fits in _FITS.items() if fits(result)}


def clear(folder: str | Path) -> None:
    """Remove the figures of an earlier result from a folder, so that they do not pass for those of a new one."""
    pages.clear(folder, [make.__name__ for make in _FITS])
