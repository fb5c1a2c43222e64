"""Several models side by side: what they copy, which heads do it, why the rest is not copied. Checkpoints of one training run, too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp import results
from interp.errors import InterpError
from interp.files import writable
from interp.heads import called
from interp.pools import pools as resolve
from interp.progress import track
from interp.report.run import part_of
from interp.report.sections import sections
from interp.results import label
from interp.statistics import BOUNDS, mean_interval
from interp.tokens import check_seed

ASKED = ("gap", "found", "heads", "causes")


def compare(
    models: Sequence[str], out: str | Path = "results/compare", *, pools: Sequence[str] = (), seed: int = 0
) -> xr.Dataset:  # fmt: skip
    """Run the report's gap, glitch tokens, heads and causes on each model, and put them side by side.

    A model is a name as elsewhere, or `name@revision` for a checkpoint on the hub. `pools` are measured on all of them, healthy tokens last;
    without, each model's default pools, which bear the same names only where as much is known of each. Of each model, with 95% intervals over
    sequences (`bound`: mean, low, high):

    - `copied` and `single` [model pool bound]: log-prob (nats) in the second copy where context can tell, of whole blocks and of
      single tokens among ordinary ones;
    - `under_trained` [model set]: how many tokens are called under-trained, how many of these cannot be repeated on request;
    - `heads` [model kind] names those called on the last pool, `called_on` [model], `score` [model kind bound] is the attention score of the best,
      `without_repeat` [model kind] its mean score in sequences that repeat nothing;
    - `deficit` [model pool bound] and `share` [model pool stage bound] (nats): of single tokens, by `glitch_attribution`.

    `of` [model] is its name without the revision, `step` [model] the training step in that of the revision. What a model does not allow is NaN, and `missing` [model] says why.
    What is in `out` already is not run again. Raises `InterpError` for fewer than two models, the same one twice, one that is not there (before
    anything is run), or where nothing can be had of any.
    """
    from interp import load
    from interp.models import located, origin

    if len(models) < 2 or len(set(models)) < len(models):
        raise InterpError("give two models or more, each once: interp compare organism organism-llama")
    check_seed(seed)
    split = {name: _split(name) for name in models}
    for name, revision in split.values():
        located(name, revision)
    asked = [
        replace(s, pools=list(pools) or s.pools) if s.name != "found" else s for s in sections() if s.name in ASKED
    ]
    folder = writable(out)
    parts: list[xr.Dataset] = []
    about: list[dict[str, Any]] = []
    for name in track(list(models), "models", total=len(models)):
        model = load(split[name][0], revision=split[name][1])
        identity = {key: value for key, value in origin(model).items() if key != "name"}
        same = next(
            (other["name"] for other in about if {k: v for k, v in other.items() if k != "name"} == identity), None
        )
        if same is not None:
            raise InterpError(f"'{name}' and '{same}' are the same model: give each once")
        about.append({"name": name, **identity})
        if pools:
            resolve(list(pools), model, seed=seed)  # a pool that is misspelt is said at once
        found, missing = {}, []
        for section in asked:
            try:
                found[section.name] = part_of(section, model, folder / _folder(name) / section.name, seed)
            except InterpError as error:
                missing.append(f"{section.name} ({error})")
        parts.append(_summary(found).assign(missing="; ".join(missing)))
    if not any(part.data_vars.keys() - {"missing"} for part in parts):
        raise InterpError(f"nothing can be had of any of them: {parts[0]['missing'].item()}")
    whole: dict[str, xr.DataArray] = {}
    for part in parts:
        whole |= {str(name): values for name, values in part.data_vars.items() if name not in whole}
    parts = [
        part.assign({name: _empty(values) for name, values in whole.items() if name not in part}) for part in parts
    ]
    index = xr.DataArray(list(models), dims="model", name="model")
    data = xr.concat(parts, index, join="outer", data_vars="all", fill_value={"heads": "-"})
    if "pool" in data.coords:  # in the order of the models, not of the alphabet
        data = data.reindex(pool=list(dict.fromkeys(p for part in parts for p in part["pool"].values)))
    plain, revisions = zip(*split.values(), strict=True)
    data = data.assign_coords(
        of=("model", list(plain)), step=("model", [_step(revision or "") for revision in revisions])
    )
    record = {
        "experiment": "compare",
        "models": about,
        "pools": list(pools),
        "seed": seed,
        "versions": results.versions(),
    }
    result = results.stamp(data, record)
    results.save(result, folder / "result.nc")
    return result


def _split(name: str) -> tuple[str, str | None]:
    """A model's name and its revision; a folder may have an @ in its name."""
    plain, at, revision = name.rpartition("@")
    return (plain, revision) if at and not Path(name).expanduser().exists() else (name, None)


def _folder(name: str) -> str:
    """A folder for a model that two names never share, and that lies where it should."""
    plain = re.sub(r"[^\w.@-]+", "--", name).strip(".-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _empty(values: xr.DataArray) -> xr.DataArray:
    """The same shape, nothing of it known."""
    return xr.full_like(values, "-" if values.dtype == object else np.nan)


def _step(revision: str) -> float:
    """The training step that a revision is named for (step1000, checkpoint-500, 1000); else NaN, as for a commit."""
    found = re.search(r"(?:step|checkpoint|ckpt)[-_]?(\d+)|^(\d{1,9})$", revision, re.I)
    return float(found[1] or found[2]) if found else float("nan")


def _summary(found: dict[str, xr.Dataset]) -> xr.Dataset:
    data: dict[str, xr.DataArray] = {}
    if "gap" in found:
        second = found["gap"]["summary"].sel(measure="log_prob", part="second", drop=True)
        data["copied"] = second.sel(definition="inducible", drop=True)
        if "single" in second["definition"].values:
            data["single"] = second.sel(definition="single", drop=True)
    if "found" in found:
        data["under_trained"] = _under_trained(found["found"])
    if "heads" in found:
        data |= _heads(found["heads"].isel(pool=-1, drop=True))
        data["called_on"] = xr.DataArray(np.array(str(found["heads"]["pool"].values[-1]), dtype=object))
    if "causes" in found:
        for name in ("deficit", "share"):
            bounds = [found["causes"][name + end] for end in ("", "_low", "_high")]
            data[name] = xr.concat(bounds, xr.DataArray(list(BOUNDS), dims="bound", name="bound"))
    return xr.Dataset(
        {name: values.transpose(..., "bound") if "bound" in values.dims else values for name, values in data.items()}
    ).drop_attrs()


def _under_trained(about: xr.Dataset) -> xr.DataArray:
    calls = about["called"].sel(indicator=about.attrs["indicator"]).values.astype(bool)
    counts = [float(calls.sum()), float("nan")]
    if "max_probability" in about:
        counts[1] = float((calls & (about["max_probability"].values < about.attrs["threshold"])).sum())
    return label("under_trained", counts, "set", {"set": ["called", "not repeated"]})


def _heads(found: xr.Dataset) -> dict[str, xr.DataArray]:
    """Which are called, and the best of each kind; NaN scores where no sequences give any."""
    kinds = list(map(str, found["kind"].values))
    names = [", ".join(f"L{la}H{h}" for la, h in called(found, kind)) or "-" for kind in kinds]
    score, null = np.full((len(kinds), len(BOUNDS)), np.nan), np.full(len(kinds), np.nan)
    for i, kind in enumerate(kinds):
        each = found["score"].sel(stripe=kind).stack(at=("layer", "head")).transpose("batch", "at").values
        means = each.mean(0)
        if np.isfinite(means).any():
            best = int(np.nanargmax(means))
            score[i] = mean_interval(each[:, best])
            null[i] = float(found["null"].sel(kind=kind).stack(at=("layer", "head")).isel(at=best).mean())
    coords = {"kind": kinds, "bound": list(BOUNDS)}
    return {
        "heads": xr.DataArray(np.array(names, dtype=object), dims="kind", coords={"kind": kinds}),
        "score": label("score", score, "kind bound", coords),
        "without_repeat": label("without_repeat", null, "kind", coords),
    }
