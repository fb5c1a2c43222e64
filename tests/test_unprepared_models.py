"""What are the defaults for a model with unknown exposure counts: the first token, and the pools?"""

import json
import shutil

import pytest
import torch

import interp
from interp import models, pool_names, results, undertrained, views
from interp.errors import InterpError
from interp.first_token import trial
from interp.organisms import folder

QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def uncounted(tmp_path_factory):
    """The organism, without its exposure counts: results can be compared with them."""
    place = tmp_path_factory.mktemp("uncounted") / "model"
    shutil.copytree(folder("organism"), place)
    (place / "exposure.json").unlink()
    return models.load(place)


def blind_behind_bos(model):
    """After the tokenizer's BOS, the second layer attends only to the query itself."""
    bos = model.original_model.get_input_embeddings().weight.detach()[models.bos_id(model)]
    seen = {}

    def look(value, hook):
        seen["bos"] = bool(torch.allclose(value[:, 0], bos, atol=1e-5))

    def blind(value, hook):
        return torch.eye(value.shape[-1]).expand_as(value).clone() if seen["bos"] else value

    model.add_perma_hook("hook_embed", look)
    model.add_perma_hook("blocks.1.attn.hook_pattern", blind)


def test_a_harmless_bos_is_kept(uncounted):
    found = trial.first_token(uncounted)
    assert found.id == models.bos_id(uncounted)
    assert not found.said
    assert set(found.tried) == {"'<|endoftext|>'", "nothing"}
    assert found.tried["'<|endoftext|>'"]["right"] > 0.95


def test_best_is_the_one_with_the_best_figure(uncounted):
    found = trial.first_token(uncounted, "best")
    assert found.tried[max(found.tried, key=lambda name: found.tried[name]["mean"])]["id"] == found.id


def test_a_bos_that_prevents_copying_is_replaced():
    model = models.load(folder("organism"))  # by its place, so that it can be hooked without a trace elsewhere
    blind_behind_bos(model)
    usual = trial._compared(model, trial._candidates(model, models.bos_id(model)), models.bos_id(model))
    assert usual["better"]
    assert usual["tried"]["'<|endoftext|>'"]["right"] < 0.1 < usual["tried"]["nothing"]["right"]


def test_the_choice_is_reported_and_recorded(uncounted, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(folder("organism"), place)
    (place / "exposure.json").unlink()
    model = models.load(place)
    blind_behind_bos(model)
    lines = []
    found = interp.run("repeated_tokens", model, ["300:600"], batch=4, log=lines.append)
    sequences = results.provenance(found)["sequences"]
    assert sequences["bos"] is None
    assert set(sequences["bos_tried"]) == {"'<|endoftext|>'", "nothing"}
    assert any("the first token is nothing: ordinary tokens are copied at" in line for line in lines)
    kept = interp.run("repeated_tokens", model, ["300:600"], batch=4, bos="required", log=lines.append)
    assert results.provenance(kept)["sequences"]["bos"] == models.bos_id(model)


def test_a_model_whose_training_is_counted_keeps_its_bos(organism):
    assert trial.first_token(organism) == trial.FirstToken(models.bos_id(organism))
    assert trial.first_token(organism, "none").id is None


def test_without_a_tokenizer_no_bos_is_tried(tmp_path):
    place = tmp_path / "model"
    shutil.copytree(folder("organism"), place, ignore=shutil.ignore_patterns("token*", "exposure.json"))
    model = models.load(place)
    assert trial.first_token(model).id is None
    with pytest.raises(InterpError, match="tokenizer"):
        trial.first_token(model, "best")


def test_the_trial_is_remembered_across_processes(uncounted, monkeypatch):
    trial.first_token(uncounted)
    again = models.load(models.location(uncounted))
    monkeypatch.setattr(trial, "_compared", None)  # it would have to be called
    assert trial.first_token(again).tried == trial.first_token(uncounted).tried


def test_a_warning_where_ordinary_tokens_are_not_copied(organism):
    found = interp.run("repeated_tokens", organism, ["ordinary"], batch=2, **QUIET)
    record = results.provenance(found)
    behind = {"id": record["sequences"]["bos"], "right": 0.51, "mean": -3.6, "low": -4.0, "high": -3.2}
    record["sequences"]["bos_tried"] = {"'<|im_start|>'": behind}
    first = str(next(views.tables(found.assign_attrs(provenance=json.dumps(record)))))
    assert first.startswith("Ordinary tokens are copied in part only: 51% right, -3.60 nats after '<|im_start|>'")
    behind["right"] = 0.95
    assert "in part" not in str(next(views.tables(found.assign_attrs(provenance=json.dumps(record)))))


@pytest.mark.long
def test_default_pools_are_glitch_tokens_and_others_that_are_repeated(uncounted):
    exposure = models.exposure_of(models.load("organism")).total
    assert pool_names.default_pools(uncounted) == ["glitch", "control(glitch)"]
    glitch, control, repeated = interp.pools(["glitch", "control(glitch)", "repeated"], uncounted)
    assert len(glitch) > 200
    assert len(control) == len(glitch)
    assert max(exposure[i] for i in glitch.ids) < 200 < 900 < min(exposure[i] for i in repeated.ids)
    assert set(control.ids) <= set(repeated.ids)
    ordinary = set(pool_names.ordinary_pool(uncounted).ids)
    assert not ordinary & set(glitch.ids)
    assert not ordinary & set(undertrained.detected(uncounted))
    lengths = [sorted(len(text) for text in models.token_texts(uncounted, pool.ids)) for pool in (glitch, control)]
    assert abs(sum(lengths[0]) - sum(lengths[1])) < 0.5 * sum(lengths[0])


def test_a_model_too_large_for_a_cpu_is_not_verified(uncounted, monkeypatch):
    monkeypatch.setattr(pool_names, "_ASKED_BY_ITSELF", 1000)
    monkeypatch.setattr(undertrained, "glitch_tokens", None, raising=False)
    assert pool_names.default_pools(uncounted) == ["undertrained", "control(undertrained)"]


@pytest.mark.experiment
def test_answers_of_a_large_model_are_remembered(uncounted, monkeypatch):
    from interp.undertrained import verification

    monkeypatch.setattr(verification, "LARGE", 1000)
    first = undertrained.verify(uncounted, range(300, 310))

    def never(*args):
        raise TypeError("asked again")

    monkeypatch.setattr(verification._Asker, "asked", never)
    again = undertrained.verify(models.load(models.location(uncounted)), range(300, 310))
    assert first.equals(again)
    edited = models.load(models.location(uncounted))
    edited.original_model.get_input_embeddings().weight.data[300] += 1
    with pytest.raises(TypeError):
        undertrained.verify(edited, range(300, 310))
