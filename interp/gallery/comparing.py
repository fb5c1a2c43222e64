"""Is one result, or one figure, the same as another; and if not, where do they part?"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

_DRAWN = 1e-6  # a figure is arithmetic on a file: only the last digits may differ
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Tolerance:
    """How far made numbers may lie from committed ones, at most `atol` + `rtol` * |committed|, and why.

    `ties` is the share of a variable's ranks, arg-maxes and truth values that may be others: what ties within rounding is
    decided by the last bit.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    ties: float = 0.0
    why: str = "processors and numbers of threads add in different orders"


USUAL = Tolerance()


def parted(made: xr.Dataset, committed: xr.Dataset, tolerance: Tolerance) -> dict[str, str]:
    """For every variable, coordinate and attribute of either: where they part, or nothing where they do not.

    Texts, truth values and whole-number coordinates must be equal, other numbers within the tolerance. The
    provenance is not compared: it holds versions.
    """
    found = {}
    for name in sorted({*map(str, made.variables), *map(str, committed.variables)}):
        if name not in committed.variables or name not in made.variables:
            found[name] = "is not in the committed result" if name in made.variables else "is no longer made"
        else:
            found[name] = _variable(made[name], committed[name], tolerance, exact=name in committed.coords)
    for name in sorted({*map(str, made.attrs), *map(str, committed.attrs)} - {"provenance"}):
        ours, theirs = made.attrs.get(name), committed.attrs.get(name)
        found[f"attribute {name}"] = _text(str(ours), str(theirs), tolerance)
    return found


def _variable(made: xr.DataArray, committed: xr.DataArray, tolerance: Tolerance, exact: bool) -> str:
    if made.dims != committed.dims or made.shape != committed.shape:
        return f"is {dict(committed.sizes)}, and what is made {dict(made.sizes)}"
    ours, theirs = made.values, committed.values
    numbers = all(v.dtype.kind in "fiu" for v in (ours, theirs))
    ties = 0.0 if exact or not (_whole(ours) and _whole(theirs)) else tolerance.ties
    if not numbers or (exact and "f" not in ours.dtype.kind + theirs.dtype.kind):
        differ = np.asarray(ours != theirs if numbers else ours.astype(str) != theirs.astype(str))
        if differ.sum() <= ties * differ.size:
            return ""
        at = np.unravel_index(int(np.argmax(differ)), differ.shape)
        return f"differs in {int(differ.sum())} of {differ.size}, first{_place(committed, at)}: {theirs[at]}, made {ours[at]}"
    ours, theirs = ours.astype(float), theirs.astype(float)
    close = np.isclose(ours, theirs, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
    if (~close).sum() <= ties * close.size:
        return ""
    with np.errstate(invalid="ignore"):
        far = np.where(close, -1.0, np.nan_to_num(np.abs(ours - theirs), nan=math.inf))
    at = np.unravel_index(int(np.argmax(far)), far.shape)
    return (
        f"differs in {int((~close).sum())} of {close.size}, most{_place(committed, at)}: {theirs[at]:.6g}, made {ours[at]:.6g} "
        f"(allowed: {tolerance.atol:g} + {tolerance.rtol:g} of it)"
    )


def _whole(values: np.ndarray) -> bool:
    """Are these texts, truth values or whole numbers?"""
    if values.dtype.kind != "f":
        return True
    finite = values[np.isfinite(values)]
    return bool((finite == np.round(finite)).all())


def _place(array: xr.DataArray, at: tuple[Any, ...]) -> str:
    names = (str(d) for d in array.dims)
    where = ", ".join(f"{n}={array[n].values[i] if n in array.coords else i}" for n, i in zip(names, at, strict=True))
    return f" at {where}" if where else ""


def _text(made: str, committed: str, tolerance: Tolerance) -> str:
    """Texts are equal where their words are, and the numbers in them within the tolerance and their own rounding."""
    parts = [_NUMBER.split(t) for t in (made, committed)]
    numbers = [_NUMBER.findall(t) for t in (made, committed)]
    near = parts[0] == parts[1] and all(
        a == b or abs(float(a) - float(b)) <= tolerance.atol + _step(b) + tolerance.rtol * abs(float(b))
        for a, b in zip(*numbers, strict=True)
    )
    return "" if near else f"is '{committed[:80]}', made '{made[:80]}'"


def _step(number: str) -> float:
    """The last digit's worth of a rounded number; nothing for a whole one."""
    digits = number.partition("e")[0].partition(".")[2]
    return 10.0 ** -len(digits) if digits else 0.0


def redrawn(drawn: str, committed: str) -> str:
    """Where plotly's JSON of a committed figure parts from what is drawn; nothing where it does not."""
    try:
        theirs = json.loads(committed)
    except ValueError:
        return "is no JSON"
    return _walk(_plain(json.loads(drawn)), _plain(theirs), "")


def _plain(value: Any) -> Any:
    """JSON with plotly's packed arrays unpacked."""
    if isinstance(value, dict):
        if {"dtype", "bdata"} <= set(value):
            array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
            shape = value.get("shape")
            return (array.reshape([int(n) for n in str(shape).split(",")]) if shape else array).tolist()
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _walk(ours: Any, theirs: Any, path: str) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return f"has other parts{_inside(path)}: {', '.join(sorted(ours.keys() ^ theirs.keys()))}"
        items: Any = ((f"{path}.{key}".lstrip("."), ours[key], theirs[key]) for key in ours)
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return f"has {len(theirs)} things{_inside(path)}, drawn {len(ours)}"
        items = ((f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))
    else:
        same = _close(ours, theirs) if _number(ours) and _number(theirs) else ours == theirs
        return "" if same else f"has {str(theirs)[:60]}{_inside(path)}, drawn {str(ours)[:60]}"
    return next((said for key, a, b in items if (said := _walk(a, b, key))), "")


def _inside(path: str) -> str:
    return f" at {path}" if path else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=_DRAWN, abs_tol=_DRAWN)
