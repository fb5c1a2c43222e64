"""Do the findings hold for models trained from other seeds? Every claim, on the bundled model and on its siblings.

The bundled model is seed 0. The others are trained by `interp organism train RECIPE --seed N`, which changes the
initial weights, the order of the text, the blocks and the canaries. Nothing is chosen: a model that misses an
acceptance criterion is among them, and the criterion is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp import cache, gallery, organisms, results
from interp.controls.training_seeds.claims import CLAIMS, Claim
from interp.errors import InterpError
from interp.progress import track
from interp.request import Request
from interp.results import label
from interp.runner import run_request, to_stderr

_NAMED = re.compile(r"(?P<recipe>.+)-seed(?P<seed>\d+)$")
_SHARES = ("glitch_attribution", "glitch_attribution_single")  # whose shares by cause are kept, of each model


def findings_over_seeds(
    out: str | Path, *, trained: str | Path, fresh: bool = False, log: cache.Log = to_stderr
) -> xr.Dataset:
    """Test every claim of the findings about `organism` and `organism-llama` on models trained from other seeds.

    Args:
        out: a folder; finished runs are kept in it, and the same call resumes after an interruption.
        trained: the folder in which the other models lie, as `organism-seed1`, `organism-llama-seed2`, ...; written by
            `interp organism train`. A recipe without any is left out.
        fresh: repeat finished runs.
        log: receives a line for each run that was taken from an earlier call.

    Returns:
        `value` [claim training_seed], the number that decides a claim, in the claim's `unit`, NaN where a model was not
        trained, the number does not exist (a head that is of no kind) or its experiment refuses to run; `holds` [claim
        training_seed], 1, 0, or -1 where there is no number; `at_least` and `at_most` [claim], its bounds. `section`
        [claim] of the findings; `about`, `sentence` and `entry` [claim]: the recipe, what is claimed, and the gallery
        entry that is run.

        `share` [recipe setting stage training_seed], shares by cause of the deficit of unexposed tokens in nats, in
        blocks and single; `deficit` [recipe setting training_seed]; both with the 95% intervals of their runs
        (`share_low`, `share_high`, ...). `missed` [recipe training_seed]: the acceptance
        criteria that the trained model does not meet, separated by "; ", "" where it meets all, "-" where there is no
        model. `copies` [recipe training_seed], 1 where it meets those about ordinary tokens, 0 where not, -1 where
        there is no model: the findings are about models that copy ordinary tokens. `refused` [recipe training_seed]:
        what the experiments said that do not run on this model.

    Raises:
        InterpError: no such models are in the folder, or one was trained from another seed than its name says.
    """
    models = _models(trained)
    seeds = sorted({seed for by_seed in models.values() for seed in by_seed})
    runs = [
        (recipe, seed, entry)
        for recipe, by_seed in models.items()
        for seed in by_seed
        for entry in dict.fromkeys(claim.entry for claim in CLAIMS[recipe])
    ]
    found: dict[tuple[str, int, str], xr.Dataset] = {}
    refused: dict[tuple[str, int], list[str]] = {}
    with cache.runs_below(out):
        for recipe, seed, entry in track(runs, "runs", total=len(runs)):
            where = Path(out) / f"{recipe}-seed{seed}" / entry
            request = _on(_requested(entry), models[recipe][seed])
            try:
                found[recipe, seed, entry] = run_request(request, out=where, log=log, fresh=fresh)
            except InterpError as why:  # a model that learned no circuit has none to patch
                refused.setdefault((recipe, seed), []).append(f"{entry}: {why}")
    claims = [(recipe, claim) for recipe in models for claim in CLAIMS[recipe]]
    value = np.full((len(claims), len(seeds)), np.nan)
    for row, (recipe, claim) in enumerate(claims):
        for column, seed in enumerate(seeds):
            if (recipe, seed, claim.entry) in found:
                value[row, column] = claim.value(found[recipe, seed, claim.entry])
    result = _labelled(claims, seeds, value).merge(_shares(found, list(models), seeds))
    of_model = ("recipe", "training_seed")
    every = [[(recipe, seed) for seed in seeds] for recipe in models]
    criteria = [[_criteria(models[recipe].get(seed)) for recipe, seed in row] for row in every]
    missed = [[_missed(one) for one in row] for row in criteria]
    said = [["; ".join(refused.get(one, [])) for one in row] for row in every]
    result["missed"] = (of_model, np.array(missed, dtype=object))
    result["refused"] = (of_model, np.array(said, dtype=object))
    copies = np.array([[_copies(one) for one in row] for row in criteria], np.int8)
    result["copies"] = (of_model, copies)
    record = {
        "experiment": "findings_over_seeds",
        "recipes": list(models),
        "seeds": seeds,
        "versions": results.versions(),
    }
    result = results.stamp(result, record)
    results.save(result, Path(out) / "result.nc")
    return result


def holds(claim: Claim, value: float) -> int:
    """1 if a number lies within a claim's bounds, 0 if not, -1 if there is none."""
    return -1 if np.isnan(value) else int(claim.at_least <= value <= claim.at_most)


def _models(trained: str | Path) -> dict[str, dict[int, str]]:
    """By recipe and seed, the model's name; seed 0 is the bundled one."""
    found: dict[str, dict[int, str]] = {recipe: {0: recipe} for recipe in CLAIMS}
    for path in sorted(Path(trained).glob("*-seed*")):
        named = _NAMED.fullmatch(path.name)
        if named is None or named["recipe"] not in CLAIMS or not (path / "training.json").exists():
            continue
        seed = json.loads((path / "training.json").read_text())["recipe"]["seed"]
        if seed != int(named["seed"]):
            raise InterpError(f"{path} was trained from seed {seed}: rename it to {named['recipe']}-seed{seed}")
        if seed:
            found[named["recipe"]][seed] = str(path)
    several = {recipe: by_seed for recipe, by_seed in found.items() if len(by_seed) > 1}
    if not several:
        raise InterpError(
            f"no trained models in {trained}: 'interp organism train organism --seed 1 --out "
            f"{Path(trained) / 'organism-seed1'}' makes one"
        )
    return several


def _requested(entry: str) -> Request:
    """What a gallery entry runs."""
    request = next(one.request for one in gallery.entries() if one.folder == entry)
    assert request is not None
    return request


def _on(request: Request, model: str) -> Request:
    """The same on another model."""
    return request.model_copy(update={"model": request.model.model_copy(update={"name": model})})


def _criteria(model: str | None) -> dict[str, bool] | None:
    """Which acceptance criteria a model meets; None where there is no model."""
    if model is None:
        return None
    folder = Path(model) if Path(model).exists() else organisms.folder(model)
    bars: dict[str, bool] = json.loads((folder / "training.json").read_text())["measured"]["bars"]
    return bars


def _missed(criteria: Mapping[str, bool] | None) -> str:
    return "-" if criteria is None else "; ".join(name for name, met in criteria.items() if not met)


def _copies(criteria: Mapping[str, bool] | None) -> int:
    """1 if a model meets the criteria about ordinary tokens, 0 if not, -1 where there is no model."""
    return -1 if criteria is None else int(all(met for name, met in criteria.items() if name.startswith("ordinary:")))


def _labelled(claims: Sequence[tuple[str, Claim]], seeds: Sequence[int], value: np.ndarray) -> xr.Dataset:
    held = [[holds(claim, number) for number in row] for (_, claim), row in zip(claims, value, strict=True)]
    coords = {"claim": np.arange(len(claims)), "training_seed": list(seeds)}
    data = {
        "value": label("value", value, "claim training_seed", coords),
        "holds": label("holds", np.array(held, np.int8), "claim training_seed", coords),
        "at_least": label("at_least", np.array([claim.at_least for _, claim in claims]), "claim", coords),
        "at_most": label("at_most", np.array([claim.at_most for _, claim in claims]), "claim", coords),
        "section": label("section", np.array([claim.section for _, claim in claims]), "claim", coords),
    }
    texts = {
        "about": [recipe for recipe, _ in claims],
        "sentence": [claim.sentence for _, claim in claims],
        "entry": [claim.entry for _, claim in claims],
        "unit": [claim.unit for _, claim in claims],
    }
    return xr.Dataset(data).assign({name: ("claim", np.array(said, object)) for name, said in texts.items()})


def _shares(
    found: Mapping[tuple[str, int, str], xr.Dataset], recipes: Sequence[str], seeds: Sequence[int]
) -> xr.Dataset:
    """Shares by cause of unexposed tokens [recipe setting stage training_seed], the deficit, and their intervals."""
    stages: list[str] = next((one["stage"].values.tolist() for one in found.values() if "stage" in one.coords), [])
    every: dict[str, list[Any]] = {"recipe": list(recipes), "setting": ["blocks", "single"]}
    coords = every | {"stage": stages, "training_seed": list(seeds)}
    dims = {"share": "recipe setting stage training_seed", "deficit": "recipe setting training_seed"}
    ends = ("", "_low", "_high")
    numbers = {
        f"{name}{end}": np.full([len(coords[dim]) for dim in of.split()], np.nan)
        for name, of in dims.items()
        for end in ends
    }
    for (recipe, seed, entry), one in found.items():
        if not entry.startswith(_SHARES[0]) or entry.endswith("_doses"):
            continue
        at, setting = one.sel(pool="unexposed"), 1 if entry.endswith("_single") else 0
        place = recipes.index(recipe), setting, ..., seeds.index(seed)
        for name in numbers:
            numbers[name][place] = at[name].values
    return xr.Dataset(
        {name: label(name, values, dims[name.partition("_")[0]], coords) for name, values in numbers.items()}
    )
