"""Do the bundled models behave as intended, and is their documented training correct?"""

import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

# those that must meet every acceptance criterion; the grown one is there for its backup heads (test_deep_organism.py)
from tiny_training import TINY
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.errors import InterpError
from interp.organisms import ORGANISMS, exposure, folder, train_again
from interp.organisms.acceptance import heldout_loss, unigram_entropy
from interp.organisms.batches import Batches
from interp.organisms.corpus import WITHHELD, corpus
from interp.organisms.recipe import DOSES, RECIPES, Phase, Recipe, fresh_model
from interp.organisms.training import Training, drop_layers, grown, train
from interp.organisms.vocabulary import train_tokenizer


@pytest.fixture(scope="module", params=[name for name in ORGANISMS if not RECIPES[name].grown_from])
def name(request):
    return request.param


every = pytest.mark.parametrize("name", ORGANISMS)


@pytest.fixture(scope="module")
def model(name):
    return interp.load(name)


@pytest.mark.experiment
def test_copying_of_ordinary_and_of_unexposed_tokens(model):
    """The acceptance criteria, with seeds that neither training nor the model card used."""
    summary = interp.run("repeated_tokens", model, seed=1234).summary.sel(definition="inducible", part="second")
    mean = summary.sel(bound="mean")
    assert mean.sel(pool="ordinary", measure="log_prob") >= -0.2
    assert mean.sel(pool="ordinary", measure="correct") >= 0.97
    assert mean.sel(pool="unexposed", measure="log_prob") <= -3
    assert mean.sel(pool="unexposed", measure="correct") <= 0.05
    # the whole interval, not its middle alone
    assert summary.sel(pool="ordinary", measure="log_prob", bound="low") >= -0.2
    assert summary.sel(pool="unexposed", measure="log_prob", bound="high") <= -3


def test_every_position_is_trained(model):
    """A block as long as the context allows, and its repeat, up to the last position."""
    result = interp.run("repeated_tokens", model, ["ordinary"], length=255, batch=4, seed=7)
    assert result.sizes["position"] == 511
    last = result.log_prob.where((result.half == 2) & (result.offset >= 235)).mean()
    assert last >= -0.5


def test_an_induction_head(model):
    score = interp.run("attention_scores", model, seed=1234).score.mean("batch")
    best = score.sel(key_kind="induction", pool="ordinary").max(["layer", "head"])
    assert best >= 0.6
    assert score.sel(key_kind="induction", pool="unexposed").max() < best


@pytest.mark.experiment
def test_dose_response(model):
    summary = interp.run("repeated_tokens", model, ["doses"], batch=96, seed=1234).summary
    single = summary.sel(definition="single", part="second", measure="log_prob", bound="mean")
    means = [float(single.sel(pool=f"dose={d}")) for d in DOSES]
    assert spearmanr(means[3:], range(len(means[3:]))).statistic >= 0.9
    assert means[-1] - means[0] > 5


@every
def test_doses_are_exposures(name):
    known = exposure(name)
    assert sorted(known.doses) == list(DOSES)
    for dose, canaries in known.doses.items():
        assert len(canaries) >= 8
        for canary in canaries:
            assert known.text[canary] == 0
            assert known.blocks[canary] == dose


def test_canaries_are_single_reachable_tokens(model, name):
    for canary in exposure(name).canaries:
        text = model.tokenizer.decode([canary])
        assert model.tokenizer.encode(f"x{text} y", add_special_tokens=False)[1:2] == [canary], text


@every
def test_size_and_shape(name):
    config = json.loads((folder(name) / "config.json").read_text())
    assert config["vocab_size"] >= 2048
    assert config.get("n_positions", config.get("max_position_embeddings")) >= 512
    assert sum(file.stat().st_size for file in folder(name).iterdir()) < 6e6
    assert {"README.md", "exposure.json", "curve.nc", "training.json"} <= {f.name for f in folder(name).iterdir()}
    known = exposure(name)
    assert len(known.text) == len(known.blocks) == config["vocab_size"]
    if name == "organism-llama":
        assert config["num_key_value_heads"] < config["num_attention_heads"]
    weights = load_file(folder(name) / "model.safetensors")
    assert ("lm_head.weight" in weights) == (name != "organism")


def test_training_curve_shows_the_phase_change(name):
    curve = interp.training_curve(name)
    second = curve.second_half.sel(pool="ordinary")
    assert curve.sizes["checkpoint"] >= 60
    assert second.isel(checkpoint=0) < -6
    assert second.isel(checkpoint=-1) > -0.2
    changing = ((second > -6) & (second < -0.5)).sum()
    assert changing >= 2  # dense enough to see it happen: it takes 50 to 200 steps of some 4,000
    best = curve.score.sel(pool="ordinary", key_kind="induction").max(["layer", "head"])
    assert best.isel(checkpoint=0) < 0.2
    assert best.isel(checkpoint=-1) > 0.6


def recorded_recipe(record):
    """The recipe of a record; options added by later releases have their defaults."""
    words = dict(record["recipe"])
    phases = tuple(Phase(**phase) for phase in words.pop("phases"))
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in words.items()}
    return Recipe(phases=phases, **tuples)


@every
def test_the_recipe_that_is_recorded_is_the_one_that_trains_again(name):
    assert recorded_recipe(json.loads((folder(name) / "training.json").read_text())) == RECIPES[name]


def test_the_model_card_matches_the_measurements(name):
    record = json.loads((folder(name) / "training.json").read_text())
    assert all(record["measured"]["bars"].values())
    card = (folder(name) / "README.md").read_text()
    for needed in ("SHA-256", "Seed 0", "Python 3", "steps", "Python Software Foundation", "held-out loss"):
        assert needed in card
    assert record["corpus_sha256"] in card
    share = record["measured"]["heldout_loss"] / record["measured"]["unigram_entropy"]
    assert share < 0.6


@pytest.fixture(scope="module")
def text():
    return corpus()


def test_corpus(text):
    assert {"idlelib", "encodings"} < set(WITHHELD)
    joined = "".join(text.seen)
    assert "DIAERESIS" not in joined
    assert "DIAERESIS" in "".join(text.withheld)
    assert len(text.heldout) >= 10


@pytest.fixture(scope="module")
def batches(text):
    """The recipes share text, tokenizer, canaries and what is ordinary; two of them share all batches."""
    found = {}
    recipe = RECIPES["organism"]
    tokenizer, canaries = train_tokenizer(text.texts, recipe.vocabulary, recipe.n_canaries, recipe.seed)
    for name, other in RECIPES.items():
        assert (other.vocabulary, other.n_canaries, other.seed) == (recipe.vocabulary, recipe.n_canaries, recipe.seed)
        found[name] = Batches(other, text, tokenizer, canaries)
    return found


@pytest.fixture(scope="module")
def counts(batches):
    @functools.cache
    def counted(phases):
        name = next(name for name, recipe in RECIPES.items() if recipe.phases == phases)
        before = batches[name].before
        found = np.zeros((2, RECIPES[name].vocabulary), int)
        if before is not None:
            found += np.array([before.text, before.blocks])
        for step in range(RECIPES[name].steps):
            found += np.stack(batches[name][step].exposures(RECIPES[name].vocabulary))
        return found

    return lambda name: counted(RECIPES[name].phases)


def _skip_other_libraries(name, text):
    record = json.loads((folder(name) / "training.json").read_text())
    if text.sha256 != record["corpus_sha256"]:
        pytest.skip(f"trained on the {record['corpus']}, and this Python has another library")


@every
@pytest.mark.training
def test_exposure_counts_can_be_counted_again(name, text, counts):
    """The counts that ship are those of the batches that the recipe makes, where the text is the same."""
    _skip_other_libraries(name, text)
    known = exposure(name)
    text_counts, block_counts = counts(name)
    assert text_counts.tolist() == list(known.text)
    assert block_counts.tolist() == list(known.blocks)


@pytest.mark.training
def test_canaries_stand_in_the_last_two_copies(batches):
    """Once a canary has been seen, copying it is always right."""
    batches = batches["organism"]
    canaries = {c for ids in batches.doses.values() for c in ids}
    found = 0
    for step in range(0, batches.recipe.steps, 100):
        batch = batches[step]
        for row in batch.ids[batch.is_block]:
            for canary in canaries.intersection(row.tolist()):
                places = np.flatnonzero(row == canary)
                # odd doses have one single exposure
                if len(places) == 2:
                    period = places[1] - places[0]
                    assert places[1] + period >= len(row)
                    found += 1
    assert found > 50


@pytest.mark.training
def test_a_layer_is_dropped_in_as_many_sequences_as_the_recipe_says(batches):
    """And the tokens are those of a training without dropped layers."""
    with_drop = batches["organism-deep"]
    recipe = with_drop.recipe
    without = copy.copy(with_drop)
    without.recipe = dataclasses.replace(recipe, layer_drop=0.0)
    dropped = []
    for step in range(0, recipe.steps, 50):
        batch = with_drop[step]
        assert np.array_equal(batch.ids, without[step].ids)
        assert (without[step].silent == -1).all()
        if step < recipe.layer_drop_from:
            assert (batch.silent == -1).all()
        else:
            dropped += batch.silent.tolist()
    counts = np.bincount(np.array(dropped) + 1, minlength=recipe.n_layers + 1) / len(dropped)
    assert counts[0] == pytest.approx(1 - recipe.layer_drop, abs=0.05)
    assert counts[1:] == pytest.approx(recipe.layer_drop / recipe.n_layers, abs=0.04)


def test_a_grown_model_is_the_other_with_its_last_layer_again():
    small = {
        "transformer.wte.weight": torch.ones(2),
        "transformer.h.0.x": torch.zeros(1),
        "transformer.h.1.x": torch.ones(1),
    }
    found = grown(small, 4)
    assert {name: float(value[0]) for name, value in found.items() if ".h." in name} == {
        "transformer.h.0.x": 0,
        "transformer.h.1.x": 1,
        "transformer.h.2.x": 1,
        "transformer.h.3.x": 1,
    }
    assert found["transformer.h.2.x"] is not found["transformer.h.3.x"]
    assert torch.equal(found["transformer.wte.weight"], torch.ones(2))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@torch.no_grad()
def test_heads_of_a_dropped_layer_write_nothing(architecture):
    """A sequence that drops a layer is predicted as by a model in which that layer's heads are ablated to zero."""
    recipe = dataclasses.replace(TINY, architecture=architecture, tied=False, n_layers=3, layer_drop=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fresh_model(recipe, bos=699).eval()
    ids = torch.arange(4 * 9).reshape(4, 9)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected = [model(ids[:1]).logits]
    for layer, row in ((0, 1), (2, 2), (1, 3)):
        name = {"gpt2": f"transformer.h.{layer}.attn.c_proj", "llama": f"model.layers.{layer}.self_attn.o_proj"}
        silenced = name[architecture] + ".weight"  # its bias is no head's
        model.load_state_dict(weights | {silenced: torch.zeros_like(weights[silenced])})
        expected.append(model(ids[row : row + 1]).logits)
    model.load_state_dict(weights)
    whole = model(ids).logits
    drop_layers(model, recipe, lambda: torch.tensor([-1, 0, 2, 1]))
    found = model(ids).logits
    assert torch.cat(expected) == pytest.approx(found, abs=1e-6)
    assert (whole - found).abs().amax((1, 2))[1:].min() > 1e-4


@pytest.mark.training
def test_heldout_loss_is_below_the_bar(name, text, batches):
    from transformers import AutoModelForCausalLM

    _skip_other_libraries(name, text)
    plain = AutoModelForCausalLM.from_pretrained(folder(name)).eval()
    assert heldout_loss(plain, batches[name]) < 0.6 * unigram_entropy(batches[name].heldout)


def test_the_tokenizer_roundtrips_text(model, text):
    for piece in (*text.withheld[:5], *text.heldout[:5]):
        ids = model.tokenizer.encode(piece[:1000], add_special_tokens=False)
        assert model.tokenizer.decode(ids) == piece[:1000]


# --- training itself, on a recipe of seconds


@pytest.fixture(scope="module")
def small_text(tmp_path_factory, text):
    place = tmp_path_factory.mktemp("text")
    for i, piece in enumerate(text.seen[:120:3]):
        (place / f"{i}.py").write_text(piece)
    return place


@pytest.fixture(scope="module")
def trained(small_text, tmp_path_factory):
    return train(TINY, tmp_path_factory.mktemp("whole"), corpus(small_text))


@contextmanager
def killed_at_step(at):
    """A training within this is interrupted before that step."""
    advance = Training.advance

    def killed(self, step):
        if step == at:
            raise KeyboardInterrupt
        advance(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", killed)
        yield


@pytest.mark.training
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"architecture": "llama", "tied": False},
        {"tied": False, "untied_from": 12},
        {"n_layers": 2, "layer_drop": 0.5, "layer_drop_from": 15},
    ],
    ids=str,
)
def test_killed_training_resumes_to_the_same_bits(change, small_text, trained, tmp_path, monkeypatch):
    from interp.organisms import training as module

    recipe = dataclasses.replace(TINY, **change)
    whole = train(recipe, tmp_path / "whole", corpus(small_text)) if change else trained
    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 10)
    with killed_at_step(23), pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", corpus(small_text))
    assert [p.name for p in (tmp_path / "cut").iterdir()] == [".checkpoint.pt"]
    again = train(recipe, tmp_path / "cut", corpus(small_text))
    one, two = (load_file(p / "model.safetensors") for p in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert exposure(whole) == exposure(again)
    assert interp.training_curve(whole).equals(interp.training_curve(again))


@pytest.mark.training
def test_untied_from_a_step_on(small_text, trained, tmp_path):
    """Up to that step the training is the tied one; from there, the two embeddings are trained separately."""
    steps = TINY.steps
    late = train(dataclasses.replace(TINY, tied=False, untied_from=steps), tmp_path / "late", corpus(small_text))
    early = train(dataclasses.replace(TINY, tied=False, untied_from=steps - 5), tmp_path / "early", corpus(small_text))
    tied, same, apart = (load_file(p / "model.safetensors") for p in (trained, late, early))
    assert torch.equal(same["lm_head.weight"], tied["transformer.wte.weight"])
    assert torch.equal(same["transformer.wte.weight"], tied["transformer.wte.weight"])
    assert not torch.equal(apart["lm_head.weight"], apart["transformer.wte.weight"])
    assert not interp.origin(interp.load(str(early)))["tied"]


@pytest.mark.training
def test_another_recipe_does_not_take_the_checkpoint(small_text, tmp_path, monkeypatch):
    from interp.organisms import training as module

    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(module, "write_organism", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, corpus(small_text))
    with pytest.raises(InterpError, match="another recipe or text"):
        train(dataclasses.replace(TINY, seed=1), tmp_path, corpus(small_text))
    (tmp_path / ".checkpoint.pt").write_bytes(b"half")
    with pytest.raises(InterpError, match="is damaged"):
        train(TINY, tmp_path, corpus(small_text))


@pytest.mark.training
def test_a_trained_folder_loads_and_knows_its_exposure(trained):
    model = interp.load(str(trained))
    made = interp.run("repeated_tokens", model, ["unexposed", "dose=10"], length=5, batch=4, among="text")
    assert made.sizes["pool"] == 2
    known = exposure(trained)
    for dose, canaries in known.doses.items():
        assert all(known.total[c] == dose for c in canaries)
    assert sum(known.total) == sum(p.steps * p.batch * p.context for p in TINY.phases)


@pytest.mark.training
def test_training_twice_gives_the_same_bits(small_text, trained, tmp_path):
    again = train(TINY, tmp_path, corpus(small_text))
    one, two = (load_file(p / "model.safetensors") for p in (trained, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.training
def test_kept_checkpoints_are_the_model_at_these_steps(small_text, trained, tmp_path, monkeypatch):
    from interp.organisms import training as module

    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 10)
    with killed_at_step(23), pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, corpus(small_text), keep_at=(0, 12, 22))
    with pytest.raises(InterpError, match="is at step 20, past step 15, which is to be kept"):
        train(TINY, tmp_path, corpus(small_text), keep_at=(15,))
    train(TINY, tmp_path, corpus(small_text), keep_at=(12, 30, TINY.steps))
    assert sorted(path.name for path in tmp_path.glob("step*")) == ["step0", "step12", "step22", "step30", "step40"]

    def weights(path):
        return load_file(path / "model.safetensors")

    # keeping changes nothing, and the last one is the model
    for key, value in weights(trained).items():
        assert torch.equal(weights(tmp_path)[key], value)
        assert torch.equal(weights(tmp_path / "step40")[key], value)
        assert not torch.equal(weights(tmp_path / "step30")[key], value) or key == "transformer.ln_f.bias"
    # 25 steps of 8 x 17, then 4 x 33
    seen = {0: 0, 12: 12 * 8 * 17, 22: 22 * 8 * 17, 30: 25 * 8 * 17 + 5 * 4 * 33}
    assert {step: sum(exposure(tmp_path / f"step{step}").total) for step in seen} == seen
    found = interp.run("repeated_tokens", str(tmp_path / "step12"), ["unexposed"], length=5, batch=4, among="text")
    assert found.sizes["pool"] == 1


@pytest.mark.training
def test_checkpoint_steps_out_of_range_are_refused(small_text, tmp_path):
    with pytest.raises(InterpError, match="cannot keep the model after step 41: this training has steps 0 to 40"):
        train(TINY, tmp_path, corpus(small_text), keep_at=(3, 41))
    for name, steps, words in (
        ("organism", "3,x", "unknown step 'x' of --keep-at: write numbers with commas"),
        ("flipflop", "3", "--keep-at is for models that learn from a text: leave it out for 'flipflop'"),
    ):
        done = CliRunner().invoke(app, ["organism", "train", name, "--out", str(tmp_path / "no"), "--keep-at", steps])
        assert done.exit_code == 1
        assert words in " ".join(done.output.split())


@pytest.mark.training
def test_the_command_trains_without_chatter(small_text, tmp_path):
    words = ["organism", "train", "organism-llama", "--out", str(tmp_path), "--shorten", "600"]
    code = "from interp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "NOT met  ordinary: second-half log-prob >= -0.2" in done.stdout  # 7 steps do not make an organism
    assert exposure(tmp_path) is not None


def test_an_unknown_recipe_is_named(tmp_path):
    with pytest.raises(InterpError, match="unknown recipe 'nonsense': use organism, organism-untied, organism-llama"):
        train_again("nonsense", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_the_organisms_loads_no_torch():
    code = "import sys; from interp import organisms; organisms.exposure('organism'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_damaged_exposure_file(tmp_path):
    (tmp_path / "exposure.json").write_text("{")
    with pytest.raises(InterpError, match="is damaged"):
        exposure(tmp_path)
    assert exposure(tmp_path / "nothing") is None
