"""Is a run reproducible, resumable, and open to a user's own experiment?"""

import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import cache
from interp.errors import InterpError
from interp.results import label


@pytest.mark.experiment
@pytest.mark.parametrize("experiment", ["repeated_tokens", "attention_scores"])
def test_batch_size_changes_nothing(organism, experiment):
    made = [
        interp.run(experiment, organism, ["ordinary", "unexposed"], batch=64, batch_size=size) for size in (1, 7, 64)
    ]
    for other in made[1:]:
        assert np.array_equal(made[0].token_id, other.token_id) if "token_id" in made[0] else True
        for name in set(made[0].data_vars) - {"summary"}:
            assert abs(made[0][name].astype(float) - other[name].astype(float)).max() < 1e-5, name


@pytest.mark.experiment
@pytest.mark.parametrize("experiment", ["repeated_tokens", "attention_scores"])
def test_more_sequences_leave_the_first_as_they_are(organism, experiment):
    few, many = (interp.run(experiment, organism, ["ordinary"], batch=n) for n in (7, 64))
    for name in set(few.data_vars) - {"summary"}:
        assert abs(few[name].astype(float) - many[name].isel(batch=slice(7)).astype(float)).max() < 1e-5, name


@pytest.mark.experiment
def test_the_seed_determines_everything(organism):
    same = [interp.run("repeated_tokens", organism, ["ordinary"], batch=4, seed=s) for s in (1, 1, 2)]
    xr.testing.assert_identical(same[0], same[1])
    assert not np.array_equal(same[0].token_id, same[2].token_id)


def test_gradients_are_off_until_an_experiment_turns_them_on(wired):
    def asks(model, tokens, *, gradients=False):
        """`on` [batch]."""
        with torch.set_grad_enabled(gradients or torch.is_grad_enabled()):
            weight = torch.ones(1, requires_grad=True) * len(tokens.ids)
        return label("on", torch.full((len(tokens.ids),), float(weight.requires_grad)), "batch")

    def enables(model, tokens):
        """`on` [batch]."""
        with torch.enable_grad():
            loss = model(tokens.ids, prepend_bos=False).square().sum()
            (gradient,) = torch.autograd.grad(loss, [model.original_model.get_input_embeddings().weight])
        return label("on", gradient.abs().sum().expand(len(tokens.ids)), "batch")

    assert interp.run(asks, wired, ["1:30"]).on.max() == 0
    assert interp.run(enables, wired, ["1:30"]).on.min() > 0
    assert torch.is_grad_enabled()


def test_an_experiment_can_take_all_pools_at_once(wired):
    def sizes(model, pools, *, power=1):
        """`size` [pool]."""
        return label("size", [float(len(p) ** power) for p in pools], "pool", {"pool": [p.name for p in pools]})

    made = interp.run(sizes, wired, ["1:30", "a=30:60"], power=2)
    assert made["size"].values.tolist() == [29**2, 30**2]
    assert interp.provenance(made)["parameters"] == {"power": 2}


def test_parameters_reach_the_experiment_as_they_are_given(wired, tmp_path):
    """Paths, tuples and objects, of which the record can only say what they look like."""
    seen = []

    def takes(model, pools, *, where=None, what=None):
        seen.append((where, what))
        return label("size", [float(len(pool)) for pool in pools], "pool", {"pool": [p.name for p in pools]})

    anything = object()
    for where, what in ((tmp_path, (1, 2)), ("text", anything), (np.float32(0.5), len)):
        made = interp.run(takes, wired, ["1:30"], where=where, what=what)
        assert seen[-1] == (where, what)
        assert type(seen[-1][0]) is type(where)
        assert set(interp.provenance(made)["parameters"]) == {"where", "what"}
    assert interp.provenance(made)["parameters"]["where"] == 0.5


@pytest.mark.experiment
def test_invalid_runs_are_refused(wired, tmp_path):
    with pytest.raises(
        InterpError, match=r"unknown experiment 'nonsense': use activation_patching, .*attention_scores"
    ):
        interp.run("nonsense", wired)
    with pytest.raises(InterpError, match="no parameter 'kind': it has query, batch_size"):
        interp.run("attention_scores", wired, kind="mean")
    with pytest.raises(InterpError, match="use a length of 127 or less"):
        interp.run("repeated_tokens", wired, length=128, replacement=True)
    with pytest.raises(InterpError, match="use a length of 128 or less"):
        interp.run("repeated_tokens", wired, length=129, replacement=True, bos=False)
    with pytest.raises(InterpError, match="length and copies of 2 or more"):
        interp.run("repeated_tokens", wired, length=1)
    with pytest.raises(InterpError, match="protocol 'paper': use"):
        interp.run("repeated_tokens", wired, protocol="paper")
    with pytest.raises(InterpError, match="returned a float"):
        interp.run(lambda model, tokens: 1.0, wired)
    with pytest.raises(InterpError, match="unknown dimension 'pos'"):
        interp.run(lambda model, tokens: xr.Dataset({"x": ("pos", [1])}), wired)
    with pytest.raises(InterpError, match="asks for 'sequences'"):
        interp.run(lambda model, sequences: None, wired)
    with pytest.raises(InterpError, match="'tokens' \\(and 'singles'\\), or 'pools' \\(and 'draw'\\), or neither"):
        interp.run(lambda model, singles: None, wired)
    with pytest.raises(InterpError, match="'length' is a parameter of run itself"):
        interp.run(lambda model, tokens, *, length=3: None, wired)
    with pytest.raises(InterpError, match="seed -1"):
        interp.run("repeated_tokens", wired, seed=-1)
    with pytest.raises(InterpError, match="leave mixed out"):
        interp.run("repeated_tokens", wired, mixed=True)
    for size in (-1, 0, "many", 2.5):
        with pytest.raises(InterpError, match="batch size"):
            interp.run("attention_scores", wired, batch_size=size)
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="cannot write to"):
        interp.run("repeated_tokens", wired, out=tmp_path / "file")
    with pytest.raises(InterpError, match="vocabulary ends at 64"):
        interp.run("repeated_tokens", wired, bos=65)


def test_longest_block_that_fits(wired):
    made = interp.run("repeated_tokens", wired, length=127, batch=1, replacement=True)
    assert made.sizes["position"] == 255


def test_without_a_bos_token(tiny_gpt2, tmp_path):
    shutil.copytree(tiny_gpt2, tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "tokenizer_config.json").read_text())
    (tmp_path / "tiny" / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": None}))
    model = interp.load(str(tmp_path / "tiny"))
    made = interp.run("repeated_tokens", model, ["5:60"], length=10, batch=2)
    assert interp.provenance(made)["sequences"]["bos"] is None
    assert made.half.values.tolist() == [1] * 10 + [2] * 10
    with pytest.raises(InterpError, match="no BOS token"):
        interp.run("repeated_tokens", model, ["5:60"], bos=True)
    given = interp.run("repeated_tokens", model, ["5:60"], length=10, batch=2, bos=7)
    assert (given.token_id.isel(position=0) == 7).all()


def test_an_edited_experiment_does_not_reuse_old_parts(wired, tmp_path):
    """Also where the edit is in a helper, not in the experiment itself."""
    code = """
import json
import shutil

import interp
from interp import cache

def helper():
    return {value}

def mine(model, tokens):
    \"\"\"`x` [batch].\"\"\"
    if tokens.pool == "b" and helper() == 1:
        raise KeyboardInterrupt
    return interp.label("x", [float(helper())] * len(tokens.ids), "batch")
"""
    file = tmp_path / "mine.py"
    for value in (1, 2):
        file.write_text(code.format(value=value))
        if value == 1:
            with pytest.raises(KeyboardInterrupt):
                interp.run(f"{file}:mine", wired, ["a=1:30", "b=30:60"], out=tmp_path / "out", batch=2)
    made = interp.run(f"{file}:mine", wired, ["a=1:30", "b=30:60"], out=tmp_path / "out", batch=2)
    assert made.x.values.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_single_tested_tokens_set_the_queries(wired):
    """`mixed`: the stripes are read at the one tested token of each sequence."""
    score = interp.run("attention_scores", wired, ["a=1:30"], mixed=True, among="b=30:65", batch=8).score
    assert score.sel(key_kind="induction", layer=1, head=0).values == pytest.approx(np.ones((1, 8)), abs=1e-6)


def test_an_experiment_about_the_whole_vocabulary(wired):
    def rows(model):
        """`norm` [token]."""
        return label("norm", model.original_model.get_input_embeddings().weight.norm(dim=1), "token")

    result = interp.run(rows, wired)
    assert result.norm.dims == ("token",)
    assert "sequences" not in interp.provenance(result)
    with pytest.raises(InterpError, match="whole vocabulary: leave pools out"):
        interp.run(rows, wired, ["1:5"])
    with pytest.raises(InterpError, match="draws no repeated sequences: leave mixed out"):
        interp.run(rows, wired, mixed=True)


def test_an_interruption_reports_what_was_kept(wired, tmp_path):
    """In Python, too, and of several runs below one folder."""

    def interrupted(model, tokens):
        """Never."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing was kept, because no folder was given"):
        interp.run(interrupted, wired, ["1:40"])
    with pytest.raises(KeyboardInterrupt, match="nothing was kept, because") as error:
        interp.run(interrupted, wired, ["1:40"], out=tmp_path)
    assert "no part of it" not in str(error.value)  # but: no file says what a local function does
    for finished, said in ((False, "nothing"), (True, cache.GOES_ON)):
        if finished:
            (tmp_path / "gap").mkdir()
            (tmp_path / "gap" / "result.nc").touch()
        with pytest.raises(KeyboardInterrupt, match=said), cache.runs_below(tmp_path):
            raise KeyboardInterrupt("nothing was kept, because ...")
