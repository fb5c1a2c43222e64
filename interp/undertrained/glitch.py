"""Which of the tokens that look under-trained does the model fail to repeat, and which others does it repeat?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from interp.models import weights_state
from interp.undertrained.detection import FDR, detect, populations, to_ask
from interp.undertrained.embedding_rows import DEFAULT, model_indicators
from interp.undertrained.verification import THRESHOLD, max_probability, verify
from interp.vocabulary import census

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_REPEATED = 0.5  # above this probability no other token can be more likely


@dataclass(frozen=True)
class Asked:
    """Tokens that a model was asked to repeat, without special tokens and those that no text can produce.

    Attributes:
        glitch: detected by the default indicator, and given less than 0.01 by every prompt and step.
        repeated: not detected, and given more than 0.5 by one of them.
    """

    glitch: tuple[int, ...]
    repeated: tuple[int, ...]


_ASKED: WeakKeyDictionary[TransformerBridge, tuple[int, Asked]] = WeakKeyDictionary()


def glitch_tokens(model: TransformerBridge) -> Asked:
    """Ask a model to repeat the tokens that the default indicator detects, and size-matched others.

    The answers of models with 50 million parameters or more are kept in the user's cache.

    Args:
        model: any loaded model with a tokenizer and raw weights.

    Returns:
        Those verified as glitch tokens, and those others that are repeated.

    Raises:
        InterpError: nothing can be detected or asked, see `detect` and `verify`.

    Source:
        Land and Bartolo, "Fishing for Magikarp" (2024): the prompts and the threshold.
    """
    if (known := asked_already(model)) is not None:
        return known
    healthy, family = populations(census(model))
    detected = detect(model_indicators(model)[DEFAULT], healthy, family, fdr=FDR).detected
    ids = to_ask(detected, family)
    found = Asked((), ())
    if ids:
        highest = max_probability(verify(model, ids)["probability"]).to_numpy()
        tested = np.array(ids)[family[ids]]
        highest = highest[family[ids]]
        glitch = tested[detected[tested] & (highest < THRESHOLD)]
        repeated = tested[~detected[tested] & (highest > _REPEATED)]
        found = Asked(tuple(map(int, glitch)), tuple(map(int, repeated)))
    _ASKED[model] = (weights_state(model), found)
    return found


def asked_already(model: TransformerBridge) -> Asked | None:
    """The result of `glitch_tokens`, if this process has called it with the model's current weights."""
    state, found = _ASKED.get(model, (None, None))
    return found if state == weights_state(model) else None
