"""What do all figures share? Which variables a result has, how a title names its model, how a token is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from interp import plots
from interp.errors import InterpError
from interp.results import provenance

_LONG = 40  # characters of a model's name


def has(result: xr.Dataset, name: str, *dims: str) -> bool:
    """Is there a variable of that name with these dimensions?"""
    return name in result and set(dims) <= set(map(str, result[name].dims))


def like(values: np.ndarray, source: xr.DataArray, dims: str) -> xr.DataArray:
    """Values over dimensions of another array, with its coordinates."""
    names = dims.split()
    return xr.DataArray(values, dims=names, coords={n: source[n] for n in names})


def titled(text: str, result: xr.Dataset) -> str:
    """A title with the model's name behind it, where that is known; of a long path, its last part."""
    try:
        name = str(provenance(result)["model"]["name"])
    except (InterpError, KeyError):
        return text
    return f"{text} · {plots.escaped(name if len(name) <= _LONG else Path(name).name)}"


def shown(text: str, most: int | None = None) -> str:
    """A token's text, safe inside plotly's markup, its spaces visible, cut to `most` characters."""
    text = str(text)
    text = text if most is None or len(text) <= most else text[: most - 1] + "\u2026"
    return plots.escaped(text).replace(" ", "\u2423") or "(empty)"
