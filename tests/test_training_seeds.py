"""Are the findings' claims read rightly from results, and do models of other seeds get their numbers and no others'?"""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from safetensors.torch import load_file, save_file

import interp
from interp import controls, organisms, results, views
from interp.controls.training_seeds import study, view
from interp.controls.training_seeds.claims import CLAIMS, Claim
from interp.errors import InterpError

ROOT = Path(__file__).parent.parent
EVERY = [(recipe, claim) for recipe, claims in CLAIMS.items() for claim in claims]
stored = functools.cache(lambda entry: results.load(ROOT / "figures" / entry / "result.nc"))


@pytest.mark.experiment
@pytest.mark.parametrize(("recipe", "claim"), EVERY, ids=[f"{r}-{c.section}-{c.sentence[:40]}" for r, c in EVERY])
def test_a_claim_holds_for_the_bundled_model(recipe, claim):
    found = stored(claim.entry)
    assert results.provenance(found)["model"]["name"] == recipe
    assert study.holds(claim, claim.value(found)) == 1
    assert np.isfinite([claim.at_least, claim.at_most]).any()  # one that can fail


def test_most_claims_fail_where_ordinary_tokens_are_called_unexposed():
    """The bounds are tight enough to tell glitch tokens from others."""
    other = {"unexposed": "ordinary", "ordinary": "unexposed"}
    told = [
        (claim, stored(claim.entry))
        for claim in CLAIMS["organism"]
        if set(other) <= set(map(str, stored(claim.entry)["pool"].values)) and claim.section != 12
    ]
    held = []
    for claim, found in told:
        swapped = found.assign_coords(pool=[other[str(name)] for name in found["pool"].values])
        if claim.value(swapped) != claim.value(found):  # it is about tokens, and not about the model alone
            held.append(study.holds(claim, claim.value(swapped)) == 1)
    assert len(held) > 15
    assert np.mean(held) < 0.5


def test_a_number_that_does_not_exist_is_no_claim():
    claim = Claim(1, "", "", lambda _: np.nan, "nats", at_least=0)
    assert [study.holds(claim, value) for value in (np.nan, -1.0, 0.0, 1.0)] == [-1, 0, 1, 1]


@pytest.mark.parametrize(
    ("low", "high", "unit", "words"),
    [
        (1, 1, "heads", "1 head"), (2, 2, "heads", "2 heads"), (1, np.inf, "nats", "at least 1 nat"),
        (-np.inf, 0, "heads", "at most 0 heads"), (-0.1, 0.1, "nats", "-0.1 to 0.1 nats"),
        (1, np.inf, "of 3 pools", "at least 1 of 3 pools"), (0.5, 1, "share of the gain", "0.5 to 1 share of the gain"),
    ],
)  # fmt: skip
def test_bounds_in_words(low, high, unit, words):
    assert view._bounds(low, high, unit) == words


def trained_models(folder, seeds=(1,)):
    """Copies of the bundled model that say they are of other seeds, with what distinguishes them."""
    for seed in seeds:
        path = shutil.copytree(organisms.folder("organism"), folder / f"organism-seed{seed}")
        record = json.loads((path / "training.json").read_text())
        record["recipe"]["seed"] = seed
        record["measured"]["bars"] |= {"ordinary: copied well": seed != 2, "short": True}
        (path / "training.json").write_text(json.dumps(record))
    return folder


@pytest.mark.experiment
def test_each_model_gets_its_own_numbers(tmp_path, monkeypatch):
    folder = trained_models(tmp_path / "seeds", (1, 2))
    weights = load_file(folder / "organism-seed2" / "model.safetensors")
    weights["transformer.wpe.weight"].zero_()  # without positions no head finds the previous token
    save_file(weights, folder / "organism-seed2" / "model.safetensors", {"format": "pt"})
    few = tuple(claim for claim in CLAIMS["organism"] if claim.entry == "head_ablation")[:4]
    few += tuple(claim for claim in CLAIMS["organism"] if claim.entry == "path_patching")[:1]
    monkeypatch.setattr(study, "CLAIMS", {"organism": few})
    monkeypatch.setattr(study, "_requested", lambda entry: interp.Request.of(entry, batch=4))
    found = controls.findings_over_seeds(tmp_path / "out", trained=folder, log=lambda _: None)
    assert found["training_seed"].values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found["value"].sel(training_seed=0), found["value"].sel(training_seed=1))
    assert (found["holds"].sel(training_seed=[0, 1]) == 1).all()
    assert not (found["holds"].sel(training_seed=2) == 1).all()
    assert found["missed"].values.tolist() == [["", "", "ordinary: copied well"]]
    assert found["copies"].values.tolist() == [[1, 1, 0]]
    assert found["holds"].sel(training_seed=2).values[-1] == -1
    assert found["refused"].values.tolist()[0][:2] == ["", ""]
    assert found["refused"].values[0, 2].startswith("path_patching: no induction head was found on 'ordinary'")
    text = " ".join(" ".join(str(line) for line in views.tables(found)).split())
    assert "Seed 2 does not copy ordinary tokens, so 'holds' leaves it out." in text
    assert "2 of 2" in text
    assert "of 3" not in text
    said = []
    again = controls.findings_over_seeds(tmp_path / "out", trained=folder, log=said.append)
    assert len(said) == 5  # each run was there, but for the one that is refused
    xr.testing.assert_identical(again["value"], found["value"])


def test_what_lies_in_the_folder_is_checked(tmp_path):
    with pytest.raises(InterpError, match=r"no trained models in .*interp organism train"):
        controls.findings_over_seeds(tmp_path / "out", trained=tmp_path)
    path = trained_models(tmp_path) / "organism-seed1"
    path.rename(tmp_path / "organism-seed3")
    with pytest.raises(InterpError, match="was trained from seed 1: rename it to organism-seed1"):
        controls.findings_over_seeds(tmp_path / "out", trained=tmp_path)
