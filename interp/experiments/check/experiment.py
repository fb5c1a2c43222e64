"""Which identities hold on this model that analyses rest on?"""

from __future__ import annotations

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp import identities


def check(model: TransformerBridge) -> xr.Dataset:
    """Test every identity that an analysis rests on: log-probs against plain Hugging Face, sums, patterns, weights.

    Args:
        model: any loaded model, of any size: the published network is loaded a second time.

    Returns:
        `error` [identity], as a share of the spread of what is compared; NaN where it could not be computed. `holds`
        [identity]. The coordinates `question` and `reason` [identity] say what must hold and, where it does not, why
        and what to use instead. The attribute `note` says where plain transformers disagrees with itself.
    """
    found = identities.check(model)
    note = identities.ATTENTION_DIFFERS.get(model, "")
    return found.assign_attrs({"note": note} if note else {})
