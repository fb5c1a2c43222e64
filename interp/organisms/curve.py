"""How did a bundled model learn? Losses, both halves and every head's scores, by training step."""

from pathlib import Path

import xarray as xr

from interp import results
from interp.organisms import folder

CURVE_FILE = "curve.nc"


def training_curve(model: str | Path) -> xr.Dataset:
    """Read the training curve of a bundled model or a trained directory.

    Args:
        model: the name of a bundled model, or the directory.

    Returns:
        `heldout_loss` and `train_loss` [checkpoint], nats per token; `first_half` and `second_half` (log-prob, nats)
        and `accuracy` [checkpoint pool]; `score` [checkpoint pool layer key_kind head], attention, 0 to 1.

    Raises:
        InterpError: there is no curve, or the file is damaged.

    Example:
        >>> curve = interp.training_curve("organism")
        >>> bool(curve["heldout_loss"][-1] < curve["heldout_loss"][0])
        True
    """
    return results.load(folder(model) / CURVE_FILE)
