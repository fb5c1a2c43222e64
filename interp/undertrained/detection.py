"""Which tokens does an indicator detect as under-trained? A null of ordinary tokens, and a false-discovery rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from scipy.stats import false_discovery_control, median_abs_deviation, norm

from interp import cache
from interp.errors import InterpError
from interp.models import weights_state
from interp.undertrained.embedding_rows import DEFAULT, model_indicators
from interp.vocabulary import IMPOSSIBLE, REACHABLE, census

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

FDR = 0.05
_LARGE = 10_000_000  # embedding entries from which on detections are cached
_DETECTED: WeakKeyDictionary[TransformerBridge, dict[tuple[str, float, int], tuple[int, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Detection:
    """`p_value` [token], `detected` [token], the indicator's `threshold`, and the null's `centre` and `width`.

    `mirrored` counts the tokens of the fitted population that lie as far *above* the centre as the threshold lies
    below it: the expected number of false detections if the null is symmetric, a check that does not assume normality.
    """

    p_value: np.ndarray
    detected: np.ndarray
    threshold: float
    centre: float
    width: float
    mirrored: int


def detect(values: np.ndarray, healthy: np.ndarray, family: np.ndarray, *, fdr: float = FDR) -> Detection:
    """Detect the tokens whose indicator is too low for an ordinary one.

    The null is normal, with median and scaled median absolute deviation of the healthy tokens; p = P(null <= value).

    Args:
        values: [token], an indicator.
        healthy: [token], bool: the tokens that the null is fitted to, reachable text. A few of them may well be
            under-trained, and move neither median much.
        family: [token], bool: the tokens that the Benjamini-Hochberg threshold comes from; it holds for all.
        fdr: the false-discovery rate, between 0 and 1.

    Returns:
        The detected tokens, with the threshold and the null.

    Raises:
        InterpError: for a rate outside 0..1 and where fewer than 20 tokens or no spread are left to fit.

    Source:
        Benjamini and Hochberg (1995).
    """
    if not 0 < fdr < 1:
        raise InterpError(f"false-discovery rate {fdr}: use a number between 0 and 1, e.g. 0.05")
    usable = np.isfinite(values)
    fitted = values[healthy & usable]
    if len(fitted) < 20:
        raise InterpError(f"only {len(fitted)} reachable text tokens to fit a null to: give a larger vocabulary")
    centre, width = float(np.median(fitted)), float(1.4826 * median_abs_deviation(fitted))
    if width == 0:
        raise InterpError("more than half of the rows give the same indicator: are these trained embeddings?")
    p_value = np.where(usable, norm.cdf(values, centre, width), np.nan)
    tested = p_value[family & usable]
    passing = tested[false_discovery_control(tested) <= fdr]
    if not len(passing):
        return Detection(p_value, np.zeros(len(values), bool), float("nan"), centre, width, 0)
    detected = usable & (p_value <= passing.max())
    threshold = float(values[family & detected].max())
    return Detection(p_value, detected, threshold, centre, width, int((fitted >= 2 * centre - threshold).sum()))


def populations(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """From a census: the tokens [token] the null is fitted to, reachable text; and those tested, all not impossible."""
    healthy = (table["reachable"] == REACHABLE) & (table["kind"] == "text")
    family = (table["reachable"] != IMPOSSIBLE) & (table["kind"] != "special")
    return healthy.to_numpy(), family.to_numpy()


def to_ask(detected: np.ndarray, family: np.ndarray, *, seed: int = 0) -> list[int]:
    """The detected tokens, and size-matched random others of the family as a control, sorted.

    Args:
        detected: [token], bool.
        family: [token], bool: the tokens that were tested.
        seed: decides the control.
    """
    suspects, others = np.flatnonzero(detected), np.flatnonzero(family & ~detected)
    control = np.random.default_rng(seed).choice(others, min(len(suspects), len(others)), replace=False)
    return sorted(map(int, {*suspects, *control}))


def detected(model: TransformerBridge, indicator: str = DEFAULT, fdr: float = FDR) -> tuple[int, ...]:
    """Ids that an indicator detects as under-trained, impossible and special tokens left out.

    Remembered as long as the weights stay as they are.
    """
    known, asked = _DETECTED.setdefault(model, {}), (indicator, fdr, weights_state(model))
    if asked not in known:
        known.clear()
        known[asked] = _stored_or_detected(model, indicator, fdr)
    return known[asked]


def _stored_or_detected(model: TransformerBridge, indicator: str, fdr: float) -> tuple[int, ...]:
    """As `detected`; the result for a large vocabulary is kept in the user's cache."""
    large = model.original_model.get_input_embeddings().weight.numel() > _LARGE
    files = [str(Path(__file__).parent / f"{name}.py") for name in ("detection", "embedding_rows")]

    def ids() -> list[int]:
        healthy, family = populations(census(model))
        found = detect(model_indicators(model)[indicator], healthy, family, fdr=fdr)
        return [int(i) for i in np.flatnonzero(found.detected & family)]

    return tuple(cache.recalled(model, f"detected {indicator} {fdr}", ids, *files) if large else ids())


def by_indicator(model: TransformerBridge, indicator: str = DEFAULT) -> np.ndarray:
    """Ids of text that the tokenizer makes of some text, the most suspicious first; ties by id.

    Args:
        model: any loaded model with a tokenizer and raw weights.
        indicator: one of `INDICATORS`; low values are suspicious.

    Raises:
        InterpError: the model has no tokenizer, or indicators cannot be read off its rows.
    """
    text, _ = populations(census(model))
    values = model_indicators(model)[indicator]
    ids = np.flatnonzero(text & np.isfinite(values))
    return ids[np.argsort(values[ids], kind="stable")]
