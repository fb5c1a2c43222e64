"""Is planted damage undone by the undamaged model's activations, and credited to what was damaged?"""

import importlib

import numpy as np
import pytest
import torch

from interp.defects import DEFECTS
from interp.repairs import REPAIRS, subsets
from interp.repairs.fitted_readout import _part_of_the_way

ROOT = __file__.rpartition("tests")[0]


@pytest.fixture
def truth(monkeypatch):
    monkeypatch.syspath_prepend(f"{ROOT}benchmarks")
    return importlib.import_module("planted_truth")


@pytest.mark.experiment
@pytest.mark.parametrize("right_only", [False, True])
@pytest.mark.parametrize("defect", ["blind-values", "blind-keys", "random-rows", "suppressed"])
def test_what_was_damaged_is_what_the_undamaged_activations_restore(truth, tmp_path, defect, right_only):
    here = truth.setting("wired", defect, 0, tmp_path)
    row = truth.measured(here, [defect], 1.0, batch=8, seed=0, right_only=right_only)
    assert row["deficit"] > 1
    assert row["share"][DEFECTS[defect]] == pytest.approx(row["deficit"], abs=2e-3)
    assert sum(row["share"].values()) == pytest.approx(row["deficit"], abs=5e-3)
    assert row["value"]["none"] == pytest.approx(row["value"][" + ".join(REPAIRS)] - row["deficit"], abs=5e-3)


@pytest.mark.experiment
def test_rows_that_are_one_lack_identity(truth, tmp_path):
    here = truth.setting("wired", "collapsed", 0, tmp_path)
    row = truth.measured(here, ["collapsed"], 1.0, batch=8, seed=0)
    assert row["near"] == len(here.ids)
    assert row["share"]["identity"] == pytest.approx(np.log(len(here.ids)), abs=2e-3)
    assert row["identity of all"] == row["share"]["identity"]


def test_a_restoration_that_makes_things_worse_is_left_out(truth):
    """Attention restored to keys that carry a write against the pool costs a nat; once that is gone, it gains two."""
    gains = {"matching": -1.0, "suppression": 0.5}
    worth = {}
    for some in map(frozenset, subsets(REPAIRS)):
        level = -3.0 + sum(gains.get(name, 0.0) for name in some) + 3.0 * ({"matching", "suppression"} <= some)
        worth[some] = np.tile([level, level, 0.0], (4, 1))
    row = truth.shares(worth, np.zeros((4, 3)))
    assert row["all orders"]["matching"] == pytest.approx(0.5)
    assert row["share"]["matching"] == pytest.approx(1.0)  # alone 0, last 2
    assert row["share"]["suppression"] == pytest.approx(1.5)
    assert row["alone"]["matching"] == -1
    assert row["last"]["matching"] == 2
    assert row["share"]["unexplained"] == pytest.approx(0.5)


def test_both_truths_are_reported(truth):
    """Of rows that are half alike, matching may be all that fails: wrong by what was planted, right by activations."""
    stages = truth.STAGES
    said = {
        "defects": ["collapsed"],
        "verdict": "matching 4.00 of 5.00 nats",
        "shares": dict.fromkeys(stages, 0.0) | {"matching": 4.0, "content": 1.0},
    }
    low = dict.fromkeys(stages, 0.0)
    row = {"share": low | {"matching": 3.0, "content": 2.0}, "low": low | {"matching": 2.9, "content": 1.9}}
    row["high"] = low | {"matching": 3.1, "content": 2.1}
    assert truth.outcome(said) == "wrong"
    assert truth.outcome_by_activations(said, row) == "right"
    shares = {"share": {"matching": 2.0, "content": 3.0}, "low": {"content": 2.9}, "high": {"matching": 2.1}}
    other = {name: low | numbers for name, numbers in shares.items()}
    assert truth.outcome_by_activations(said, other) == "wrong"
    close = other | {"high": low | {"matching": 3.0, "content": 3.1}}
    assert truth.outcome_by_activations(said, close) == "right"  # either may be the largest
    assert truth.outcome_by_activations(said | {"verdict": "cannot tell: content or readout"}, other) == "cannot tell"
    assert truth.outcome_by_activations(said | {"verdict": "cannot tell: readout"}, other) == "wrong"


@pytest.mark.parametrize(("healthy", "part"), [(-1.0, 0.25), (0.0, 0.5), (2.0, 1.0), (9.0, 1.0)])
def test_rows_change_no_more_than_is_missing(healthy, part):
    class Likelihood:
        def log_prob(self, scores, at):
            return scores[:, 0][at]

    own, fitted = torch.full((5, 1), -2.0), torch.full((5, 1), 2.0)
    at = torch.tensor([True, True, False, True, True])
    own[2] = 100  # a place that is not asked about
    assert _part_of_the_way(Likelihood(), at, own, fitted, healthy) == pytest.approx(part, abs=2e-3)
