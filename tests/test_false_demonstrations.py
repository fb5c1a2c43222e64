"""Does `false_demonstrations` find what is known, name what was planted, and report nothing where nothing is?"""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import interp
from interp import views
from interp.defects import planted
from interp.errors import InterpError
from interp.experiments.false_demonstrations.causes import (
    called,
    class_weights,
    controls,
    head_scores,
    luckiest,
)
from interp.experiments.false_demonstrations.experiment import critical_layer
from interp.experiments.false_demonstrations.reading import calibrated, label_logits, log_odds, readings
from interp.heads import classify_heads, heads_of_kind
from interp.hooks import name_of, record
from interp.organisms import TASKS_FILE, folder
from interp.prompts import tasks_of
from interp.prompts.demonstrations import KINDS, demonstrations

pytestmark = pytest.mark.experiment
LAYER, HEAD = 1, 2  # the head that is rewired


@pytest.fixture(scope="module")
def model():
    return interp.load("demonstrations")


@pytest.fixture(scope="module")
def known(model):
    return interp.run("false_demonstrations", model)


@pytest.fixture(scope="module")
def none():
    return interp.run("false_demonstrations", "demonstrations-0")


def last(result, labels):
    return float(result["right"].sel(labels=labels).isel(after=-1, shots=-1).mean())


def printed(result):
    console = Console(width=200, file=io.StringIO())
    for line in views.tables(result):
        console.print(line)
    return console.file.getvalue()


# --- what is known ----------------------------------------------------------------------------------------------------


def test_false_demonstrations_mislead_a_model_trained_on_them(known):
    """The truth after the first layer, by the early exit that it was trained with; the shown label in the end."""
    assert last(known, "true") >= 0.97
    assert last(known, "permuted") <= 0.05
    early = known["right"].sel(labels="permuted", after="layer 0").isel(shots=-1)
    assert early.mean() >= 0.95
    assert known.attrs["best_depth"] == "layer 0"
    assert known["overthought"].sel(bound="low") >= 0.95
    mean, low, high = known["critical_layer"].values
    assert 1 <= low <= mean <= high <= 2
    assert float(known["copied"].isel(shots=-1).mean()) >= 0.7
    copied = known["copied"].mean(["task", "batch"])
    assert copied.sel(shots=0) <= 0.05  # nothing was shown yet
    assert copied.sel(shots=16) > copied.sel(shots=4) > copied.sel(shots=0)


def test_classified_heads_are_the_induction_heads(known):
    heads = known.attrs["called_heads"].split(", ")
    assert heads
    assert all(name.startswith("L1") for name in heads)
    marks = known["called"].values.astype(bool)
    assert (known["induction"].values[marks] == 1).all()
    assert marks.sum() == len(heads)
    score = known["head_score"].mean(["task", "batch"]).values
    assert score[marks].min() > 5 * float(known["score_threshold"])
    assert score[~marks].max() < float(known["score_threshold"])


def test_ablating_them_closes_the_gap_without_hurting_true_demonstrations(known):
    without, intact = known["without"].mean("batch"), known["intact"].mean("batch")
    assert (without.sel(compared="true") >= 0.97).all()
    assert (without.sel(compared="permuted") > intact.sel(compared="permuted") + 0.15).all()
    share = known["closed"].sel(measure="restored log-odds")
    assert share.sel(group="classified", bound="low") > 0.4
    assert share.sel(group="control", bound="high") < 0.2
    assert (known["direct"].mean("batch") > 5).all()
    assert (known["direct"].mean("batch") < known["total"].mean("batch")).all()


def test_a_model_never_rewarded_for_false_copying_has_no_gap_and_no_heads(none):
    assert last(none, "true") >= 0.97
    assert last(none, "permuted") >= 0.97
    assert none["overthought"].sel(bound="mean") == pytest.approx(0, abs=0.02)
    assert none.attrs["called_heads"] == ""
    assert none.attrs["no_heads"].startswith("no gap: accuracy after true minus after permuted demonstrations is 0.0")
    for name in ("without", "without_control", "direct", "closed", "skipped", "critical_layer"):
        assert none[name].isnull().all(), name  # not tested is not zero
    assert not none["called"].any()
    assert none["induction"].sum() > 0  # though it has induction heads
    assert "No head is classified as a false induction head: no gap" in printed(none)


def test_without_demonstrations_all_kinds_are_equal(known):
    bare = known["right"].sel(shots=0)
    for labels in KINDS[1:]:
        assert bare.sel(labels=labels).values == pytest.approx(bare.sel(labels="true").values)


# --- planted ----------------------------------------------------------------------------------------------------------


def test_heads_made_value_blind_remove_the_effect(model, known):
    """At the labels, the copying heads carry the mean value of all tokens."""
    made = demonstrations(model, tasks_of(model)[0], count=8)
    blocks = interp.repeated(model, "0:64", batch=16, length=16)
    found = classify_heads(model, blocks)
    assert {f"L{la}H{h}" for la, h in heads_of_kind(found, "induction")} == set(known.attrs["called_heads"].split(", "))
    with planted(model, made.label_ids.tolist(), ["blind-values"], heads=found):
        broken = interp.run("false_demonstrations", model, count=32)
    assert float(broken["copied"].isel(shots=-1).mean()) <= 0.2 < float(known["copied"].isel(shots=-1).mean())
    again = interp.run("false_demonstrations", model, count=32)
    assert float(again["copied"].isel(shots=-1).mean()) >= 0.7  # as before


def rewired(path, gain, strength=24.0):
    """`demonstrations-0` with one head that attends to labels after items of the query's class, and writes what it sees.

    Queries, keys and values are fitted to what the layer reads on random labels, which say nothing of the items.
    """
    shutil.copytree(folder("demonstrations-0"), path)
    plain = interp.load("demonstrations-0")
    made = demonstrations(plain, tasks_of(plain)[0], "random", count=64, seed=9)
    ids, name = made.tokens.ids, f"blocks.{LAYER}.ln1.hook_out"
    seen = record(plain, ids, [name])[name]
    row, places = torch.arange(len(ids))[:, None], torch.from_numpy(made.places)
    items, labels = (seen[row, at].flatten(0, 1) for at in (places - 1, places[:, :-1]))
    width, size = seen.shape[-1], plain.cfg.d_head

    def fitted(inputs, numbers, others):
        """Weights and bias [d_model + 1, d_head] that turn inputs into a unit for their number, others into nothing."""
        wanted = torch.zeros(len(inputs) + len(others), size)
        wanted[torch.arange(len(inputs)), torch.from_numpy(numbers).flatten()] = 1.0
        both = torch.nn.functional.pad(torch.cat([inputs, others]), (0, 1), value=1.0)
        return torch.linalg.lstsq(both, wanted).solution

    parts = (
        strength * size**0.5 * fitted(items, made.classes, labels),
        fitted(labels, made.classes[:, :-1], items),
        fitted(labels, made.shown[:, :-1], items),
    )
    weights = {n: value.float() for n, value in load_file(path / "model.safetensors").items()}
    joint = weights[f"transformer.h.{LAYER}.attn.c_attn.weight"]
    bias = weights[f"transformer.h.{LAYER}.attn.c_attn.bias"]
    for i, part in enumerate(parts):  # queries, keys, values
        at = slice(i * width + HEAD * size, i * width + (HEAD + 1) * size)
        joint[:, at], bias[at] = part[:-1], part[-1]
    rows = weights["lm_head.weight"][torch.from_numpy(made.label_ids)] * weights["transformer.ln_f.weight"]
    centred = rows - rows.mean(0)
    out = weights[f"transformer.h.{LAYER}.attn.c_proj.weight"]
    out[HEAD * size : (HEAD + 1) * size] = 0.0
    out[HEAD * size : HEAD * size + len(rows)] = gain * centred / centred.norm(dim=-1, keepdim=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_head_rewired_to_copy_labels_adds_the_effect_and_is_named(tmp_path, none):
    path = rewired(tmp_path / "rewired", gain=8.0)
    found = interp.run("false_demonstrations", str(path))
    assert last(found, "true") >= 0.75
    assert last(found, "permuted") <= 0.65 < 0.97 <= last(none, "permuted")
    assert found["gap"].isel(after=-1).sel(bound="low") > 0.05
    assert found.attrs["called_heads"].split(", ")[0] == f"L{LAYER}H{HEAD}"
    alone = interp.run("false_demonstrations", str(path), most=1)
    assert alone.attrs["called_heads"] == f"L{LAYER}H{HEAD}"
    assert alone.attrs["controls"] == ""  # the other heads of its layer
    share = alone["closed"].sel(measure="restored", bound="mean")
    assert share.sel(group="classified") >= 0.8
    assert abs(share.sel(group="control")) <= 0.3
    assert (alone["without"].mean("batch") >= 0.97).all()  # the rest of the model is as it was
    assert float(alone["direct"].mean()) > 0.5 * float(alone["total"].mean())


# --- instruments ------------------------------------------------------------------------------------------------------


def test_the_last_depth_is_the_output_at_any_batch_size(model):
    made = demonstrations(model, tasks_of(model)[0], "permuted", count=8)
    found = readings(model, made)
    with torch.no_grad():
        logits = model(made.tokens.ids, return_type="logits", prepend_bos=False)
    row = torch.arange(8)
    for place in (0, 7, 16):
        own = logits[row, torch.from_numpy(made.places[:, place]) - 1][:, made.label_ids]
        share = own.softmax(-1)
        right = (share / (1 - share)).log().numpy()
        assert found["log_odds"].isel(after=-1, place=place).values == pytest.approx(right, rel=1e-3, abs=1e-3)
    name = name_of(model, 1, "pattern")
    pattern = record(model, made.tokens, [name])[name].numpy()
    for b in range(8):
        own = pattern[b, :, made.places[b, -1] - 1][:, made.places[b, :-1]]
        assert found["attention"].values[1, :, b] == pytest.approx(own, abs=1e-6)
    single = readings(model, made, batch_size=1)
    assert single["log_odds"].values == pytest.approx(found["log_odds"].values, abs=1e-3)
    assert single["attention"].values == pytest.approx(found["attention"].values, abs=1e-6)


def test_labels_read_alone_are_those_of_the_whole_vocabulary(model):
    from transformer_lens.tools.analysis import logit_readout

    stream = torch.randn(3, 5, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    labels = np.array([64, 70, 66])
    whole = logit_readout(model, stream, vocab=labels.tolist(), return_type="logits").values
    assert torch.allclose(label_logits(model, stream, labels), whole, atol=1e-4)


def test_log_odds_by_hand():
    found = log_odds(torch.tensor([0.5, 0.25, 0.25]).log() + 7)
    assert found.exp().numpy() == pytest.approx([1.0, 1 / 3, 1 / 3])


def test_calibration_by_hand():
    """A model that always answers the first label is right about half the time once labels are calibrated."""
    odds = np.array([[5.0, -5.0], [4.0, -4.0], [3.0, -3.0], [2.0, -2.0]])
    assert calibrated(odds, np.array([0, 0, 1, 1])).tolist() == [1, 1, 1, 1]
    assert calibrated(odds, np.array([1, 1, 0, 0])).tolist() == [0, 0, 0, 0]
    assert calibrated(np.zeros((4, 2)), np.array([0, 0, 1, 1])).tolist() == [0.5] * 4  # a guess
    three = np.eye(3).repeat(2, 0)
    assert calibrated(three, np.array([0, 0, 1, 1, 2, 2])).tolist() == [1] * 6
    depths = np.stack([odds, -odds])
    assert calibrated(depths, np.array([0, 0, 1, 1])).tolist() == [[1] * 4, [0] * 4]


def test_the_critical_layer_by_hand():
    assert critical_layer(np.array([0.0, 0.1, 0.6, 1.0])) == 1
    assert critical_layer(np.array([0.0, 0.9, 0.1, 1.0])) == 2  # it must stay
    assert critical_layer(np.array([0.5, 0.5, 0.5])) == -1
    assert np.isnan(critical_layer(np.array([0.5, 0.5, 0.0])))


def test_scores_of_heads_by_hand(model):
    made = demonstrations(model, tasks_of(model)[0], "permuted", shots=4, count=8)
    weights = class_weights(made)
    assert set(np.unique(weights).round(6)) <= {1.0, round(-1 / 7, 6)}
    attention = np.zeros((1, 2, 8, 4))
    attention[0, 0] = np.where(weights == 1, 1.0, 0.0)  # all at labels of its class
    attention[0, 1] = 0.25
    found = head_scores(attention, weights)
    assert found[0, 0] == pytest.approx((weights == 1).sum(1))
    assert found[0, 1] == pytest.approx(0.25 * weights.sum(1))


def test_heads_that_attend_to_labels_of_any_class_are_not_classified():
    """Of 40 sets of random heads that prefer places, not classes, about one in twenty has a lucky one."""
    lucky = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        weights = np.where(rng.permuted(np.tile(np.arange(16) % 2 == 0, (32, 1)), axis=1), 1.0, -1.0)
        places = rng.dirichlet(np.ones(16), size=(4, 4))  # a head's favourite places, the same in every prompt
        attention = places[:, :, None] * rng.uniform(0.5, 1.5, size=(4, 4, 32, 16))
        scores = head_scores(attention, weights).mean(-1)
        null = luckiest(attention, weights, shuffles=200, seed=seed)
        lucky += bool(called(scores, null, 5)[0])
    assert lucky <= 7  # 5% of 40, and its spread
    attention[2, 3] = np.where(weights > 0, 0.2, 0.02)
    scores = head_scores(attention, weights).mean(-1)
    heads, threshold = called(scores, luckiest(attention, weights, shuffles=200, seed=0), 5)
    assert heads[0] == (2, 3)
    assert scores[2, 3] > threshold


def test_controls_are_in_the_same_layers_where_possible(model):
    sets, said = controls(model, [(1, 0), (1, 3)], draws=6, seed=0)
    assert all(sorted(one) == [(1, 1), (1, 2)] for one in sets)
    assert said == ""
    sets, said = controls(model, [(1, 0), (1, 1), (1, 2), (1, 3)], draws=6, seed=0)
    assert all({layer for layer, _ in one} == {2} for one in sets)  # later ones, which the classified heads do not read
    assert said == "4 of 4 control heads are in other layers, as these have no more"
    every = [(layer, head) for layer in range(3) for head in range(4)]
    sets, said = controls(model, every[:8], draws=2, seed=0)
    assert sets == [[], []]
    assert said == "no control: 8 heads are classified, and only 4 are not"


# --- use --------------------------------------------------------------------------------------------------------------


def test_a_model_not_above_chance_gets_a_one_line_message(tmp_path):
    path = tmp_path / "untrained"
    shutil.copytree(folder("demonstrations"), path)
    weights = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    shuffled = {n: v if v.ndim < 2 else 0.1 * torch.randn(v.shape, generator=generator) for n, v in weights.items()}
    save_file({n: v.float() for n, v in shuffled.items()}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InterpError) as caught:
        interp.run("false_demonstrations", str(path), count=32)
    said = str(caught.value)
    assert "is not above chance with true demonstrations" in said
    assert "letters" in said
    assert "give other tasks, or another model" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"shots": 1}, "shots 1: use 2 to 16"),
        ({"draws": 0}, "draws 0: use a positive integer"),
        ({"kind": "median"}, "unknown ablation 'median': use zero or mean"),
        ({"tasks": "kinds"}, "unknown task 'kinds': use letters, or a JSON file of tasks"),
        ({"batch": 3}, "this experiment draws no repeated sequences: leave batch out"),
    ],
)
def test_invalid_requests_get_a_one_line_message(model, options, line):
    with pytest.raises(InterpError, match=f"^{line}$"):
        interp.run("false_demonstrations", model, **{"count": 16, **options})


def test_an_interrupted_run_resumes_and_is_stored(model, tmp_path):
    said = []
    first = interp.run("false_demonstrations", model, count=16, out=tmp_path, log=said.append)
    again = interp.run("false_demonstrations", model, count=16, out=tmp_path, log=said.append)
    assert any("taken from an earlier run" in line for line in said)
    for name in first.data_vars:
        assert np.array_equal(first[name].values, again[name].values, equal_nan=first[name].dtype.kind == "f"), name
    assert json.loads(again.attrs["provenance"])["experiment"] == "false_demonstrations"


def test_mean_ablation_leaves_true_demonstrations_alone(model):
    found = interp.run("false_demonstrations", model, kind="mean", count=32)
    assert (found["without"].sel(compared="true").mean("batch") >= 0.97).all()
    assert found.attrs["ablation"] == "mean"
    assert "their mean over true demonstrations" in printed(found)


def test_a_task_of_a_file(model, tmp_path):
    known = json.loads((folder("demonstrations") / TASKS_FILE).read_text())["letters"]
    two = {name: {**known, "items": {label: known["items"][label] for label in name}} for name in ("AB", "CDE")}
    path = tmp_path / "two.json"
    path.write_text(json.dumps(two))
    found = interp.run("false_demonstrations", model, tasks=str(path), count=32, shots=8)
    assert found["task"].values.tolist() == ["AB", "CDE"]
    assert found["chance"].values == pytest.approx([1 / 2, 1 / 3])
    assert found["shots"].values.tolist() == [0, 1, 2, 4, 8]
    assert found["right"].sel(task="AB").isel(batch=slice(32, None)).isnull().all()  # CDE has 33 prompts
    assert found["right"].sizes["batch"] == 33


def test_views_show_a_gap_and_no_gap(known, none):
    text = printed(known)
    assert "Classified: L1" in text
    assert "23.2% of the gap" in text
    for result in (known, none):
        assert list(views.figures(result)) == ["accuracy_by_layer", "accuracy_by_shots", "label_attention"]
