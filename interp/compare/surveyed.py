"""What do the models of a survey copy, which tokens fail, which heads copy: over models, checkpoints and seeds?"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp import cache, results
from interp.compare.comparison import _causes, _copying, _heads, _run_and_step, _under_trained
from interp.compare.survey_page import write_survey_page
from interp.errors import InterpError
from interp.files import writable
from interp.places import Place
from interp.progress import track
from interp.request import Request
from interp.runner import to_stderr

AS_PUBLISHED = -1  # the checkpoint of a model whose name tells none
APPEARING = ("copying gap", "induction head", "glitch tokens")
_GAP = 1.0  # nats from which there is one
_SUMMARIES: dict[str, Callable[[xr.Dataset], dict[str, xr.DataArray]]] = {
    "repeated_tokens": _copying,
    "undertrained": _under_trained,
    "induction_heads": _heads,
    "glitch_attribution": _causes,
}
_SEED = re.compile(r"[-_.]seed[-_]?(\d+)$")


def is_survey(folder: str | Path) -> bool:
    """Does a survey lie there?"""
    return bool(Place(folder).system.glob(f"{Place(folder).root}/cells/*/cell.json"))


def compare_survey(
    folder: str | Path, out: str | Path = "results/compare", *, log: cache.Log = to_stderr
) -> xr.Dataset:
    """Read the cells of a survey into one Dataset, and write it with a page that can be searched and sorted.

    Nothing is run. Cells of `repeated_tokens`, `undertrained`, `induction_heads` and `glitch_attribution` are read.

    Args:
        folder: the survey's, or its address.
        out: a folder for `result.nc` and `survey.html`.
        log: is told how many cells of other experiments were left out.

    Returns:
        The variables that `compare` has of each model, over `model`, `checkpoint` and `seed`, and

        - `gap` [model checkpoint seed pool]: by how many nats less the tokens of a pool are copied than those of the
          last one;
        - `appears` [appearing model seed]: the first checkpoint with a gap of 1 nat, with a head classified as
          an induction head, with a token that is detected and not repeated; NaN where there is none, or one checkpoint.

        The checkpoint is the number in a revision or a folder's name (`step1000`), -1 where there is none; the seed is
        that of the training where the model's name ends in `-seed1`, else that of the drawing. NaN (or a dash) is what
        the survey does not hold.

    Raises:
        InterpError: there is nothing to compare, two cells answer the same question with other options, or a result is
            damaged.
    """
    place = Place(folder)
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    by_question: dict[Any, str] = {}
    left_out = 0
    cells = place.read_all("cells/*/cell.json")
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in track(sorted(cells.items()), "cells", total=len(cells)):
            request = Request.from_json(json.loads(text)["request"])
            if request.experiment not in _SUMMARIES or request.prompts is not None:
                left_out += 1
                continue
            at = _coordinates(request)
            cell = Path(name).parent.name
            other = by_question.setdefault((at, request.experiment), cell)
            if other != cell:
                raise InterpError(
                    f"{other} and {cell} ask {request.experiment} of the same model, checkpoint and seed, with other "
                    "options: survey them into folders of their own"
                )
            path = Path(scratch) / "result.nc"
            place.fetch(f"cells/{cell}/result.nc", path)
            result = results.load(path)
            found.setdefault(at, {}).update(_SUMMARIES[request.experiment](result))
    if left_out:
        log(f"{left_out} cells of other experiments are left out: 'interp show' shows each")
    if not found:
        raise InterpError(f"{folder} holds no cells of {', '.join(_SUMMARIES)}: nothing can be compared")
    result = _labelled(found)
    record = {"experiment": "compare_survey", "cells": len(by_question), "versions": results.versions()}
    result = results.stamp(result, record)
    to = writable(out)
    results.save(result, to / "result.nc")
    write_survey_page(result, to / "survey.html")
    return result


def _coordinates(request: Request) -> tuple[str, int, int]:
    """Model, checkpoint and seed of a cell, by the names that were given."""
    revision, checkpoint = request.model.revision, request.model.checkpoint
    name, step = _run_and_step(request.model.name, revision)
    if checkpoint is not None:
        step = checkpoint
    if revision is not None and not np.isfinite(step):
        name = f"{name}@{revision}"
    trained = _SEED.search(name)
    seed = request.seed or 0
    if trained is not None:
        if seed:
            raise InterpError(f"'{name}' has a seed of its training, and was drawn with seed {seed}: use one of them")
        name, seed = name[: trained.start()], int(trained[1])
    return name, int(step) if np.isfinite(step) else AS_PUBLISHED, seed


def _labelled(found: Mapping[tuple[str, int, int], Mapping[str, xr.DataArray]]) -> xr.Dataset:
    """One Dataset over model, checkpoint and seed; NaN or a dash where a combination lacks something."""
    parts = [xr.Dataset(dict(data)).drop_attrs() for data in found.values()]
    order = [dict.fromkeys(map(str, part["pool"].values)) for part in parts if "pool" in part.coords]
    texts = {"heads": "-", "classified_on": "-"}
    flat = xr.concat(
        parts, "cell", join="outer", data_vars="all", coords="minimal", compat="override", fill_value=texts
    )
    for axis, values in zip(("model", "checkpoint", "seed"), zip(*found, strict=True), strict=True):
        flat = flat.assign_coords({axis: ("cell", list(values))})
    whole = flat.set_index(cell=["model", "checkpoint", "seed"]).unstack("cell")
    if order:  # as the cells have it, and not by the alphabet: healthy tokens last
        pools = list(dict.fromkeys(pool for names in order for pool in names))
        whole = whole.reindex(pool=pools)
    for name in texts.keys() & set(whole.data_vars):
        whole[name] = whole[name].where(whole[name].notnull(), "-").astype(object)
    if "copied" in whole:
        mean = whole["copied"].sel(bound="mean", drop=True)
        whole["gap"] = mean.isel(pool=-1, drop=True) - mean
    whole["appears"] = _first(whole)
    return whole.transpose("model", "checkpoint", "seed", ...)


def _first(whole: xr.Dataset) -> xr.DataArray:
    """[appearing model seed], the first checkpoint at which each is there."""
    there = {}
    if "gap" in whole:
        there["copying gap"] = (whole["gap"] > _GAP).any("pool")
    if "heads" in whole:
        there["induction head"] = whole["heads"].sel(kind="induction", drop=True) != "-"
    if "under_trained" in whole:
        there["glitch tokens"] = whole["under_trained"].sel(set="not repeated", drop=True) > 0
    steps = whole["checkpoint"].astype(float)
    shape = xr.DataArray(
        np.full((whole.sizes["model"], whole.sizes["seed"]), np.nan),
        coords={"model": whole["model"], "seed": whole["seed"]},
        dims=("model", "seed"),
    )
    several = whole.sizes["checkpoint"] > 1
    first = [
        steps.where(there[what]).min("checkpoint").transpose("model", "seed") if several and what in there else shape
        for what in APPEARING
    ]
    return xr.concat(first, xr.DataArray(list(APPEARING), dims="appearing", name="appearing"))
