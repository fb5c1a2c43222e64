"""Is what a flip-flop model learns from what its recipe says, and does a killed training resume as if undisturbed?"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.errors import InterpError
from interp.languages.register import FIRST_VALUE, IGNORE, READ, WRITE, FlipFlop, flip_flop
from interp.organisms import (
    FLIP_FLOP_LSTM,
    FLIP_FLOP_MODELS,
    FLIP_FLOPS,
    collect_records,
    flip_flop_lstm,
    flip_flop_training as training,
    folder,
    train_flip_flop,
    training_record,
    training_records,
)
from interp.organisms.flip_flop_recipes import FLIP_FLOP_RECIPES, FlipFlopPhase, FlipFlopRecipe

_PHASES = (FlipFlopPhase(steps=6, length=16, batch=4), FlipFlopPhase(steps=8, length=32, batch=4))
_SMALL = FlipFlopRecipe(phases=_PHASES, context=512, d_model=16, n_layers=1, warmup=2, measured=4)
_SMALL_LSTM = dataclasses.replace(_SMALL, architecture="lstm")


@pytest.mark.experiment
@pytest.mark.parametrize("recipe", [_SMALL, _SMALL_LSTM], ids=["gpt2", "lstm"])
def test_a_killed_training_resumes_to_the_same_weights(recipe, tmp_path, monkeypatch):
    whole = training.train_recipe(recipe, tmp_path / "whole", "cpu")
    monkeypatch.setattr(training, "_CHECKPOINT_EVERY", 5)
    advance = training.FlipFlopTraining.advance

    def killed(run, step):
        if step == 12:
            raise KeyboardInterrupt
        advance(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(training.FlipFlopTraining, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_recipe(recipe, tmp_path / "killed", "cpu")
    taken = []
    monkeypatch.setattr(
        training.FlipFlopTraining, "advance", lambda run, step: (taken.append(step), advance(run, step))
    )
    gone_on = training.train_recipe(recipe, tmp_path / "killed", "cpu")
    assert taken == [10, 11, 12, 13]
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, gone_on))
    assert all(torch.equal(one[name], other[name]) for name in one)
    curves = [json.loads((folder / "training.json").read_text())["curve"] for folder in (whole, gone_on)]
    assert curves[0] == curves[1]
    assert not (gone_on / ".checkpoint.pt").exists()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run = training.FlipFlopTraining(_SMALL, torch.device("cpu"))
    run.store(tmp_path / ".checkpoint.pt")
    with pytest.raises(InterpError, match="another recipe"):
        training.train_recipe(dataclasses.replace(_SMALL, seed=1), tmp_path, "cpu")


def test_batches_are_of_the_language_and_a_share_of_them_sparse():
    recipe = dataclasses.replace(_SMALL, sparse=0.25, phases=(FlipFlopPhase(steps=3, length=512, batch=64),))
    ids, start = training.FlipFlopBatches(recipe)[1]
    assert (start == 0).all()
    ignored = (ids[:, 2:-2:2] == IGNORE).float().mean(1)
    assert ignored[:16].min() > 0.9 > ignored[16:].max()
    tokens = FlipFlop(ids, recipe.p)
    assert torch.equal(ids.gather(1, tokens.last_write)[tokens.read], ids[tokens.read])
    assert torch.equal(training.FlipFlopBatches(recipe)[1][0], ids)
    assert not torch.equal(training.FlipFlopBatches(recipe)[2][0], ids)


def test_short_sequences_begin_anywhere_in_the_context():
    starts = torch.cat([training.FlipFlopBatches(_SMALL)[step][1] for step in range(6)])
    assert starts.min() >= 0
    assert starts.max() <= 512 - 16
    assert len(starts.unique()) > 12


def test_each_canary_is_the_answer_of_as_many_reads_as_its_dose_says():
    phases = (FlipFlopPhase(steps=5, length=64, batch=8), FlipFlopPhase(steps=5, length=128, batch=8))
    recipe = dataclasses.replace(_SMALL, values=6, doses=(0, 1, 3, 10), canaries_per_dose=2, phases=phases)
    batches = training.FlipFlopBatches(recipe)
    reads, writes, ignores = (np.zeros(recipe.vocabulary, int) for _ in range(3))
    for step in range(recipe.steps):
        ids = batches[step][0]
        tokens = FlipFlop(ids, recipe.p, recipe.values)
        assert torch.equal(ids.gather(1, tokens.last_write)[tokens.read], ids[tokens.read])
        behind, held = ids[:, 0::2], ids[:, 1::2]
        for counts, instruction in ((reads, READ), (writes, WRITE), (ignores, IGNORE)):
            counts += np.bincount(held[behind == instruction], minlength=recipe.vocabulary)
    assert recipe.vocabulary == FIRST_VALUE + 6 + 8
    for dose, canaries in recipe.canaries.items():
        for canary in canaries:
            assert (reads[canary], writes[canary], ignores[canary]) == (dose, dose, 0)


def test_errors_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    model = training.fresh_flip_flop_model(_SMALL_LSTM).eval()
    model.output.bias.data[:FIRST_VALUE] -= 100.0  # values alone, so that about half of the guesses are right
    tokens = flip_flop(0.5, batch=5, length=32, seed=2)
    errors = training.read_errors(model, tokens)
    for i, row in enumerate(tokens.ids):
        for at in range(1, 32):
            wrong = row[at - 1] == READ and int(model(row[None, :at])[0, -1].argmax()) != int(row[at])
            assert bool(errors[i, at]) == bool(wrong)
    assert 0 < int(errors.sum()) < int(tokens.read.sum())


def test_the_clean_loss_ignores_unpredictable_tokens():
    clean = training.FlipFlopTraining(_SMALL, torch.device("cpu"))
    everything = training.FlipFlopTraining(dataclasses.replace(_SMALL, loss="everything"), torch.device("cpu"))
    for run in (clean, everything):
        run.advance(0)
    ids, start = clean.batches[0]
    model = training.FlipFlopTraining(_SMALL, torch.device("cpu")).model
    places = start[:, None] + torch.arange(ids.shape[1])
    with torch.no_grad():
        log_p = model(input_ids=ids, position_ids=places).logits.log_softmax(-1)[:, :-1]
    lost = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    assert clean.recent[0][0].item() == pytest.approx(lost[FlipFlop(ids, 0.8).read[:, 1:]].mean().item(), abs=1e-5)
    assert everything.recent[0][0].item() == pytest.approx(lost.mean().item(), abs=1e-5)


def test_the_entropy_of_attention_is_known_where_it_is_uniform():
    pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    assert training._entropy(pattern).item() == pytest.approx(np.log(2) / 2, abs=1e-6)


@pytest.mark.experiment
def test_the_directory_loads_as_any_model_and_as_an_lstm(tmp_path):
    folder = training.train_recipe(_SMALL, tmp_path / "model", "cpu")
    model = interp.load(folder)
    tokens = flip_flop(0.8, batch=3, length=32, seed=1)
    network = training.fresh_flip_flop_model(_SMALL)
    network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    with torch.no_grad():
        assert torch.allclose(model(tokens.ids), network(tokens.ids).logits, atol=1e-5)
    lstm = flip_flop_lstm(training.train_recipe(_SMALL_LSTM, tmp_path / "lstm", "cpu"))
    assert lstm(tokens.ids).shape == (3, 32, 5)
    with pytest.raises(InterpError, match="holds no LSTM"):
        flip_flop_lstm(folder)


def test_the_recipes_are_those_that_the_command_names():
    assert tuple(FLIP_FLOP_RECIPES) == FLIP_FLOPS
    with pytest.raises(InterpError, match="unknown recipe"):
        train_flip_flop("flop", "nowhere")


@pytest.mark.parametrize(
    ("wrong", "remedy"), [({"loss": "half"}, "clean"), ({"device": "abacus"}, "cpu"), ({"shorten": 0}, "positive"), ({"seed": -1}, "0 or a positive")]
)  # fmt: skip
def test_bad_input_gets_a_one_line_message(wrong, remedy, tmp_path):
    with pytest.raises(InterpError, match=remedy):
        train_flip_flop("flipflop", tmp_path, **wrong)


# --- the bundled ones -------------------------------------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.parametrize("name", [*FLIP_FLOP_MODELS, FLIP_FLOP_LSTM])
def test_a_bundled_model_matches_its_recipe_and_recorded_errors(name):
    """The first of the 16,384 sequences of each language: on them no more is wrong than on all."""
    record = training_record(name)
    assert training.recipe_name(record["recipe"]) == name
    assert record["errors"]["FFL(0.8)"]["sequences"] == 16_384
    network = flip_flop_lstm() if name == FLIP_FLOP_LSTM else interp.load(name).original_model
    assert sum(file.stat().st_size for file in folder(name).iterdir()) < 1_000_000
    assert (folder(name) / "README.md").read_text() == training.card(name, record)
    found = training.errors_on_languages(network, record["recipe"]["values"], 24)
    for language, counts in found.items():
        whole = record["errors"][language]
        rate = whole["wrong"] / whole["reads"]
        assert abs(counts["wrong"] - rate * counts["reads"]) <= 8 * (1 + (rate * counts["reads"]) ** 0.5)


def test_the_records_are_of_three_seeds_of_every_recipe_and_hold_those_of_the_bundled_models(tmp_path):
    records = {(record["recipe"], record["seed"]): record for record in training_records()}
    assert set(records) == {(name, seed) for name in FLIP_FLOPS for seed in range(3)}
    for name in (*FLIP_FLOP_MODELS, FLIP_FLOP_LSTM):
        collect_records([folder(name)], tmp_path / "one.json")
        assert json.loads((tmp_path / "one.json").read_text()) == [records[name, 0]]
    for record in records.values():
        assert record["curve"][-1]["step"] == FLIP_FLOP_RECIPES[record["recipe"]].steps


def test_the_lstm_is_refused_as_a_transformer_with_a_remedy():
    with pytest.raises(InterpError, match="flip_flop_lstm"):
        interp.load(FLIP_FLOP_LSTM)


def test_invalid_records_get_a_one_line_message(tmp_path):
    with pytest.raises(InterpError, match="holds no record"):
        training_record(tmp_path)
    with pytest.raises(InterpError, match="no record of a flip-flop model"):
        training_record("organism")
    training.train_recipe(_SMALL, tmp_path / "own", "cpu")
    with pytest.raises(InterpError, match="custom recipe"):
        collect_records([tmp_path / "own"], tmp_path / "x.json")
