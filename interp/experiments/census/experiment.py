"""What is each entry of the vocabulary, and can any text produce it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from interp import vocabulary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def census(model: TransformerBridge) -> xr.Dataset:
    """Count the tokens of each kind that some text can produce.

    Args:
        model: any loaded model that has a tokenizer.

    Returns:
        `count` [kind reachable], tokens: reachable (a witness text encodes to the token), impossible (proved) or
        unknown; `published` [category reachable], the same by the categories of Land and Bartolo (2024).

    Raises:
        InterpError: the model has no tokenizer.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417, for the categories.

    Example:
        >>> result = interp.run("census", "organism")
        >>> result["count"].sum("kind").to_series().to_dict()
        {'reachable': 2035, 'impossible': 13, 'unknown': 0}
    """
    return vocabulary.summary(vocabulary.census(model))
