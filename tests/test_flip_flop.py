"""Is every wrong read of a flip-flop model counted, and given the cause that was planted?"""

import json
import math
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from scipy.stats import binom

import interp
from interp import hooks, results, views
from interp.errors import InterpError
from interp.experiments.flip_flop.experiment import DISTANCES, WRITES
from interp.languages.register import FIRST_VALUE, flip_flop
from interp.organisms import folder, training_records, wired_flip_flop
from interp.repairs import last_write
from interp.repairs.last_write import Reads, hard_attention, key_kinds, last_write_heads, sharpened_attention
from interp.statistics import binomial_interval

QUIET = {"log": lambda line: None}
SMALL = {"sequences": 48, "calibration": 32, "examined": 12}
FIGURES = Path(__file__).parent.parent / "figures"


def wired(margin, defect=None):
    network, tokenizer = wired_flip_flop(margin, defect=defect)
    return interp.load(network, tokenizer=tokenizer)


def printed(found):
    console = Console(width=200, file=StringIO())
    for line in views.tables(found):
        console.print(line)
    return console.file.getvalue()


def excesses(tokens):
    """For every read, how many more of the earlier writes wrote another value than the same one."""
    found = []
    for i, at in tokens.read.nonzero().tolist():
        earlier = tokens.written[i].clone()
        earlier[int(tokens.last_write[i, at]) :] = False
        found.append(int(earlier.sum()) - 2 * int((tokens.ids[i, earlier] == tokens.ids[i, at]).sum()))
    return np.array(found)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_exact_intervals_are_those_whose_ends_just_miss_the_count():
    successes, trials = np.array([[0, 3, 17], [40, 1, 5]]), np.array([[9, 10, 100], [40, 2000, 5]])
    share, low, high = binomial_interval(successes, trials)
    assert share == pytest.approx(successes / trials)
    inner = successes > 0
    assert binom.sf(successes - 1, trials, low)[inner] == pytest.approx(0.025)
    assert (low[~inner] == 0).all()
    inner = successes < trials
    assert binom.cdf(successes, trials, high)[inner] == pytest.approx(0.025)
    assert (high[~inner] == 1).all()
    assert binomial_interval(0, 30)[2] == pytest.approx(1 - 0.025 ** (1 / 30))
    assert np.isnan(binomial_interval(0, 0)).all()


@pytest.mark.parametrize("p", [0.001, 0.03, 0.5])
def test_exact_intervals_have_their_nominal_coverage(p):
    counts = np.arange(301)
    _, low, high = binomial_interval(counts, 300)
    held = (low <= p) & (p <= high)
    assert binom.pmf(counts, 300, p)[held].sum() >= 0.95


def test_an_exact_interval_of_more_successes_than_trials_is_refused():
    with pytest.raises(InterpError, match="between 0 and the number of trials"):
        binomial_interval(3, 2)


# --- the wired model, whose errors are known --------------------------------------------------------------------------


@pytest.mark.experiment
def test_attention_and_errors_are_those_that_follow_from_the_margin():
    margin = 0.7
    found = interp.run("flip_flop", wired(margin), p="0.8,0.1", **SMALL, **QUIET)
    for p in (0.8, 0.1):
        tokens = flip_flop(p, batch=48, length=128, seed=0)
        wrong = excesses(tokens) > math.exp(margin)
        assert wrong.any()
        own = found.sel(language=f"FFL({p:g})", network="transformer")
        assert (int(own.reads), int(own.wrong)) == (len(wrong), wrong.sum())
        row, at = tokens.read.nonzero(as_tuple=True)
        for name, edges, values in (
            ("distance", DISTANCES, tokens.distance[row, at]),
            ("writes", WRITES, tokens.writes[row, at]),
        ):
            for k, (low, high) in enumerate(zip(edges, (*edges[1:], 10**6), strict=True)):
                inside = ((values >= low) & (values < high)).numpy()
                assert int(own[f"reads_by_{name}"][k]) == inside.sum()
                assert int(own[f"wrong_by_{name}"][k]) == (inside & wrong).sum()
    assert float(found.wrong.sel(network="lstm").max()) == 0
    n = found.read_writes.values - 1
    assert found.on_last.values == pytest.approx(1 / (1 + n * math.exp(-margin)), abs=1e-5)
    assert found.margin.values[n > 0] == pytest.approx(margin, abs=1e-5)
    assert np.isposinf(found.margin.values[n == 0]).all()


@pytest.mark.experiment
@pytest.mark.parametrize(
    ("margin", "defect", "cause"),
    [
        (0.5, None, "dilution"),
        (5.0, "positional tie", "tie"),
        (5.0, "blind value", "content"),
        (5.0, "inverted readout", "read-out"),
    ],
)
def test_each_planted_defect_is_named_and_controls_confirm_it(margin, defect, cause):
    found = interp.run("flip_flop", wired(margin, defect), **SMALL, **QUIET)
    assert found.head_role.values.tolist() == [["other", "other"], ["last write", "control"]]
    wrong = found.is_wrong.values
    assert (found.wrong.sel(network="transformer") > 0).all()
    assert set(found.cause.values[wrong]) == {cause}
    assert set(found.cause.values[~wrong]) <= {""}
    assert set(found.reason.values) == {""}
    assert (found.matching_repaired.values[wrong] == (cause in last_write.MATCHING)).all()
    assert (found.matching_repaired.values[~wrong] == 1).all()  # right reads are left right
    assert (found.control_repaired.values[wrong] == 0).all()  # and the head that does nothing repairs nothing
    if defect != "inverted readout":  # where no read is right
        assert (~wrong).sum() == wrong.sum()
    assert "L1H0" in printed(found)
    assert set(views.figures(found)) == {
        "errors_by_distance",
        "errors_by_writes",
        "causes_of_errors",
        "attention_and_margin",
    }


@pytest.mark.experiment
@pytest.mark.parametrize(("margin", "defect"), [(0.0, None), (5.0, "first write")])
def test_without_a_last_write_head_no_cause_is_given(margin, defect):
    found = interp.run("flip_flop", wired(margin, defect), **SMALL, **QUIET)
    wrong = found.is_wrong.values
    assert set(found.reason.values[wrong]) == {"no head attends to the last write"}
    assert set(found.cause.values) == {""}
    assert found.matching_repaired.isnull().all()
    assert "no head attends" in found.attrs["not_tested"]
    assert "Causes are not tested" in printed(found)
    assert set(views.figures(found)) == {"errors_by_distance", "errors_by_writes"}


@pytest.mark.experiment
def test_a_repair_that_harms_right_reads_gives_no_cause(monkeypatch):
    """Attention is set on the token before the last written value, which holds nothing."""
    real = last_write.hard_attention
    monkeypatch.setattr(last_write, "hard_attention", lambda model, heads, reads, back=0: real(model, heads, reads, 1))
    found = interp.run("flip_flop", wired(0.5), p="0.1", **SMALL, **QUIET)
    assert found.is_wrong.any()
    assert set(found.cause.values) == {""}
    assert set(found.reason.values[found.is_wrong.values]) != {""}


# --- the parts --------------------------------------------------------------------------------------------------------


def test_kinds_of_keys_are_those_of_a_plain_loop():
    tokens = flip_flop(0.4, batch=3, length=40, seed=2)
    reads = Reads.of(tokens, tokens.read)
    kinds = key_kinds(tokens, reads)
    for k in range(len(reads)):
        row, query, last = (int(x[k]) for x in (reads.row, reads.query, reads.last))
        for at in range(40):
            kind = last_write.KEYS[int(kinds[k, at])]
            if at > query:
                assert kinds[k, at] == -1
            elif at % 2 == 0:
                assert kind == "instruction"
            else:
                known = ("last write" if at == last else "earlier write", "read since" if at > last else "earlier read")
                assert kind == (*known, "ignored value")[int(tokens.ids[row, at - 1])]
                assert kind not in {"last write", "read since"} or tokens.ids[row, at] == tokens.ids[row, query + 1]


def test_hard_attention_changes_nothing_but_the_reads_of_its_heads():
    model = wired(1.0)
    tokens = flip_flop(0.5, batch=3, length=64, seed=1)
    reads = Reads.of(tokens, tokens.read)
    name = hooks.name_of(model, 1, "pattern")
    plain, hard = (
        hooks.record(model, tokens.ids, [name], hooks=added)[name]
        for added in ([], hard_attention(model, [(1, 0)], reads))
    )
    changed = torch.zeros_like(plain, dtype=torch.bool)
    changed[reads.row, 0, reads.query] = True
    assert torch.equal(hard[~changed], plain[~changed])
    assert (hard[reads.row, 0, reads.query, reads.last] == 1).all()
    assert hard[changed].sum() == len(reads)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sharpened_attention_is_that_of_scores_over_the_temperature(temperature):
    model = wired(1.5)
    tokens = flip_flop(0.5, batch=3, length=64, seed=1)
    reads = Reads.of(tokens, tokens.read)
    name = hooks.name_of(model, 1, "pattern")
    added = sharpened_attention(model, [(1, 0)], temperature)
    seen = hooks.record(model, tokens.ids, [name], hooks=added)[name]
    n = tokens.writes[reads.row, reads.query + 1] - 1
    known = 1 / (1 + n * math.exp(-1.5 / temperature))
    assert torch.allclose(seen[reads.row, 0, reads.query, reads.last], known, atol=1e-5)


@pytest.mark.experiment
def test_a_previous_token_head_is_not_classified():
    """Reads right after a write see it there, and are left out."""
    found = last_write_heads(wired(2.0), flip_flop(0.8, batch=64, length=128, seed=5), least=0.01)
    assert found.heads == ((1, 0),)
    assert found.attention[0, 0] == pytest.approx(0, abs=1e-6)


def test_heads_with_random_weights_attend_to_no_write():
    network, tokenizer = wired_flip_flop()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    found = last_write_heads(interp.load(network, tokenizer=tokenizer), flip_flop(0.8, batch=32, length=128, seed=9))
    assert found.heads == found.controls == ()


# --- cures and doses --------------------------------------------------------------------------------------------------


@pytest.mark.experiment
def test_cures_of_the_wired_model_are_those_of_the_margin_over_the_temperature():
    found = interp.run("flip_flop_cures", wired(0.7), sequences=24, calibration=32, temperatures="0.35,1,2", **QUIET)
    for p in (0.8, 0.98, 0.1):
        excess = excesses(flip_flop(p, batch=24, length=128, seed=0))
        at = found.wrong.sel(language=f"FFL({p:g})")
        for temperature in (0.35, 1.0, 2.0):
            known = (excess > math.exp(0.7 / temperature)).sum()
            assert int(at.sel(scope="last-write heads", temperature=temperature)) == known
        assert len(set(at.sel(temperature=1).values)) == 1
    for record in training_records():
        for language, counts in record["errors"].items():
            at = found.sel(recipe=record["recipe"], train_seed=record["seed"], language=language)
            assert (int(at.trained_wrong), int(at.trained_reads)) == (counts["wrong"], counts["reads"])
    assert list(views.figures(found)) == ["errors_by_temperature", "errors_by_training", "errors_in_training"]
    assert "entropy penalty in training" in printed(found)


@pytest.mark.causes
def test_a_planted_fault_of_the_output_rows_is_named_at_any_dose(tmp_path):
    """The output rows of the ordinary values under test are those of nothing: these are never predicted."""
    path = tmp_path / "damaged"
    shutil.copytree(folder("flipflop-doses"), path)
    weights = load_file(path / "model.safetensors")
    tested = FIRST_VALUE + np.linspace(0, 63, 8).round().astype(int)
    weights["lm_head.weight"][torch.from_numpy(tested)] = 0.0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    found = interp.run("flip_flop_doses", str(path), p="0.8", registers=1, calibration=16, **QUIET)
    ordinary = found.sel(dose=-1).isel(language=0)
    assert ordinary.is_wrong.all()
    assert (ordinary.cause == "read-out").mean() > 0.9
    assert not ordinary.glitch.any()


@pytest.mark.causes
def test_registers_hold_tokens_of_known_dose_and_the_frequent_ones_are_read():
    found = interp.run("flip_flop_doses", "flipflop-doses", p="0.8", registers=1, calibration=16, **QUIET)
    recipe = json.loads((folder("flipflop-doses") / "training.json").read_text())["recipe"]
    first = FIRST_VALUE + recipe["values"]
    for k, dose in enumerate(recipe["doses"]):
        assert found.token.sel(dose=dose).values.tolist() == [list(range(first + 8 * k, first + 8 * k + 8))]
    assert found.is_wrong.sel(dose=0).all()
    for dose in (1000, 3000, -1):
        assert not found.is_wrong.sel(dose=dose).any()
    assert set(found.cause.values[~found.is_wrong.values.astype(bool)]) == {""}
    assert list(views.figures(found)) == ["errors_by_dose", "causes_by_dose"]


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_the_stored_errors_are_out_of_distribution_and_of_matching():
    """The repairs, and not the controls, bring these reads right; the LSTM has no error."""
    found = results.load(FIGURES / "flip_flop")
    own = found.wrong.sel(network="transformer")
    assert float(own.sel(language="FFL(0.8)")) == 0
    assert float(own.sel(language="FFL(0.98)")) >= 5
    assert float(found.wrong.sel(network="lstm").max()) == 0
    wrong = found.is_wrong.values.astype(bool)
    assert found.matching_repaired.values[wrong].mean() > 0.95
    assert found.matching_repaired.values[~wrong].mean() > 0.95
    assert found.control_repaired.values[wrong].mean() < 0.5


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "model", "wrong", "remedy"),
    [
        ("flip_flop", "wired-flipflop", {"p": "1.5"}, "from 0 to 1"),
        ("flip_flop", "wired-flipflop", {"p": "0.8;0.9"}, "separated by commas"),
        ("flip_flop", "wired-flipflop", {"tokens_each": 2}, "even number from 4"),
        ("flip_flop", "wired-flipflop", {"tokens_each": 512}, "context of this model is 128"),
        ("flip_flop", "wired-flipflop", {"sequences": 0}, "positive integer"),
        ("flip_flop", "organism", {}, "does not have the flip-flop vocabulary"),
        ("flip_flop_cures", "organism", {}, "does not have the flip-flop vocabulary"),
        ("flip_flop_cures", "wired-flipflop", {"temperatures": "0"}, "positive number"),
        ("flip_flop_cures", "wired-flipflop", {"temperatures": "cold"}, "with commas"),
        ("flip_flop_doses", "wired-flipflop", {}, "use flipflop-doses"),
        ("flip_flop_doses", "flipflop", {}, "use flipflop-doses"),
        ("flip_flop_doses", "flipflop-doses", {"registers": 0}, "positive integer"),
    ],
)
def test_bad_input_gets_a_one_line_message(experiment, model, wrong, remedy):
    with pytest.raises(InterpError, match=remedy) as told:
        interp.run(experiment, model, **wrong, **QUIET)
    assert "\n" not in str(told.value)
