"""How are matrices read from files, and verdicts turned into results and files?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp import results
from interp.argmax.verdict_table import DTYPES, VERDICTS
from interp.errors import InterpError
from interp.files import replacing

QUESTIONS = ("any state", "after the norm")


def load_matrix(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an output layer from an .npz file.

    Args:
        path: a file that `numpy.savez` wrote.

    Returns:
        W [class d_model] and, if the file holds one, b [class].

    Raises:
        InterpError: there is no such file, or it is not such a file.
    """
    if not Path(path).exists():
        raise InterpError(f"no file {path}: give an .npz file that holds W (classes x dimensions) and, optionally, b")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file)
            weights, bias = (file[name] if name in names else None for name in "Wb")
    except Exception as error:  # zipfile and NumPy raise many kinds for other files
        raise InterpError(f"{path} is not a readable .npz file: save it with numpy.savez(FILE, W=...)") from error
    if weights is None:
        raise InterpError(
            f"{path} has no array W (it has {', '.join(names) or 'none'}): save it with numpy.savez(FILE, W=...)"
        )
    return weights, bias


def matrix_provenance(path: str | Path, rows: np.ndarray) -> dict[str, str]:
    """Provenance of verdicts on a matrix from a file: the file's name and the sha256 of its rows."""
    return {"matrix": str(path), "sha256": hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()}


def dataset(table: pd.DataFrame, rows: np.ndarray | None = None) -> xr.Dataset:
    """Make a labelled result from a table of verdicts.

    Args:
        table: what `argmaxability` returns.
        rows: [class d_model], to be plotted if d_model is 2 or 3.

    Returns:
        `verdict` [question token], an index into the coordinate `verdicts` [code], and `margin` [question token],
        logits, for any state and for states after the last norm; `spacing` [dtype token], the distance between
        neighbouring numbers at the token's logit; `rows` [token axis], if they have two or three dimensions. The
        attribute `stages` says, as JSON, how many tokens each stage decided.
    """
    verdicts = table.reindex(columns=["verdict", "norm_verdict"], fill_value="undecided").map(VERDICTS.index)
    coords: dict[str, Any] = {
        "token": table["id"].to_numpy(),
        "question": list(QUESTIONS),
        "dtype": list(DTYPES),
        "verdicts": ("code", list(VERDICTS)),
    }
    variables = {
        "verdict": (verdicts.to_numpy().T, "question token"),
        "margin": (table.reindex(columns=["margin", "norm_margin"]).to_numpy().T, "question token"),
        "spacing": (table.reindex(columns=[f"spacing_{name}" for name in DTYPES]).to_numpy().T, "dtype token"),
    }
    if rows is not None and rows.shape[1] in (2, 3):
        coords["axis"] = list("xyz"[: rows.shape[1]])
        variables["rows"] = (rows, "token axis")
    found = {name: results.label(name, values, dims, coords) for name, (values, dims) in variables.items()}
    stages = json.dumps(table["stage"].value_counts().to_dict())
    return xr.Dataset(found, attrs={"stages": stages}).assign_coords(verdicts=coords["verdicts"])


def save(table: pd.DataFrame, result: xr.Dataset, folder: Path) -> list[Path]:
    """Write verdicts to a folder, each file atomically.

    Args:
        table: what `argmaxability` returns.
        result: what `dataset` returns, with its provenance.
        folder: an existing folder.

    Returns:
        The paths of argmaxable.parquet, argmaxable.csv (without the combinations) and witnesses.npz; result.nc is also
        written.
    """
    paths = [folder / "argmaxable.parquet", folder / "argmaxable.csv", folder / "witnesses.npz"]
    plain = table.drop(columns="witness")
    with replacing(paths[0]) as temporary:
        plain.to_parquet(temporary)
    with replacing(paths[1]) as temporary:
        plain.drop(columns=["others", "weights"]).to_csv(temporary, index=False)
    held = table.dropna(subset="witness")
    states = np.stack(list(held["witness"])) if len(held) else np.zeros((0, 0))
    single = states.astype(np.float32)
    with replacing(paths[2]) as temporary:  # in single precision if that loses nothing
        np.savez_compressed(temporary, id=held["id"], state=single if (single == states).all() else states)
    results.save(result, folder / "result.nc")
    return paths
