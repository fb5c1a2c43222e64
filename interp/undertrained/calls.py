"""Which tokens does an indicator call under-trained? A null fitted to ordinary text tokens, and a false-discovery rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import false_discovery_control, norm

from interp.errors import InterpError
from interp.undertrained.indicators import DEFAULT, embeddings, indicators, reference
from interp.vocabulary import IMPOSSIBLE, REACHABLE, census

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

FDR = 0.05


@dataclass(frozen=True)
class Calls:
    """`p_value` [token], `called` [token], the indicator's `threshold`, and the null's `centre` and `width`.

    `mirrored` counts the tokens of the fitted population that lie as far *above* the centre as the threshold lies below:
    were the null symmetric, so many false calls would be expected. It is a check that assumes no normality.
    """

    p_value: np.ndarray
    called: np.ndarray
    threshold: float
    centre: float
    width: float
    mirrored: int


def calls(values: np.ndarray, healthy: np.ndarray, family: np.ndarray, *, fdr: float = FDR) -> Calls:
    """Call the tokens whose indicator is too low for an ordinary one.

    The null is normal with median and scaled median absolute deviation of `values` [token] over `healthy` [token], bool:
    reachable text tokens, a few of which may well be under-trained, and move neither much. p = P(null <= value).
    The Benjamini-Hochberg threshold comes from the tokens of `family` [token], bool, and holds for all.

    Raises `InterpError` for a rate outside 0..1 and where fewer than 20 tokens or no spread are left to fit.
    """
    if not 0 < fdr < 1:
        raise InterpError(f"false-discovery rate {fdr}: use a number between 0 and 1, e.g. 0.05")
    usable = np.isfinite(values)
    fitted = values[healthy & usable]
    if len(fitted) < 20:
        raise InterpError(f"only {len(fitted)} reachable text tokens to fit a null to: give a larger vocabulary")
    centre = float(np.median(fitted))
    width = float(1.4826 * np.median(np.abs(fitted - centre)))
    if width == 0:
        raise InterpError("more than half of the rows give the same indicator: are these trained embeddings?")
    p_value = np.full(len(values), np.nan)
    p_value[usable] = norm.cdf(values[usable], centre, width)
    tested = family & usable
    adjusted = false_discovery_control(p_value[tested])
    passing = p_value[tested][adjusted <= fdr]
    limit = passing.max() if len(passing) else -1.0
    called = usable & (p_value <= limit)
    threshold = float(values[tested & called].max()) if len(passing) else float("nan")
    mirrored = int((fitted >= 2 * centre - threshold).sum()) if len(passing) else 0
    return Calls(p_value, called, threshold, centre, width, mirrored)


def populations(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """From a census: the tokens [token] the null is fitted to, reachable text; and those tested, all not impossible."""
    healthy = (table["reachable"] == REACHABLE) & (table["kind"] == "text")
    family = (table["reachable"] != IMPOSSIBLE) & (table["kind"] != "special")
    return healthy.to_numpy(), family.to_numpy()


def called(model: TransformerBridge, indicator: str = DEFAULT, fdr: float = FDR) -> tuple[int, ...]:
    """Ids that an indicator calls under-trained, impossible and special tokens left out."""
    inputs, outputs, bias, tied = embeddings(model)
    healthy, family = populations(census(model))
    values = indicators(inputs, outputs, reference(model).ids, bias=bias, tied=tied)[indicator]
    return tuple(map(int, np.flatnonzero(calls(values, healthy, family, fdr=fdr).called & family)))
