"""Matrices read from files; verdicts written to them: a table, the witnesses, and a result that figures are drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp import results
from interp.argmax.of_model import DTYPES
from interp.argmax.table import VERDICTS
from interp.errors import InterpError
from interp.files import replacing

QUESTIONS = ("any state", "behind the norm")


def from_file(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """W [class d_model] and, if it holds one, b [class] of an .npz file. Raises `InterpError` for other files."""
    path = Path(path)
    if not path.exists():
        raise InterpError(f"no file {path}: give an .npz file that holds W (classes x dimensions) and, if wanted, b")
    try:
        with np.load(path, allow_pickle=False) as held:
            if not hasattr(held, "files"):
                raise InterpError(f"{path} holds one array without a name: save it with numpy.savez(FILE, W=...)")
            if "W" not in held.files:
                raise InterpError(
                    f"{path} has no array W (it has {', '.join(held.files) or 'none'}): save it with numpy.savez(FILE, W=...)"
                )
            return held["W"], held["b"] if "b" in held.files else None
    except InterpError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds for what is no such file
        raise InterpError(f"{path} is no .npz file that NumPy reads: save it with numpy.savez(FILE, W=...)") from error


def dataset(table: pd.DataFrame) -> xr.Dataset:
    """`verdict` [question token] as a code of `verdicts` [code], `margin` [question token], `spacing` [dtype token], from a table of verdicts."""
    code = {name: i for i, name in enumerate(VERDICTS)}
    none = np.full(len(table), np.nan)
    verdict, margin = table.get("norm_verdict"), table.get("norm_margin")
    coords: dict[str, Any] = {
        "token": table["id"].to_numpy(), "question": list(QUESTIONS), "dtype": list(DTYPES), "verdicts": ("code", list(VERDICTS)),
    }  # fmt: skip
    codes = [
        table["verdict"].map(code),
        np.full(len(table), code["undecided"]) if verdict is None else verdict.map(code),
    ]
    margins = [table["margin"], none if margin is None else margin]
    spacings = [table.get(f"spacing_{d}", none) for d in DTYPES]
    found = {
        "verdict": results.label("verdict", np.stack(codes), "question token", coords),
        "margin": results.label("margin", np.stack(margins), "question token", coords),
        "spacing": results.label("spacing", np.stack(spacings), "dtype token", coords),
    }
    return xr.Dataset(found).assign_coords(verdicts=coords["verdicts"])


def summary(table: pd.DataFrame, source: Any, path: Path | None = None) -> xr.Dataset:
    """The result of a table: `dataset`, which stage decided how many (attribute `stages`), and, of few dimensions, the `rows` [token axis]."""
    import hashlib
    import json

    found = dataset(table)
    record: dict[str, Any] = {"experiment": "argmaxable", "versions": results.versions()}
    if hasattr(source, "original_model"):
        from interp.models import origin

        record["model"] = origin(source)
    else:
        rows = np.asarray(source[0])
        record["matrix"] = str(path)
        record["sha256"] = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
        if rows.shape[1] in (2, 3):
            coords = {"token": table["id"].to_numpy(), "axis": list("xyz"[: rows.shape[1]])}
            found["rows"] = results.label("rows", rows, "token axis", coords)
    found = found.assign_attrs(stages=json.dumps(table["stage"].value_counts().to_dict()))
    return results.stamp(found, record)


def save(table: pd.DataFrame, result: xr.Dataset, folder: Path) -> list[Path]:
    """Write argmaxable.parquet, argmaxable.csv (without the combinations), witnesses.npz and result.nc, each whole or not at all."""
    paths = [folder / "argmaxable.parquet", folder / "argmaxable.csv", folder / "witnesses.npz"]
    plain = table.drop(columns="witness")
    with replacing(paths[0]) as temporary:
        plain.to_parquet(temporary)
    with replacing(paths[1]) as temporary:
        plain.drop(columns=["others", "weights"]).to_csv(temporary, index=False)
    has = table["witness"].notna().to_numpy()
    states = np.stack(list(table["witness"][has])) if has.any() else np.zeros((0, 0))
    with replacing(paths[2]) as temporary:
        np.savez_compressed(temporary, id=table["id"].to_numpy()[has], state=_short(states))
    results.save(result, folder / "result.nc")
    return paths


def _short(states: np.ndarray) -> np.ndarray:
    """In single precision where nothing is lost by it."""
    single = states.astype(np.float32)
    return single if (single == states).all() else states
