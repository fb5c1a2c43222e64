"""Is one result or figure the same as another, and if not, where do they differ?"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from interp.exhibits import Tolerance

_REDRAWN = 1e-6  # a figure is arithmetic on a file: only the last digits may differ
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def diff_results(new: xr.Dataset, committed: xr.Dataset, tolerance: Tolerance) -> dict[str, str]:
    """Report where one result differs from another.

    Texts, truth values and integer coordinates must be equal, other numbers within the tolerance. The provenance is not
    compared, as it holds versions.

    Args:
        new: the new result.
        committed: the result to compare with.
        tolerance: how far numbers may differ.

    Returns:
        For every variable, coordinate and attribute of either, what differs, or "" if nothing does.
    """
    found = {}
    for name in sorted({*map(str, new.variables), *map(str, committed.variables)}):
        if name not in committed.variables or name not in new.variables:
            found[name] = "is not in the committed result" if name in new.variables else "is no longer made"
        else:
            found[name] = _diff_variables(new[name], committed[name], tolerance, exact=name in committed.coords)
    for name in sorted({*map(str, new.attrs), *map(str, committed.attrs)} - {"provenance"}):
        ours, theirs = (str(result.attrs.get(name)) for result in (new, committed))
        same = _same_text(ours, theirs, tolerance)
        found[f"attribute {name}"] = "" if same else f"is '{theirs[:80]}', made '{ours[:80]}'"
    return found


def _diff_variables(new: xr.DataArray, committed: xr.DataArray, tolerance: Tolerance, exact: bool) -> str:
    if new.dims != committed.dims or new.shape != committed.shape:
        return f"is {dict(committed.sizes)}, and what is made {dict(new.sizes)}"
    ours, theirs = new.values, committed.values
    kinds = ours.dtype.kind + theirs.dtype.kind
    if set(kinds) <= set("fiu") and ("f" in kinds or not exact):
        ours, theirs = ours.astype(float), theirs.astype(float)
        differ = ~np.isclose(ours, theirs, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
        with np.errstate(invalid="ignore"):
            size = np.where(differ, np.nan_to_num(np.abs(ours - theirs), nan=math.inf), -1.0)
        word, allowed = "most", f" (allowed: {tolerance.atol:g} + {tolerance.rtol:g} of it)"
    else:
        ours, theirs = ours.astype(str), theirs.astype(str)
        differ = size = np.asarray(ours != theirs)
        word, allowed = "first", ""
    discrete = _is_discrete(new.values) and _is_discrete(committed.values)
    allowed_share = 0.0 if exact else tolerance.ties if discrete else tolerance.outliers
    if differ.sum() <= allowed_share * differ.size:
        return ""
    at = np.unravel_index(int(np.argmax(size)), size.shape)
    place = ", ".join(f"{dim}={committed[dim].values[i]}" for dim, i in zip(committed.dims, at, strict=True))
    values = (f"{v[at]:.6g}" if allowed else v[at] for v in (theirs, ours))
    there = f"{word}{f' at {place}' if place else ''}: {', made '.join(values)}{allowed}"
    return f"differs in {int(differ.sum())} of {differ.size}, {there}"


def _is_discrete(values: np.ndarray) -> bool:
    """Are these texts, truth values, integers or ranks? Two tied tokens share a rank that ends in a half."""
    return values.dtype.kind != "f" or not np.mod(2 * values[np.isfinite(values)], 1).any()


def _same_text(new: str, committed: str, tolerance: Tolerance) -> bool:
    """Are the words equal, and the numbers in them within the tolerance and their own rounding?"""
    ours, theirs = _NUMBER.split(new), _NUMBER.split(committed)
    return ours[::2] == theirs[::2] and all(
        a == b or abs(float(a) - float(b)) <= tolerance.atol + _last_digit(b) + tolerance.rtol * abs(float(b))
        for a, b in zip(ours[1::2], theirs[1::2], strict=True)
    )


def _last_digit(number: str) -> float:
    """The value of the last digit of a rounded number; zero for an integer."""
    digits = number.partition("e")[0].partition(".")[2]
    return 10.0 ** -len(digits) if digits else 0.0


def diff_figures(drawn: str, committed: str) -> str:
    """Report where a committed figure differs from the newly drawn one, both as plotly JSON; "" if it does not."""
    try:
        theirs = dict(_leaves(json.loads(committed)))
    except ValueError:
        return "is no JSON"
    ours = dict(_leaves(json.loads(drawn)))
    for path in ours | theirs:
        if path not in ours or path not in theirs or not _same(ours[path], theirs[path]):
            a, b = (str(leaves.get(path, "nothing"))[:60] for leaves in (ours, theirs))
            return f"has {b} at {path.lstrip('.')}, drawn {a}"
    return ""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf value in JSON, by its path; plotly's packed arrays are unpacked."""
    if isinstance(value, dict) and {"dtype", "bdata"} <= set(value):
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        value = array.reshape([int(n) for n in str(value.get("shape", array.size)).split(",")]).tolist()
    if not isinstance(value, dict | list) or not value:
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")


def _same(a: Any, b: Any) -> bool:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=_REDRAWN, abs_tol=_REDRAWN)
    return bool(a == b)
