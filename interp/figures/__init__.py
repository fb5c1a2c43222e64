"""Which figure shows which result? One function per published figure: saved Dataset in, `go.Figure` out; no torch.

`copying` has those of repeated sequences and of training, `circuit` those of heads and interventions, `causes` those of why copying fails, `vocabulary` those of
tokens and their detection, `argmax` those of the output layer, `pages` writes files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import xarray as xr

from interp.figures import pages
from interp.figures.argmax import hull, is_argmax, is_hull, margin_by_kind
from interp.figures.causes import (
    deficit_shares,
    identity_decomposition,
    is_attributed,
    is_repaired,
    repair_damage,
    retrieval_by_layer,
)
from interp.figures.circuit import (
    ablation_curve,
    attention_view,
    attribution,
    attribution_agreement,
    head_composition,
    head_losses,
    is_ablated,
    is_heads,
    is_patched,
    lens_by_layer,
    matching_and_copying,
    patched_heads,
    patched_positions,
    path_strengths,
)  # fmt: skip
from interp.figures.common import has
from interp.figures.comparison import is_comparison, is_training, over_training, side_by_side
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
from interp.reproduce.report import is_reproduction, published_and_ours

__all__ = [
    "ablation_curve", "attention_view", "attribution", "attribution_agreement", "census", "clear", "deficit_shares", "detection", "dose_response",
    "exposure_response", "figures_of", "halves", "head_composition", "head_losses", "head_scores", "hull", "identity_decomposition",
    "indicator_against_probability", "indicator_histogram", "largest_log_prob", "lens_by_layer", "log_prob_by_position", "margin_by_kind",
    "matching_and_copying", "over_training", "patched_heads", "patched_positions", "path_strengths", "published_and_ours", "repair_damage", "repeat_probability", "retrieval_by_layer", "side_by_side", "training_curve",
    "write_images", "write_page",
]  # fmt: skip

# every figure, and which results have the variables and coordinates for it
_FITS: dict[Callable[[xr.Dataset], go.Figure], Callable[[xr.Dataset], bool]] = {
    dose_response: has_doses,
    log_prob_by_position: is_repeated,
    halves: is_repeated,
    head_scores: lambda result: has(result, "score", "pool", "stripe", "layer", "head", "batch"),
    matching_and_copying: is_heads,
    head_composition: lambda result: is_heads(result) and has(result, "composition", "mode", "from_layer"),
    head_losses: is_ablated,
    ablation_curve: is_ablated,
    patched_positions: is_patched,
    patched_heads: is_patched,
    path_strengths: lambda result: has(result, "effect", "pool", "direction", "via", "sender", "receiver"),
    lens_by_layer: lambda result: has(result, "log_prob_after", "pool", "after", "batch", "position"),
    attribution: lambda result: has(result, "by_component", "pool", "component", "batch") and "by_head" in result,
    attribution_agreement: lambda result: has(result, "agreement", "pool", "estimate", "fit"),
    attention_view: lambda result: (
        has(result, "pattern", "pool", "component", "query", "key") and "token_text" in result.coords
    ),
    deficit_shares: is_attributed,
    identity_decomposition: is_attributed,
    retrieval_by_layer: lambda result: (
        is_attributed(result) and has(result, "retrieval", "pool", "role", "place", "depth", "way")
    ),
    repair_damage: is_repaired,
    margin_by_kind: is_argmax,
    hull: is_hull,
    published_and_ours: is_reproduction,
    side_by_side: is_comparison,
    over_training: is_training,
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
