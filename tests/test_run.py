"""Is a run reproducible, resumable, and open to a user's own experiment?"""

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import kept
from interp.errors import InterpError
from interp.results import label


@pytest.mark.parametrize("experiment", ["repeated_tokens", "attention_stripes"])
def test_batch_size_changes_nothing(organism, experiment):
    made = [
        interp.run(experiment, organism, ["ordinary", "unexposed"], batch=64, batch_size=size) for size in (1, 7, 64)
    ]
    for other in made[1:]:
        assert np.array_equal(made[0].token_id, other.token_id) if "token_id" in made[0] else True
        for name in set(made[0].data_vars) - {"summary"}:
            assert abs(made[0][name].astype(float) - other[name].astype(float)).max() < 1e-5, name


@pytest.mark.parametrize("experiment", ["repeated_tokens", "attention_stripes"])
def test_more_sequences_leave_the_first_as_they_are(organism, experiment):
    few, many = (interp.run(experiment, organism, ["ordinary"], batch=n) for n in (7, 64))
    for name in set(few.data_vars) - {"summary"}:
        assert abs(few[name].astype(float) - many[name].isel(batch=slice(7)).astype(float)).max() < 1e-5, name


def test_seed_decides_everything(organism):
    same = [interp.run("repeated_tokens", organism, ["ordinary"], batch=4, seed=s) for s in (1, 1, 2)]
    xr.testing.assert_identical(same[0], same[1])
    assert not np.array_equal(same[0].token_id, same[2].token_id)


def counted(calls):
    def mean_log_prob(model, tokens):
        """`found` [batch]."""
        calls.append(tokens.pool)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return label("found", tokens.ids.float().mean(1), "batch")

    return mean_log_prob


@pytest.fixture
def counting(monkeypatch):
    """Experiments that count in a list: else what is in it would be part of what they do."""
    monkeypatch.setattr(kept, "doing", lambda function: "counts")


def test_an_interrupted_run_goes_on(wired, tmp_path, counting):
    calls, whole = [], []
    experiment = counted(calls)
    with pytest.raises(KeyboardInterrupt):
        interp.run(experiment, wired, ["1:30", "30:60", "20:50"], out=tmp_path)
    assert not (tmp_path / "result.nc").exists()
    made = interp.run(experiment, wired, ["1:30", "30:60", "20:50"], out=tmp_path)
    assert calls == ["1:30", "30:60", "30:60", "20:50"]  # the finished pool was not run again
    whole = [None] * 5
    plain = interp.run(counted(whole), wired, ["1:30", "30:60", "20:50"])
    xr.testing.assert_identical(made, plain)
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


def test_parts_of_another_run_are_not_taken(wired, tmp_path, counting):
    calls = []
    experiment = counted(calls)
    with pytest.raises(KeyboardInterrupt):
        interp.run(experiment, wired, ["1:30", "30:60"], out=tmp_path)
    interp.run(experiment, wired, ["1:30", "30:60"], out=tmp_path, seed=1)
    assert calls == ["1:30", "30:60", "1:30", "30:60"]


def test_gradients_only_where_asked(wired):
    def asks(model, tokens):
        """`on` [batch]."""
        return label("on", torch.full((len(tokens.ids),), float(torch.is_grad_enabled())), "batch")

    assert interp.run(asks, wired, ["1:30"]).on.max() == 0
    asks.gradients = True
    assert interp.run(asks, wired, ["1:30"]).on.min() == 1
    assert torch.is_grad_enabled()


def test_all_pools_at_once(wired):
    def sizes(model, pools, *, power=1):
        """`size` [pool]."""
        return label("size", [float(len(p) ** power) for p in pools], "pool", {"pool": [p.name for p in pools]})

    made = interp.run(sizes, wired, ["1:30", "a=30:60"], power=2)
    assert made["size"].values.tolist() == [29**2, 30**2]
    assert interp.provenance(made)["parameters"] == {"power": 2}


def test_what_cannot_be_run(wired, tmp_path):
    with pytest.raises(
        InterpError, match=r"unknown experiment 'nonsense': use activation_patching, .*attention_stripes"
    ):
        interp.run("nonsense", wired)
    with pytest.raises(InterpError, match="no parameter 'kind': it has batch_size"):
        interp.run("attention_stripes", wired, kind="mean")
    with pytest.raises(InterpError, match="use a length of 127 or less"):
        interp.run("repeated_tokens", wired, length=128, replacement=True)
    with pytest.raises(InterpError, match="use a length of 128 or less"):
        interp.run("repeated_tokens", wired, length=129, replacement=True, bos=False)
    with pytest.raises(InterpError, match="length and copies of 2 or more"):
        interp.run("repeated_tokens", wired, length=1)
    with pytest.raises(InterpError, match="unknown protocol"):
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
            interp.run("attention_stripes", wired, batch_size=size)
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="cannot write to"):
        interp.run("repeated_tokens", wired, out=tmp_path / "file")
    with pytest.raises(InterpError, match="vocabulary ends at 64"):
        interp.run("repeated_tokens", wired, bos=65)


def test_longest_block_that_fits(wired):
    made = interp.run("repeated_tokens", wired, length=127, batch=1, replacement=True)
    assert made.sizes["position"] == 255


def test_without_a_bos_token(tiny_gpt2):
    model = interp.load(str(tiny_gpt2))
    model.tokenizer.bos_token = None
    made = interp.run("repeated_tokens", model, ["5:60"], length=10, batch=2)
    assert interp.provenance(made)["sequences"]["bos"] is None
    assert made.half.values.tolist() == [1] * 10 + [2] * 10
    with pytest.raises(InterpError, match="no BOS token"):
        interp.run("repeated_tokens", model, ["5:60"], bos=True)
    given = interp.run("repeated_tokens", model, ["5:60"], length=10, batch=2, bos=7)
    assert (given.token_id.isel(position=0) == 7).all()


def test_an_edited_experiment_takes_no_parts_of_the_old_one(wired, tmp_path):
    """Also where the edit is in a helper, not in the experiment itself."""
    code = """
import interp

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
    score = interp.run("attention_stripes", wired, ["a=1:30"], mixed=True, among="b=30:65", batch=8).score
    assert score.sel(stripe="induction", layer=1, head=0).values == pytest.approx(np.ones((1, 8)), abs=1e-6)


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


def test_an_experiment_keeps_its_own_parts(wired, tmp_path, counting):
    """`keep` stores what is finished, and only a run of the same kind takes it up."""
    made = []

    def long(model, keep, *, most=3):
        """`found` [batch]."""

        def part(i):
            if len(made) == 2 and i == 1:
                made.append("stop")
                raise KeyboardInterrupt
            made.append(i)
            return label("found", [float(i)], "batch").to_dataset()

        return xr.concat([keep(f"part {i}", lambda i=i: part(i)).drop_attrs() for i in range(most)], "batch")

    made += ["filler"]
    with pytest.raises(KeyboardInterrupt):
        interp.run(long, wired, out=tmp_path)
    result = interp.run(long, wired, out=tmp_path)
    assert made == ["filler", 0, "stop", 1, 2]
    assert result.found.values.tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]
    interp.run(long, wired)  # without a folder, nothing is stored
    assert made[5:] == [0, 1, 2]
