"""Which identities hold on this model that analyses rest on?"""

from __future__ import annotations

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp import identities


def check(model: TransformerBridge) -> xr.Dataset:
    """Test the identities that the analyses rest on: log-probs against plain Hugging Face, sums, patterns and weights.

    Args:
        model: any loaded model, of any size; the published network is loaded a second time.

    Returns:
        `error` [identity], as a share of the spread of what is compared; NaN where it could not be computed. `holds`
        [identity], bool. The coordinates `question` and `reason` [identity] say what must hold and, where it does not,
        why and what to use instead. The attribute `note` reports where plain transformers disagrees with itself.

    Example:
        >>> bool(interp.run("check", "wired")["holds"].all())
        True
    """
    found = identities.check(model)
    note = identities.ATTENTION_DIFFERS.get(model, "")
    return found.assign_attrs({"note": note} if note else {})
