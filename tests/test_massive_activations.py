"""Are planted activations found from their threshold on, none in a model without, and is their effect measured?"""

import io

import numpy as np
import pytest
import torch
import xarray as xr
from rich.console import Console

import interp
from interp import models, views
from interp.errors import InterpError
from interp.experiments.massive_activations import experiment
from interp.experiments.massive_activations.experiment import place_of
from interp.experiments.massive_activations.states import (
    Chosen,
    Windows,
    called,
    largest_ratio,
    magnitudes,
    rotations,
    scores,
)

QUIET = {"log": lambda line: None}
DIMENSION, PLACE = 77, 0


def planted(size):
    """The organism with `size` added to dimension 77 of its first position, and nowhere else."""
    model = models.load("organism")
    with torch.no_grad():
        model.original_model.transformer.wpe.weight[PLACE, DIMENSION] += size
    return model


def windows_of(model, rows=2):
    ids = torch.arange(3, 3 + 12 * rows).reshape(rows, 12)
    return Windows("some", torch.nn.functional.pad(ids, (1, 0), value=2047), torch.ones(rows, 13, dtype=torch.bool))


def test_rotations_are_orthogonal_and_the_null_has_its_rate():
    (turn, other) = rotations(16, 2, seed=0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(16), atol=1e-5, rtol=0)
    assert not torch.allclose(turn, other)
    # states without preferred dimensions: one of twenty is above all of nineteen rotations
    turns = rotations(16, 19, seed=1)
    generator = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(300):
        states = torch.randn(24, 16, generator=generator) * torch.rand(24, 1, generator=generator)  # of any length
        false += bool(largest_ratio(states) > max(largest_ratio(states @ turn) for turn in turns))
    assert 4 <= false <= 27  # 15 expected


@pytest.mark.experiment
def test_a_planted_activation_is_found_from_its_threshold_on():
    """By both rules, at 0.5 to 10 times the threshold; never anything else by the published rule."""
    turns = rotations(128, 9, seed=0)
    model = planted(0)
    plain = magnitudes(model, windows_of(model), turns)
    median = float(plain["state_median"].sel(position=PLACE).isel(layer=0).mean())
    published = max(100.0, 1000 * float(plain["median"].isel(layer=0).max()))
    assert not called(plain, "published", 0).any()
    for rule, threshold in (("published", published), ("scale-free", float(plain["rotated"].max()) * median)):
        sensitivity = {}
        for times in (0.5, 0.9, 1.2, 3.0, 10.0):
            model = planted(times * threshold)
            found = magnitudes(model, windows_of(model), turns if rule == "scale-free" else ())
            mask = called(found, rule, float(found["rotated"].max()) if rule == "scale-free" else 0.0)
            here = mask & (found["dimension"].values == DIMENSION)
            sensitivity[times] = float(here[0, :, PLACE].any(-1).mean())
            if rule == "published":
                assert mask.sum() == here.sum()
                assert not here[:, :, 1:].any()
        assert sensitivity[0.5] == 0, rule
        assert sensitivity[3.0] == sensitivity[10.0] == 1, rule
        if rule == "published":
            assert sensitivity[0.9] == 0
            assert sensitivity[1.2] == 1


@pytest.fixture(scope="module")
def found():
    """Activations of 3,000 at the first position of an organism."""
    return interp.run("massive_activations", planted(3000.0), ["ordinary"], batch=4, length=8, rotations=9, **QUIET)


@pytest.mark.experiment
def test_a_planted_activation_is_named_with_its_place(found):
    assert found.attrs["rule"] == "published"
    assert found.attrs["dimensions"] == str(DIMENSION)
    assert found.attrs["from_layer"] == 0
    assert found["pool"].values.tolist() == ["running text", "ordinary"]
    massive = found["massive"].sel(rule="published")
    assert (massive.isel(layer=0) == 1).all()  # one in every sequence
    assert (found["at_first"].sel(rule="published") == 1).all()
    assert (found["dimension"].isel(position=0) == DIMENSION).all()
    assert (found["place"] == PLACE).all()
    np.testing.assert_allclose(found["place_p"], 1 / 200, rtol=1e-6)
    assert "at the first position" in found.attrs["verdict"]


@pytest.mark.experiment
def test_what_is_planted_is_not_needed_and_others_are_untouched(found):
    """Nothing but the first position has it: set to its mean there, nothing changes."""
    effect = found["effect"]
    mean = effect.sel(replacement="mean", chosen="massive", place_changed="sinks")
    assert abs(mean).max() < 0.05
    said = io.StringIO()
    for line in views.tables(found):
        Console(file=said, width=200).print(line)
    assert "running text: published rule: up to 1 per sequence" in said.getvalue()
    assert set(views.figures(found)) == {"magnitudes_by_layer", "magnitudes_by_position", "worth"}


@pytest.mark.experiment
def test_a_model_without_massive_activations_reports_none(tiny_gpt2):
    """Random weights have no preferred dimensions: nothing is found, and nothing is removed."""
    model = models.load(tiny_gpt2)
    made = interp.run("massive_activations", model, ["8:200"], batch=3, length=6, rotations=39, **QUIET)
    assert made.attrs["dimensions"] == ""
    assert (made["massive"] == 0).all()
    assert np.isnan(made["effect"]).all()
    assert made.attrs["verdict"].count("published rule: none") == 2
    assert made.attrs["verdict"].count("there is nothing to remove") == 2
    assert set(views.figures(made)) == {"magnitudes_by_layer", "magnitudes_by_position"}


def test_setting_dimensions_changes_scores_only_where_requested(organism):
    windows = windows_of(organism)
    clean = scores(organism, windows)
    nowhere, everywhere = torch.zeros_like(windows.read), torch.ones_like(windows.read)
    np.testing.assert_allclose(scores(organism, windows, [3], 0, nowhere), clean, atol=1e-6)
    assert abs(scores(organism, windows, [3, 5], 0, everywhere) - clean).min() > 1e-3
    # set to what they are, nothing changes
    own = torch.stack(
        [part[..., [3, 5]] for part in _streams(organism, windows.ids)]
    )  # [layer batch position dimension]
    np.testing.assert_allclose(scores(organism, windows, [3, 5], 0, everywhere, own), clean, atol=1e-5)


def _streams(model, ids):
    from interp.hooks import record

    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    seen = record(model, ids, names)
    return [seen[name] for name in names]


def test_position_dependence_is_distinguished_from_size():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(2, 30, 10))
    values[0, :, 4] += 2.0
    place, p = place_of(values, 199)
    assert place[0] == 4
    assert p[0] == 1 / 200
    # as large ones at a place of their own in each sequence have none
    values[1, np.arange(30), rng.integers(0, 10, 30)] += 100.0
    assert place_of(values, 199)[1][1] > 0.02


def test_most_dimensions_are_those_that_stand_out_most():
    magnitude = np.array([[[[9.0, 8.0, 7.0]]]])
    found = xr.Dataset(
        {
            "magnitude": (("layer", "batch", "position", "nth"), magnitude),
            "dimension": (("layer", "batch", "position", "nth"), np.array([[[[5, 2, 7]]]])),
            "state_median": (("layer", "batch", "position"), np.ones((1, 1, 1))),
            "median": (("layer", "batch"), np.ones((1, 1))),
        }
    )
    chosen = Chosen.of([found], threshold=7.5, most=1)
    assert chosen == Chosen("scale-free", 7.5, 0, [5])
    assert Chosen.of([found], threshold=9.5, most=1) is None
    assert Chosen.of([found], threshold=1.0, most=9).dimensions == [5, 2, 7]
    assert set(chosen.control(8, 0, 0)).isdisjoint({5})


@pytest.mark.experiment
def test_parts_are_kept(organism, monkeypatch):
    kept = {}
    pools = interp.pools(["ordinary"], organism)

    def draw(pool, *, stream=0, paired_with=None):
        return interp.repeated(organism, pool, batch=2, length=4, seed=stream)

    options = {"rotations": 2, "shuffles": 9, "draws": 1}
    first = experiment.massive_activations(
        organism, pools, draw, lambda name, make: kept.setdefault(name, make()), **options
    )
    of = ("running text", "ordinary")
    assert set(kept) == {*(f"activations on {name}" for name in of), *(f"changes on {name}" for name in of)}

    def none(*_):
        raise AssertionError("is measured again")

    for name in ("magnitudes", "scores", "usual_values"):
        monkeypatch.setattr(experiment, name, none)
    again = experiment.massive_activations(organism, pools, draw, lambda name, make: kept[name], **options)
    assert again.identical(first)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotations": 0}, "rotations 0, .* use positive integers"),
        ({"text": "missing.txt"}, "cannot read missing.txt"),
        ({"text": "empty"}, "has 0 tokens, fewer than one window"),
        ({"text": "bytes"}, "cannot read .* give a UTF-8 text file"),
    ],
)
def test_invalid_requests_are_refused_in_one_line(organism, tmp_path, options, said):
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    options = {n: str(tmp_path / v) if v in ("empty", "bytes") else v for n, v in options.items()}
    with pytest.raises(InterpError, match=said):
        interp.run("massive_activations", organism, ["ordinary"], batch=2, length=6, **options, **QUIET)
