"""What cures attention glitches, and what does each cure cost? Sharper attention, and other training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.hooks import heads_of
from interp.languages.register import DENSE, LENGTH, SPARSE, TRAINED_ON, flip_flop as drawn
from interp.organisms import FLIP_FLOPS, training_records
from interp.repairs.last_write import (
    check_length,
    last_write_heads,
    parts,
    register_values,
    right_reads,
    sharpened_attention,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = {"quick": {"sequences": 128, "calibration": 16}, "thorough": {"sequences": 4096}}
SCOPES = ("last-write heads", "all heads")
_LANGUAGES = (TRAINED_ON, SPARSE, DENSE)
_APART = 1_000_000  # number of the first sequence that heads are classified on


def flip_flop_cures(
    model: TransformerBridge,
    *,
    temperatures: str = "0.05,0.5,1,2",
    sequences: int = 512,
    tokens_each: int = 0,
    calibration: int = 32,
    least: float = 0.05,
    seed: int = 0,
) -> xr.Dataset:
    """Count wrong reads at several attention temperatures, beside those of models that were trained with a cure.

    Attention scores are divided by the temperature, in the last-write heads or in all heads. The trainings (entropy
    penalty, sparse sequences, LSTM) and their errors, for three seeds, were recorded when the models were made.

    Args:
        model: a model of the flip-flop language.
        temperatures: of the attention scores, with commas: below 1 is sharper, 1 changes nothing.
        sequences: how many of each language.
        tokens_each: tokens in a sequence; 0: 512, or as many as the context has room for.
        calibration: how many other sequences, of FFL(0.8), last-write heads are detected on.
        least: by how much attention to the last write must exceed that to similar positions for a head to be detected.
        seed: decides the sequences.

    Returns:
        `wrong` [language scope temperature] of `reads` [language], counts; NaN for the last-write heads where there are
        none. `trained_wrong` and `trained_reads` [recipe train_seed language], recorded counts; `error_in_training`
        [recipe train_seed language checkpoint], a share.

    Raises:
        InterpError: the model has another vocabulary, or a temperature is not positive.

    Source:
        Liu et al. 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.

    Example:
        >>> few = dict(sequences=8, tokens_each=32, calibration=8)
        >>> result = interp.run("flip_flop_cures", "wired-flipflop", **few)
        >>> result["wrong"].sel(temperature=1, scope="all heads").values.tolist()
        [0.0, 0.0, 0.0]
    """
    values = register_values(model)
    length = tokens_each or min(LENGTH, int(model.cfg.n_ctx))
    check_length(model, length)
    try:
        scales = [float(part) for part in str(temperatures).split(",")]
    except ValueError as error:
        raise InterpError(f"temperatures '{temperatures}': give positive numbers with commas, such as 0.5,1") from error
    for scale in scales:
        sharpened_attention(model, (), scale)
    apart = drawn(TRAINED_ON, batch=calibration, length=length, values=values, seed=seed, start=_APART)
    called = last_write_heads(model, apart, least).heads
    languages = [drawn(p, batch=sequences, length=length, values=values, seed=seed) for p in _LANGUAGES]
    wrong = np.full((len(languages), len(SCOPES), len(scales)), np.nan, dtype=np.float32)
    reads = [int(tokens.read.sum()) for tokens in languages]
    for k, tokens in enumerate(languages):
        unchanged: int | None = None
        for i, heads in enumerate((called, tuple(heads_of(model)))):
            for j, scale in enumerate(scales):
                if not heads:
                    continue
                if scale != 1 or unchanged is None:
                    count = 0
                    for part, at in parts(tokens, tokens.read, f"{tokens.pool}, temperature {scale:g}"):
                        hooks = [] if scale == 1 else sharpened_attention(model, heads, scale)
                        count += int((~right_reads(model, part, at, hooks)).sum())
                    unchanged = count if scale == 1 else unchanged
                wrong[k, i, j] = unchanged if scale == 1 else count
    found = xr.Dataset(
        {"wrong": (("language", "scope", "temperature"), wrong), "reads": ("language", reads)},
        {"language": [tokens.pool for tokens in languages], "scope": list(SCOPES), "temperature": scales},
    )
    return xr.merge([found, _trained(found["language"].values.tolist())]).assign_attrs(
        sequences=sequences, tokens_each=length, last_write_heads=" ".join(f"L{layer}H{head}" for layer, head in called)
    )


def _trained(languages: list[str]) -> xr.Dataset:
    """What the trainings of all recipes recorded."""
    records = training_records()
    seeds = sorted({record["seed"] for record in records})
    steps = sorted({point["step"] for record in records for point in record["curve"] if "errors" in point})
    shape = (len(FLIP_FLOPS), len(seeds), len(languages))
    counts = {name: np.full(shape, np.nan) for name in ("wrong", "reads")}
    shares = np.full((*shape, len(steps)), np.nan, dtype=np.float32)
    for record in records:
        at = FLIP_FLOPS.index(record["recipe"]), seeds.index(record["seed"])
        for k, language in enumerate(languages):
            for name, values in counts.items():
                values[(*at, k)] = record["errors"][language][name]
            for point in record["curve"]:
                if "errors" in point:
                    counted: dict[str, Any] = point["errors"][language]
                    shares[(*at, k, steps.index(point["step"]))] = counted["wrong"] / counted["reads"]
    dims = ("recipe", "train_seed", "language")
    return xr.Dataset(
        {
            "trained_wrong": (dims, counts["wrong"]),
            "trained_reads": (dims, counts["reads"]),
            "error_in_training": ((*dims, "checkpoint"), shares),
        },
        {"recipe": list(FLIP_FLOPS), "train_seed": seeds, "language": languages, "checkpoint": steps},
    )
