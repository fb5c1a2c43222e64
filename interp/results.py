"""How do numbers become labelled, stamped and stored?

Results are xarray Datasets in netCDF files that open with plain `xarray.open_dataset`. `label` is the
one crossing from torch to xarray; `save` writes a file whole or not at all; `load` refuses a file that
is damaged or that this package did not write.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.files import replacing

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

DIMENSIONS = (
    "layer", "head", "batch", "position", "query", "key", "token", "pool", "component", "checkpoint", "bootstrap",
)  # fmt: skip
_MISNOMERS = {
    "pos": "position", "seq": "position", "sequence": "position", "layers": "layer", "heads": "head",
    "q": "query", "k": "key", "pools": "pool", "tokens": "token", "vocab": "token", "sample": "batch",
    "samples": "batch", "step": "checkpoint",
}  # fmt: skip


Keep = Callable[[str, Callable[[], xr.Dataset]], xr.Dataset]


def at_once(name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The `Keep` that keeps nothing: a part of a long run is made, whatever its name."""
    return make()


def label(name: str, values: Tensor | ArrayLike, dims: str, coords: Mapping[str, Any] | None = None) -> xr.DataArray:
    """A named array with named dimensions, e.g. `label("lost", x, "layer head batch", tokens.coords)`.

    Floating-point values become float32 on the CPU. Coordinates whose dimensions are not among `dims`
    are left out; `layer` and `head` are numbered from 0 unless given. Raises `InterpError` for a
    number of dimensions that does not fit, or a misnamed one.
    """
    array = _array(values)
    names = dims.split()
    for dim in names:
        if dim in _MISNOMERS:
            raise InterpError(f"unknown dimension '{dim}': use '{_MISNOMERS[dim]}'")
    if array.ndim != len(names):
        raise InterpError(
            f"'{name}' has shape {array.shape}, and '{dims}' names {len(names)} dimensions: name each one"
        )
    fitting = {key: value for key, value in (coords or {}).items() if set(_dims_of(key, value)) <= set(names)}
    for dim in {"layer", "head"} & set(names) - set(fitting):
        fitting[dim] = np.arange(array.shape[names.index(dim)])
    return xr.DataArray(array, dims=names, coords=fitting, name=name)


def _array(values: Tensor | ArrayLike) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _dims_of(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return (value[0],) if isinstance(value[0], str) else tuple(value[0])
    return (key,)


def check_dimensions(dataset: xr.Dataset, docstring: str) -> None:
    """Raise `InterpError` for a dimension that is neither standard nor named in the experiment's docstring."""
    words = set(docstring.replace("`", " ").replace("[", " ").replace("]", " ").replace(",", " ").split())
    for dim in map(str, dataset.dims):
        if dim in _MISNOMERS:
            raise InterpError(f"unknown dimension '{dim}': use '{_MISNOMERS[dim]}'")
        if dim not in DIMENSIONS and dim not in words:
            raise InterpError(
                f"unknown dimension '{dim}': use one of {', '.join(DIMENSIONS)}, or name it in the docstring"
            )


def versions() -> dict[str, str]:
    """The versions that decide numbers, and this checkout's commit where there is one."""
    names = ("interp", "torch", "transformers", "transformer_lens", "numpy", "xarray")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"commit": _commit()}


def _commit() -> str:
    """The commit of the checkout this package runs from, with `-dirty` where its code was edited."""
    here = Path(__file__).resolve().parent
    try:
        # the checkout must track this very file: a virtual environment may lie inside a foreign repository
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=here, check=True, capture_output=True, timeout=5
        )
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude", "*"],
            cwd=here, check=True, capture_output=True, text=True, timeout=5,
        )  # fmt: skip
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"


def stamp(dataset: xr.Dataset, provenance: Mapping[str, Any]) -> xr.Dataset:
    """The same dataset with its provenance as one JSON attribute."""
    return dataset.assign_attrs(provenance=json.dumps(provenance, sort_keys=True))


def provenance(dataset: xr.Dataset) -> dict[str, Any]:
    """Where a result comes from: experiment, parameters, model, pools, seed, versions.

    Raises `InterpError` where the dataset carries no such record.
    """
    try:
        return dict(json.loads(dataset.attrs["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InterpError("this dataset has no provenance: it was not made by interp.run or its commands") from error


def described(dataset: xr.Dataset) -> dict[str, Any]:
    """What a result holds, as plain values: of each variable its dimensions, shape and mean (None where there is none), and the provenance."""
    variables = {}
    for name, values in dataset.data_vars.items():
        mean = float(values.mean()) if values.dtype.kind in "fiub" and values.size else None
        mean = mean if mean is not None and np.isfinite(mean) else None
        variables[str(name)] = {"dims": list(map(str, values.dims)), "shape": list(values.shape), "mean": mean}
    coords = {str(n): c.values.tolist() for n, c in dataset.coords.items() if c.ndim == 1 and c.size <= 64}
    return {"variables": variables, "coordinates": coords, "provenance": provenance(dataset)}


def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a compressed netCDF file, whole or not at all. Raises `InterpError` where it cannot be written."""
    path = Path(path)
    packed: dict[Any, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "fiub":
            packed[name] = {"zlib": True, "complevel": 5}
        elif variable.dtype.kind in "OU" and variable.ndim > 1:
            # as characters, which compress; netCDF's variable-length strings do not
            packed[name] = {"dtype": "S1", "zlib": True, "complevel": 5}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            dataset.to_netcdf(temporary, engine="h5netcdf", encoding=packed)
    except OSError as error:
        raise InterpError(f"cannot write {path} ({error.strerror or error}): choose another --out") from error
    return path


def load(path: str | Path) -> xr.Dataset:
    """Read a result file, or the `result.nc` of a folder.

    Raises `InterpError` where there is none, where it is damaged, or where this package did not write it.
    """
    path = Path(path)
    path = path / "result.nc" if path.is_dir() else path
    if not path.exists():
        raise InterpError(f"no result at {path}: give the --out folder of an earlier run")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            dataset = file.load()
    except Exception as error:  # h5py raises many kinds for a damaged file
        raise InterpError(
            f"{path} is damaged, or no result at all: give another, or run the experiment again"
        ) from error
    try:
        provenance(dataset)
    except InterpError as error:
        raise InterpError(
            f"{path} is a netCDF file that interp did not write: give a result of 'interp run'"
        ) from error
    return dataset
