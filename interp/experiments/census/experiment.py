"""What is each entry of the vocabulary, and can any text produce it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from interp import vocabulary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def census(model: TransformerBridge) -> xr.Dataset:
    """Count the tokens of each kind that a text can produce.

    Args:
        model: any loaded model that has a tokenizer.

    Returns:
        `count` [kind reachable]: how many tokens of a kind are reachable (a witness text encodes to them), impossible
        (proved) or unknown; `published` [category reachable]: the same by the categories of Land and Bartolo (2024).

    Raises:
        InterpError: the model has no tokenizer.
    """
    return vocabulary.summary(vocabulary.census(model))
