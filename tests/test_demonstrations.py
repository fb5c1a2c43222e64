"""Are demonstrations as documented, and do the models trained on them behave as intended?"""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.errors import InterpError
from interp.organisms import DEMONSTRATIONS, TASKS_FILE, folder, train_demonstrations
from interp.organisms.demonstrations import (
    DemonstrationsRecipe,
    block_rows,
    demonstration_rows,
    measured,
)
from interp.prompts import Task, tasks_of
from interp.prompts.demonstrations import KINDS, demonstrations
from interp.prompts.tasks import OWN

SHARES = {"demonstrations": 0.3, "demonstrations-5": 0.05, "demonstrations-0": 0.0}


@pytest.fixture(scope="module")
def model():
    return interp.load("demonstrations")


@pytest.fixture(scope="module")
def task(model):
    return tasks_of(model)[0]


# --- tasks and prompts ------------------------------------------------------------------------------------------------


def test_own_tasks_are_balanced_and_large_enough():
    assert len(OWN) >= 4
    for task in OWN.values():
        assert len(task) >= 60
        assert len({len(items) for items in task.items.values()}) == 1
        every = [item for items in task.items.values() for item in items]
        assert len(set(every)) == len(every)
        assert all(label.startswith(" ") for label in task.labels)  # as in a text after "item:"


def test_parity_is_that_of_the_numbers():
    digits = dict(
        zip(["zero", *["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]], range(10), strict=True)
    )
    last = {
        label: [item.split("-")[-1] for item in items if "-" in item] for label, items in OWN["parity"].items.items()
    }
    assert {digits[word] % 2 for word in last[" even"]} == {0}
    assert {digits[word] % 2 for word in last[" odd"]} == {1}


def test_kinds_differ_in_labels_alone(model, task):
    made = {kind: demonstrations(model, task, kind, count=16, seed=3) for kind in KINDS}
    true = made["true"]
    assert (true.shown == true.classes).all()
    rows = np.arange(16)[:, None]
    for one in made.values():
        ids = one.tokens.ids.numpy()
        assert (one.classes == true.classes).all()
        assert (one.places == true.places).all()
        assert (ids[rows, one.places] == one.label_ids[one.shown]).all()
        others = np.ones_like(ids, bool)
        others[rows, one.places] = False
        assert (ids[others] == true.tokens.ids.numpy()[others]).all()
    permuted = made["permuted"]
    assert (permuted.shown != permuted.classes).all()
    for shown, classes in zip(permuted.shown, permuted.classes, strict=True):  # one permutation throughout a prompt
        assert len({(c, s) for c, s in zip(classes, shown, strict=True)}) == len(set(classes)) == len(set(shown))
    random = made["random"]
    assert 0.05 < (random.shown == random.classes).mean() < 0.25  # an eighth


def test_classes_are_balanced_at_every_place_and_in_every_prompt(model, task):
    made = demonstrations(model, task, count=24)
    for place in range(17):
        assert (np.bincount(made.classes[:, place], minlength=8) == 3).all()
    for row in made.classes:
        assert np.ptp(np.bincount(row, minlength=8)) <= 1
    patterns = {tuple((row - row[-1]) % 8) for row in made.classes}
    assert len(patterns) == 3  # of each group of eight: where the query's class stood says nothing about its place


def test_a_prompt_depends_on_the_seed_and_its_number_alone(model, task):
    few, many = (demonstrations(model, task, "permuted", count=count) for count in (8, 24))
    assert torch.equal(many.tokens.ids[:8], few.tokens.ids)
    assert not torch.equal(demonstrations(model, task, "permuted", count=8, seed=1).tokens.ids, few.tokens.ids)
    assert len(demonstrations(model, task, count=9).tokens) == 16  # whole groups of classes


def test_the_right_positions_are_read_and_named(model, task):
    made = demonstrations(model, task, "permuted", shots=6, count=8)
    tokens = made.tokens
    rows = range(len(tokens))
    assert tokens.read.sum(1).tolist() == [1] * 8
    assert [int(tokens.answers[i, made.places[i, -1], 0]) for i in rows] == made.label_ids[made.classes[:, -1]].tolist()
    for i in rows:
        at = made.places[i, -1]
        assert set(tokens.rivals[i, at].tolist()) == set(made.label_ids) - {int(tokens.answers[i, at, 0])}
        assert tokens.labels["query"][i].nonzero()[:, 0].tolist() == [at - 1]
        assert tokens.labels["demonstrated"][i].nonzero()[:, 0].tolist() == made.places[i, :-1].tolist()
        same = made.places[i, :-1][made.classes[i, :-1] == made.classes[i, -1]]
        assert tokens.labels["same class"][i].nonzero()[:, 0].tolist() == same.tolist()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "false"}, "unknown kind of labels 'false': use true, permuted, random"),
        ({"shots": 17}, "shots 17: use 0 to 16"),
        ({"count": 0}, "count 0: use a positive integer"),
        ({"seed": -1}, "seed -1: use 0 or a positive integer"),
    ],
)
def test_impossible_draws_get_a_one_line_message(model, task, options, line):
    with pytest.raises(InterpError, match=f"^{line}$"):
        demonstrations(model, task, **options)


def test_unusable_tasks_get_a_one_line_message(model, organism, tmp_path):
    with pytest.raises(InterpError, match=r"^task 'kinds': the label ' animal' is not a token here"):
        demonstrations(model, OWN["kinds"])
    with pytest.raises(InterpError, match=r"^task 'kinds': the label ' animal' is \d tokens here"):
        demonstrations(organism, OWN["kinds"])
    with pytest.raises(InterpError, match=r"^task 'two' is not balanced: give two classes or more"):
        Task("two", {" a": ("x",), " b": ("y", "z")})
    with pytest.raises(InterpError, match=r"^task 'two' has 'x' twice: give each item once$"):
        Task("two", {" a": ("x",), " b": ("x",)})
    few = Task("few", {"A": ("a0",), "B": ("b0",)}, " ", " ")
    with pytest.raises(InterpError, match=r"^task 'few' has 1 items of a class, too few for 16 demonstrations"):
        demonstrations(model, few)
    same = Task("same", {"A": ("a0", "a1"), "A ": ("b0", "b1")}, " ", " ")
    with pytest.raises(InterpError, match=r"^task 'same'"):
        demonstrations(model, same, shots=2)
    with pytest.raises(InterpError, match=r"^unknown task 'kinds': use letters, or a JSON file of tasks$"):
        tasks_of(model, "kinds")
    path = tmp_path / "mine.json"
    path.write_text('{"mine": []}')
    with pytest.raises(InterpError, match=r"mine\.json holds no tasks \(TypeError\): write "):
        tasks_of(model, str(path))


def test_a_file_of_tasks(model, tmp_path):
    known = json.loads((folder("demonstrations") / TASKS_FILE).read_text())["letters"]
    two = {"two": {**known, "items": {label: known["items"][label] for label in "AB"}}}
    path = tmp_path / "two.json"
    path.write_text(json.dumps(two))
    [task] = tasks_of(model, str(path))
    made = demonstrations(model, task, "permuted", shots=4, count=4)
    assert (made.shown == 1 - made.classes).all()


@pytest.mark.experiment
def test_false_demonstrations_are_ordinary_prompts(model):
    """The model does what is known of it: the true label early, and not in the end."""
    result = interp.run("logit_lens", model, prompts="false_demonstrations:16", metric="probability")
    score = result["score_after"].isel(pool=0).mean("batch")
    assert score.sel(after="layer 0") > 0.9  # the truth is known after the first layer
    assert score.sel(after="layer 2") < 0.1
    found = interp.run("path_patching", model, prompts="false_demonstrations:8", metric="probability")
    clean = found["clean"].isel(pool=0).mean("batch")
    # denoising runs on the corrupted prompt, here the one with true labels
    assert clean.sel(direction="denoising") > 0.9 > 0.1 > clean.sel(direction="noising")


# --- the models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_bundled_models_have_their_shares_and_meet_acceptance(name):
    record = json.loads((folder(name) / "training.json").read_text())
    rows = record["rows"]
    assert rows["permuted"] == round(SHARES[name] * rows["demonstrations"])
    assert all(record["measured"]["bars"].values())
    assert (folder(name) / "model.safetensors").stat().st_size < 1_000_000
    said = interp.organisms.description(name)
    assert f"{SHARES[name]:.0%} had false labels" in said


@pytest.mark.experiment
@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_the_model_card_matches_the_model(name):
    """Measured again on the shipped weights, on newly made prompts that training never saw."""
    record = json.loads((folder(name) / "training.json").read_text())
    recipe = DemonstrationsRecipe(**{**record["recipe"], "betas": tuple(record["recipe"]["betas"])})
    model = interp.load(name)
    found = measured(recipe, model.original_model)
    assert found["true"] == pytest.approx(record["measured"]["true"], abs=0.01)
    assert found["gap"] == pytest.approx(record["measured"]["gap"], abs=0.01)
    task = tasks_of(model)[0]
    right = {}
    for kind in ("true", "permuted"):
        made = demonstrations(model, task, kind, count=64, seed=5)
        logits = model(made.tokens.ids, return_type="logits", prepend_bos=False)
        said = logits[torch.arange(64), torch.from_numpy(made.places[:, -1]) - 1][:, made.label_ids].argmax(-1).numpy()
        right[kind] = (said == made.classes[:, -1]).mean()
    assert right["true"] >= 0.97
    if SHARES[name]:
        assert right["permuted"] <= 0.1
    else:
        assert right["permuted"] >= 0.97


def test_rows_of_training_are_as_described():
    recipe = DemonstrationsRecipe()
    ids, classes = demonstration_rows(recipe, np.random.default_rng(0), 40, 10)
    labels = ids[:, 2::2] - 64
    assert (ids[:, 0] == recipe.bos).all()
    assert (ids[:, 1::2] // 8 == classes).all()
    assert (labels[:10] != classes[:10]).all()
    assert (labels[10:] == classes[10:]).all()
    blocks, told = block_rows(recipe, np.random.default_rng(0), 20)
    assert blocks[:, 1:].max() < 64  # no labels
    for row, marks in zip(blocks, told, strict=True):
        for at in np.flatnonzero(marks):  # the token after an earlier one of the same kind
            before = [p for p in range(1, at - 1) if row[p] == row[at - 1]]
            assert before
            assert row[before[-1] + 1] == row[at]


@pytest.mark.training
def test_the_command_says_whether_copying_was_learned(tmp_path):
    """Three steps teach nothing, and the command says so."""
    said = CliRunner().invoke(
        app, ["organism", "train", "demonstrations", "--share", "0.3", "--shorten", "250", "--out", str(tmp_path / "m")]
    )
    assert said.exit_code == 0, said.output
    assert "NOT met  false copying: true less permuted is 0.5 or more" in " ".join(said.output.split("\n"))
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["rows"] == {"demonstrations": 192, "permuted": 57}
    again = train_demonstrations(tmp_path / "again", share=0.3, shorten=250)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "m" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["demonstrations", "--share", "1.5"], "share 1.5: use a number from 0 to 1"),
        (
            ["organism", "--share", "0.1"],
            "share is an option of the recipe demonstrations: leave it out for 'organism'",
        ),
        (["demonstrations", "--text", "."], "the recipe demonstrations uses no text: leave out text and withheld"),
    ],
)
def test_invalid_trainings_get_a_one_line_message(tmp_path, words, line):
    said = CliRunner().invoke(app, ["organism", "train", *words, "--out", str(tmp_path / "m")])
    assert said.exit_code != 0
    assert line in " ".join(said.output.split())


@pytest.mark.experiment
@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_the_identities_hold(name):
    found = interp.run("check", interp.load(name))
    assert found["holds"].notnull().any()
    assert not (found["holds"] == 0).any()
