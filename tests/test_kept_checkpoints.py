"""When in training does each stage heal: are exposures, the cluster and what is taken up those of the kept checkpoints?"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import TINY
from typer.testing import CliRunner

import interp
from interp import controls, results, views
from interp.cli import app
from interp.controls.kept_checkpoints import study
from interp.errors import InterpError
from interp.organisms import exposure, folder
from interp.organisms.batches import Batches
from interp.organisms.corpus import corpus
from interp.organisms.training import train
from interp.organisms.vocabulary import train_tokenizer
from interp.tokens import Pool

ROOT = Path(__file__).parent.parent
STORED = ROOT / "interp/controls/kept_checkpoints/checkpoints.nc"
KEPT = (0, 12)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    for i, piece in enumerate(corpus().seen[:60]):
        (place / f"{i}.py").write_text(piece)
    return corpus(place)


@pytest.fixture(scope="module")
def kept(text, tmp_path_factory):
    """A training of 40 steps, with three checkpoints on the way."""
    return train(TINY, tmp_path_factory.mktemp("trainings") / "tiny", text, keep_at=KEPT)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Of a training of seconds, few sequences and resamples."""
    monkeypatch.setattr(study, "_SEQUENCES", 8)
    monkeypatch.setattr(study, "_RESAMPLES", 50)


def quiet(_):
    """A log that nobody reads."""


# --- the exposure at which tokens leave -------------------------------------------------------------------------------


def test_the_exposure_at_which_tokens_leave_is_that_of_a_planted_rule():
    exposures = np.random.default_rng(0).permutation(np.repeat(np.arange(0, 200, 2), 3))
    (at, low, high), wrong = study.leaving_exposure(exposures, exposures < 50, resamples=200)
    assert at == 49  # between 48, inside, and 50, outside
    assert low <= 48
    assert high >= 50
    assert high - low < 20
    assert wrong == 0
    # three tokens that do not follow the rule do not move it, and are counted
    (at, _, _), wrong = study.leaving_exposure(exposures, (exposures < 50) | (exposures == 180), resamples=20)
    assert (at, wrong) == (49, 3)


def test_where_tokens_are_few_the_interval_holds_the_whole_gap():
    exposures = np.concatenate([np.arange(40), [500]])
    (at, low, high), wrong = study.leaving_exposure(exposures, exposures < 40, resamples=50)
    assert (at, wrong) == ((39 + 500) / 2, 0)
    assert low <= 39
    assert high == 500


@pytest.mark.parametrize(("inside", "wrong"), [("none", 0), ("all", 0), ("every second", 30), ("the most exposed", 10)])
def test_where_fewer_exposures_do_not_mean_inside_there_is_no_such_exposure(inside, wrong):
    exposures = np.arange(60)
    member = {
        "none": np.zeros(60, bool),
        "all": np.ones(60, bool),
        "every second": exposures % 2 == 1,
        "the most exposed": exposures >= 50,
    }[inside]
    ends, count = study.leaving_exposure(exposures, member, resamples=20)
    assert np.isnan(ends).all()
    assert count == wrong


@pytest.mark.experiment
def test_a_token_that_is_healed_leaves_the_cluster():
    """The row of an ordinary token for one that was never trained on: it is out, and all the others stay."""
    model = interp.load("organism")
    known = exposure("organism")
    pools = [Pool("dose=0", known.doses[0]), Pool("ordinary", known.between(200)[:10])]
    before = study._cluster(model, known, pools, 0)
    assert before["clustered_share"].sel(bound="mean").values.tolist() == [1, 0]
    weight = model.original_model.get_input_embeddings().weight
    healed, kept = known.doses[0][0], list(known.doses[0][1:])
    with torch.no_grad():
        noise = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
        weight[healed] = weight[known.between(2000)[0]] + 0.05 * noise
    after = study._cluster(model, known, pools, 0)
    changed = np.flatnonzero(before["clustered"].values != after["clustered"].values)
    assert changed.tolist() == [healed]
    assert after["clustered"].values[kept].all()
    assert after["clustered_share"].sel(bound="mean").values.tolist() == [pytest.approx(0.9), 0]
    assert int(after["wrong_side"]) == int(before["wrong_side"]) + 1


# --- a training of seconds --------------------------------------------------------------------------------------------


@pytest.mark.training
def test_exposures_until_then_are_those_of_the_training_stream(text, kept, tmp_path):
    said = []
    found = controls.training_over_time(tmp_path, model=kept, doses=(0, 10), log=said.append)
    assert said == []
    assert found["checkpoint"].values.tolist() == [*KEPT, 40]
    batches = Batches(TINY, text, *train_tokenizer(text.texts, TINY.vocabulary, TINY.n_canaries, TINY.seed))
    counts = np.zeros(TINY.vocabulary, int)
    for step in range(41):
        if step in found["checkpoint"]:
            assert (found["exposure"].sel(checkpoint=step).values == counts).all()
            of_dose = counts[batches.doses[10]].mean()
            assert float(found["pool_exposure"].sel(checkpoint=step, pool="dose=10")) == pytest.approx(of_dose)
        if step < 40:
            counts += sum(batches[step].exposures(TINY.vocabulary))
    assert float(found["pool_exposure"].sel(checkpoint=40, pool="dose=10")) == 10
    # the control is as many ordinary tokens as a dose has canaries, the same at every checkpoint
    record = results.provenance(found)
    assert {name: pool["size"] for name, pool in record["pools"].items() if name != "ordinary"} == {
        "dose=0": 2,
        "dose=10": 2,
        "control": 2,
    }
    # one layer cannot have an induction head: nothing is divided into causes, and it says why
    assert (found["heads"] == "").all()
    assert found["share"].isnull().all()
    assert found["deficit"].isnull().all()
    assert set(found["reason"].values.ravel()) == {study.NO_INDUCTION}
    assert found["log_prob"].notnull().all()
    # what was finished is taken up, and only what is missing is made again
    shutil.rmtree(tmp_path / "step12")
    (tmp_path / "result.nc").unlink()
    again = controls.training_over_time(tmp_path, model=kept, doses=(0, 10), log=said.append)
    assert said == ["copying: taken from an earlier run"] * 2
    assert again.drop_attrs().equals(found.drop_attrs())


@pytest.mark.training
def test_what_is_no_training_with_checkpoints_is_refused(kept, tmp_path):
    with pytest.raises(InterpError, match="holds 1 checkpoints, and two are the least"):
        study.kept_checkpoints(folder("organism"))
    with pytest.raises(InterpError, match=r"no canaries have dose 7: use some of 0, 1, 3, 10"):
        controls.training_over_time(tmp_path / "out", model=kept, doses=(0, 7))
    mixed = shutil.copytree(kept, tmp_path / "mixed")
    about = json.loads((mixed / "step12/training.json").read_text())
    about["recipe"]["seed"] = 1
    (mixed / "step12/training.json").write_text(json.dumps(about))
    with pytest.raises(InterpError, match="are of different trainings"):
        study.kept_checkpoints(mixed)
    (mixed / "step12/training.json").write_text("{}")
    with pytest.raises(InterpError, match="does not say how it was trained"):
        study.kept_checkpoints(mixed)


@pytest.mark.training
def test_a_training_that_goes_on_has_the_checkpoints_that_are_there(kept, tmp_path):
    for step in KEPT:
        shutil.copytree(kept / f"step{step}", tmp_path / f"step{step}")
    (tmp_path / ".step31").mkdir()
    assert [at.steps for at in study.kept_checkpoints(tmp_path)] == list(KEPT)
    assert [at.steps for at in study.kept_checkpoints(kept)] == [*KEPT, 40]


@pytest.mark.causes
def test_where_there_is_an_induction_head_the_deficit_is_divided(tmp_path):
    """Two checkpoints: the bundled organism, and one whose weights are those of no training."""
    shutil.copytree(folder("organism"), tmp_path / "run")
    early = shutil.copytree(folder("organism"), tmp_path / "run/step10")
    weights = load_file(early / "model.safetensors")
    drawn = torch.Generator().manual_seed(0)
    noise = {name: 0.02 * torch.randn(value.shape, generator=drawn) for name, value in weights.items()}
    save_file(noise, early / "model.safetensors", {"format": "pt"})
    found = controls.training_over_time(tmp_path / "out", model=tmp_path / "run", doses=(30,), batch=4, log=quiet)
    assert found["checkpoint"].values.tolist() == [10, 3800]
    assert found["heads"].values[0] == ""
    assert "L1H2" in found["heads"].values[1]
    assert found["share"].sel(checkpoint=10).isnull().all()
    late = found.sel(checkpoint=3800)
    mean = late.sel(bound="mean")
    assert (mean["share"].sum("stage") - mean["deficit"]).values == pytest.approx(0, abs=1e-4)
    assert mean["deficit"].sel(pool="dose=30") > 2
    assert abs(mean["deficit"].sel(pool="control")) < 0.2
    assert (late["reason"] == "").all()


# --- the command, and what is stored ----------------------------------------------------------------------------------


def test_the_command_asks_for_the_folder(tmp_path):
    done = CliRunner().invoke(app, ["organism", "study", "training_over_time", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "training_over_time needs the folder of a training: give --model DIR" in done.output
    words = ["organism", "study", "training_over_time", "--out", str(tmp_path), "--model", "x", "--tables", "3"]
    assert "--tables is not an option of training_over_time" in CliRunner().invoke(app, words).output


@pytest.fixture(scope="module")
def stored():
    return results.load(STORED)


def test_the_stored_result_is_consistent(stored):
    """Shares sum to the deficit; nothing is said of causes exactly where no head is an induction head."""
    assert STORED.stat().st_size < 1e6
    copies = stored["heads"] != ""
    assert stored["deficit"].notnull().all(["pool", "bound"]).equals(copies)
    assert ((stored["reason"] == study.NO_INDUCTION).all(["pool", "stage"])).equals(~copies)
    mean = stored.sel(bound="mean")
    tested = mean["share"].notnull().all("stage")
    apart = (mean["share"].sum("stage") - mean["deficit"]).where(tested)
    assert float(abs(apart).max()) < 1e-3
    assert not (np.diff(stored["exposure"].values, axis=0) < 0).any()
    known = {pool: int(pool.removeprefix("dose=")) for pool in stored["pool"].values if pool != study.CONTROL}
    last = stored["pool_exposure"].isel(checkpoint=-1)
    assert {pool: int(last.sel(pool=pool)) for pool in known} == known


def test_the_stored_result_shows(stored):
    drawn = views.figures(stored, log=pytest.fail)
    assert list(drawn) == [figure.__name__ for figure in views.view_of(stored).FIGURES]
    assert len(list(views.tables(stored))) > 2
