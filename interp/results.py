"""How do numbers become labelled, stamped and stored?

Results are xarray Datasets in netCDF files that open with plain `xarray.open_dataset`. `label` is the only crossing
from torch to xarray; `save` writes a file atomically; `load` refuses a file that is damaged or that this package did
not write.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp import variables
from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.files import replacing, write_errors
from interp.progress import track

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


SCHEMA = 2  # of provenance and names; results of schema 1 have no such entry
_MANY = 10_000  # number of texts from which they are stored as characters
_CLOSE = 0.8  # similarity (at most 1) from which a name counts as a misspelling

Keep = Callable[[str, Callable[[], xr.Dataset]], xr.Dataset]


def at_once(name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The `Keep` that keeps nothing: a part of a long run is always computed, whatever its name."""
    return make()


def each(
    keep: Keep, makes: Mapping[str, Callable[[], xr.Dataset]], what: str, *, even: bool = True
) -> list[xr.Dataset]:
    """Parts of a long run that do not depend on one another, kept one by one.

    Args:
        keep: `keep(name, make)`. One that has a method `together(makes)`, as a survey's has, is told first: it may have
            the parts made elsewhere.
        makes: what makes each part, by names that tell it from all other parts of the run.
        what: is done, for the progress bar.
        even: whether each takes about as long as the others.

    Returns:
        The parts, in their order.
    """
    together = getattr(keep, "together", None)
    if together is not None:
        together(makes)
    return [keep(name, make) for name, make in track(makes.items(), what, total=len(makes), even=even)]


@takes_what_it_says
def label(name: str, values: Tensor | ArrayLike, dims: str, coords: Mapping[str, Any] | None = None) -> xr.DataArray:
    """Make a named array with named dimensions, as experiments return them.

    Args:
        name: the name of the variable.
        values: a tensor or an array; floating-point values become float32 on the CPU.
        dims: names of the dimensions, separated by spaces: standard ones (`interp.results.DIMENSIONS`), or your own.
        coords: coordinates; those whose dimensions are not among `dims` are left out.

    Returns:
        The array; `layer` and `head` are numbered from 0 unless given.

    Raises:
        InterpError: the number of dimensions does not fit, or one is a misspelling of a standard one.

    Example:
        >>> interp.label("lost", np.zeros((2, 4)), "layer head").dims
        ('layer', 'head')
    """
    array = _array(values)
    names = dims.split()
    for dim in names:
        _check_dimension(dim)
    if array.ndim != len(names):
        raise InterpError(
            f"'{name}' has shape {array.shape}, and '{dims}' names {len(names)} dimensions: name each one"
        )
    fitting = {key: value for key, value in (coords or {}).items() if set(_dims_of(key, value)) <= set(names)}
    for dim in {"layer", "head"} & set(names) - set(fitting):
        fitting[dim] = np.arange(array.shape[names.index(dim)])
    return xr.DataArray(array, dims=names, coords=fitting, name=name)


def joined(parts: Sequence[xr.Dataset], names: Sequence[str], *, outer: bool = False) -> xr.Dataset:
    """Results of pools, or of sets of prompts, joined along a dimension `pool`.

    Args:
        parts: one for each. Coordinates of single sequences may vary; the others must agree.
        names: of the pools.
        outer: allow parts to differ in number and length of sequences, and fill with NaN.

    Raises:
        InterpError: they differ in shape in other ways.
    """
    said = {n: v for n, v in parts[0].attrs.items() if all(part.attrs.get(n) == v for part in parts)}
    parts = [part.drop_attrs(deep=False) for part in parts]
    varying = [name for name, c in parts[0].coords.items() if "batch" in c.dims and name != "batch"]
    index = xr.DataArray(list(names), dims="pool", name="pool")
    try:
        found = xr.concat(
            parts, index, data_vars="all", coords=varying, compat="equals", join="outer" if outer else "exact"
        )
    except ValueError as error:
        raise InterpError(
            f"the pools' results differ in shape ({error}): return the same dimensions for each"
        ) from error
    return found.assign_attrs(said)


def _array(values: Tensor | ArrayLike) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InterpError(f"values cannot be a {type(values).__name__} like that: give an array of numbers") from error
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _dims_of(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return (value[0],) if isinstance(value[0], str) else tuple(value[0])
    return (key,)


@takes_what_it_says
def check_dimensions(dataset: xr.Dataset) -> None:
    """Raise `InterpError` for a dimension without a name, or with a wrong name for a standard one."""
    for dim in map(str, dataset.dims):
        _check_dimension(dim)


def _check_dimension(dim: str) -> None:
    if dim in _MISNOMERS:
        raise InterpError(f"unknown dimension '{dim}': use '{_MISNOMERS[dim]}'")
    if re.fullmatch(r"dim_\d+", dim):
        raise InterpError(f"dimension '{dim}' has no name: give it one, e.g. with interp.label")
    close = [] if dim in DIMENSIONS else get_close_matches(dim, DIMENSIONS, 1, _CLOSE)
    if close:
        raise InterpError(f"unknown dimension '{dim}': did you mean '{close[0]}'?")


@takes_what_it_says
def versions() -> dict[str, str]:
    """The versions that affect numbers, and this checkout's commit where there is one."""
    names = ("interp", "torch", "transformers", "transformer_lens", "numpy", "xarray")
    found = {"python": platform.python_version()} | {name: installed(name) for name in names}
    return found | {"commit": _commit()}


@cache
def installed(name: str) -> str:
    """The version of a distribution, at the first call: what is installed later is not what runs."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache
def _commit() -> str:
    """The commit of the checkout that this package runs from, at the first call; `-dirty` if its code was edited."""

    def git(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=here, check=check, capture_output=True, text=True, timeout=5)

    here = Path(__file__).resolve().parent
    try:
        # the checkout must track this very file: a virtual environment may be inside another repository
        git("ls-files", "--error-unmatch", __file__)
        commit = git("rev-parse", "--short=12", "HEAD").stdout.strip()
        return commit + ("-dirty" if git("diff", "--quiet", "HEAD", "--", str(here), check=False).returncode else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


@takes_what_it_says
def stamp(dataset: xr.Dataset, provenance: Mapping[str, Any]) -> xr.Dataset:
    """The same dataset with its variables described and its provenance (current schema) as a JSON attribute."""
    if "experiment" in provenance:  # and is not a part of a run
        dataset = variables.described(dataset, str(provenance["experiment"]))
    return dataset.assign_attrs(provenance=json.dumps({"schema": SCHEMA, **provenance}, sort_keys=True))


def by_pool(result: xr.Dataset) -> dict[str, xr.Dataset]:
    """The tokens of each pool, of a result whose dimension `token` holds those of all pools."""
    pools = result["pool"].values
    return {pool: result.isel(token=np.flatnonzero(pools == pool)) for pool in dict.fromkeys(map(str, pools))}


@takes_what_it_says
def provenance(dataset: xr.Dataset) -> dict[str, Any]:
    """Read where a result comes from.

    Args:
        dataset: a result of `interp.run` or of a command.

    Returns:
        The record, a dictionary: experiment, request, parameters, model, pools, sequences, seed and versions.

    Raises:
        InterpError: the dataset has no such record.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> record = interp.provenance(result)
        >>> record["experiment"], record["model"]["name"], record["seed"]
        ('repeated_tokens', 'wired', 0)
    """
    try:
        return dict(json.loads(dataset.attrs["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InterpError("this dataset has no provenance: it was not made by interp.run or its commands") from error


@takes_what_it_says
def record(dataset: xr.Dataset) -> dict[str, Any]:
    """The provenance, or an empty dictionary if there is none."""
    return provenance(dataset) if "provenance" in dataset.attrs else {}


@takes_what_it_says
def described(dataset: xr.Dataset) -> dict[str, Any]:
    """What a result holds, as plain values: for each variable its dimensions, shape and mean (None where undefined),
    and the provenance.
    """
    variables = {}
    for name, values in dataset.data_vars.items():
        mean = float(values.mean()) if values.dtype.kind in "fiub" and values.size else None
        mean = mean if mean is not None and np.isfinite(mean) else None
        variables[str(name)] = {"dims": list(map(str, values.dims)), "shape": list(values.shape), "mean": mean}
    coords = {str(n): c.values.tolist() for n, c in dataset.coords.items() if c.ndim == 1 and c.size <= 64}
    return {"variables": variables, "coordinates": coords, "provenance": provenance(dataset)}


@takes_what_it_says
def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a compressed netCDF file atomically. Raises `InterpError` where it cannot be written."""
    path = Path(path)
    if not path.name:
        raise InterpError(f"'{path}' is not a file name: give one, such as results/result.nc")
    packed: dict[Any, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "fiub":
            packed[name] = {"zlib": True, "complevel": 5}
        elif variable.dtype.kind in "OU" and (variable.ndim > 1 or variable.size > _MANY):
            # as characters, which compress; netCDF's variable-length strings do not
            packed[name] = {"dtype": "S1", "zlib": True, "complevel": 5}
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # joined from loaded ones, a variable has the first one's encoding: its texts would be cut to that length
            dataset.drop_encoding().to_netcdf(temporary, engine="h5netcdf", encoding=packed)
    return path


# the names of variables, dimensions and coordinate entries in results of schema 1, by experiment
_RENAMED: dict[str, dict[str, str]] = {
    "attention_scores": {"stripe": "key_kind"},
    "induction_heads": {"stripe": "key_kind", "looked": "argmax_share", "line": "threshold", "called": "classified"},
    "head_ablation": {"called": "classified"},
    "undertrained": {"called": "detected"},
    "repeat_prompt": {"said": "answer", "sampled_said": "sampled_answer"},
    "training": {"stripe": "key_kind"},
    "compare": {"called_on": "classified_on"},
}
_RENAMED_ENTRIES: dict[str, dict[str, dict[str, str]]] = {
    "embedding_repair": {"repair": {"fresh": "gaussian", "parts": "subword_mean"}},
    "compare": {"set": {"called": "detected"}},
}
# coordinate entries that were worded differently in any earlier result, of schema 2 too
_REWORDED: dict[str, dict[str, dict[str, str]]] = {
    "argmaxability": {"question": {"behind the norm": "after the norm"}},
    "false_demonstrations": {"group": {"called": "classified"}},
    "glitch_attribution": {"combination": {"matching in called heads": "matching in classified heads"}},
    "glitch_heads": {"group": {"called": "classified"}, "head_group": {"called": "classified"}},
}
_RENAMED_EXPERIMENTS = {
    "attention_stripes": "attention_scores",
    "argmaxable": "argmaxability",
    "organism train": "training",
}


@takes_what_it_says
def upgraded(dataset: xr.Dataset) -> xr.Dataset:
    """A result of an earlier release with today's names; any other unchanged."""
    facts = record(dataset)
    if not facts:
        return dataset
    if "schema" not in facts:
        dataset = _of_schema_1(dataset, facts)
    return _with_entries(dataset, _REWORDED.get(str(record(dataset).get("experiment")), {}))


def _of_schema_1(dataset: xr.Dataset, facts: Mapping[str, Any]) -> xr.Dataset:
    """A result of schema 1, with the names of schema 2."""
    # a census was marked differently
    name = str(facts.get("experiment") or ("census" if facts.get("census") else ""))
    name = _RENAMED_EXPERIMENTS.get(name, name)
    names = {old: new for old, new in _RENAMED.get(name, {}).items() if old in {*dataset.variables, *dataset.dims}}
    dataset = _with_entries(dataset.rename(names), _RENAMED_ENTRIES.get(name, {}))
    if "tokenizer" in facts:
        dataset = dataset.assign_attrs(tokenizer_attributes(facts))
    return dataset.assign_attrs(provenance=json.dumps({**facts, "experiment": name}, sort_keys=True))


def _with_entries(dataset: xr.Dataset, renamed: Mapping[str, Mapping[str, str]]) -> xr.Dataset:
    """A dataset in which entries of one-dimensional coordinates have other names."""
    for coord, entries in renamed.items():
        if coord in dataset.coords and not set(entries).isdisjoint(map(str, dataset[coord].values)):
            values = [entries.get(str(value), value) for value in dataset[coord].values]
            new = (dataset[coord].dims, np.array(values, dtype=object), dataset[coord].attrs)
            dataset = dataset.assign_coords({coord: new})
    return dataset


@takes_what_it_says
def tokenizer_attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a census, as attributes of its summary, from its provenance."""
    if not {"tokenizer", "rows"} <= set(facts):
        raise InterpError("this record is not of a census: it names no tokenizer")
    tokenizer = {k if k == "beyond_the_embedding" else f"tokenizer_{k}": v for k, v in facts["tokenizer"].items()}
    return {"model_name": (facts.get("model") or {}).get("name", ""), "rows": facts["rows"], **tokenizer}


@takes_what_it_says
def load(path: str | Path) -> xr.Dataset:
    """Read a result file, or the `result.nc` of a folder.

    Results of earlier releases get today's names. Raises `InterpError` if there is none, it is damaged, this package
    did not write it, or a newer release wrote it with a schema unknown to this one.
    """
    path = Path(path)
    path = path / "result.nc" if path.is_dir() else path
    if not path.exists():
        raise InterpError(f"no result at {path}: give the --out folder of an earlier run")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            dataset = file.load()
    except Exception as error:  # h5py raises many kinds of exception for a damaged file
        raise InterpError(f"{path} is damaged, or not a result: give another, or run the experiment again") from error
    try:
        facts = provenance(dataset)
    except InterpError as error:
        raise InterpError(
            f"{path} is a netCDF file that interp did not write: give a result of 'interp run'"
        ) from error
    _check_schema(path, facts)
    dataset = upgraded(dataset)
    name = record(dataset).get("experiment")
    return dataset if name is None else variables.described(dataset, str(name))


def _check_schema(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise `InterpError` for a result with a schema unknown to this release."""
    schema, version = facts.get("schema", 1), (facts.get("versions") or {}).get("interp")
    if schema not in range(1, SCHEMA + 1):
        raise InterpError(
            f"{path} has schema {schema}{f', of interp {version}' if version else ''}, and this release reads up to "
            f"{SCHEMA}: pip install --upgrade interp, or open it with xarray.open_dataset"
        )
