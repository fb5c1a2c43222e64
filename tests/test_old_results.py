"""Do results that release 0.1 stored still open, with today's names, and show?

One of each kind lies in `tests/data/results_of_0.1`, small: a few sequences, or 200 tokens of a vocabulary.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from interp import catalog, results, views

FOLDER = Path(__file__).parent / "data" / "results_of_0.1"
STORED = sorted(FOLDER.glob("*.nc"))
ELSEWHERE = {"compare", "reproduce", "training"}
OLD = {"attention_stripes": "attention_scores", "argmaxable": "argmaxability"}


def test_every_experiment_is_among_them():
    kinds = {OLD.get(path.stem, path.stem) for path in STORED}
    younger = {
        "check",
        "near_match",
        "occurrences",
        "row_distances",
        "edge_attribution",
        "emission",
        "score_attribution",
        "glitch_heads",
        "false_demonstrations",
        "flip_flop",
        "flip_flop_cures",
        "flip_flop_doses",
        "massive_activations",
        "repeated_token",
    }
    assert kinds == {*catalog.names(), *ELSEWHERE, "mine"} - younger


@pytest.mark.experiment
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_old_results_open_under_todays_name_and_have_a_view(path):
    result = results.load(path)
    name = results.provenance(result)["experiment"]
    assert name == OLD.get(path.stem, path.stem)
    said = io.StringIO()
    for line in views.tables(result):
        Console(file=said, width=120).print(line)
    logged = []
    drawn = views.figures(result, log=logged.append)
    assert "is not available for this result" not in said.getvalue()
    assert logged == []
    if path.stem != "mine":  # of a user's experiment: the plain view
        assert views.view_of(result) is not None
    # some figures need what these small results have not
    assert drawn or path.stem in ("undertrained",)
    assert all(figure.to_json() for figure in drawn.values())


@pytest.mark.parametrize(
    ("stored", "old", "new"),
    [
        ("attention_stripes", {"stripe"}, {"key_kind"}),
        (
            "induction_heads",
            {"stripe", "looked", "line", "called"},
            {"key_kind", "argmax_share", "threshold", "classified"},
        ),
        ("head_ablation", {"called"}, {"classified"}),
        ("undertrained", {"called"}, {"detected"}),
        ("repeat_prompt", {"said"}, {"answer"}),
        ("training", {"stripe"}, {"key_kind"}),
        ("compare", {"called_on"}, {"classified_on"}),
    ],
)
def test_renamed_variables_hold_what_they_held(stored, old, new):
    with xr.open_dataset(FOLDER / f"{stored}.nc", engine="h5netcdf") as file:
        plain = file.load()
    result = results.load(FOLDER / f"{stored}.nc")
    before, after = ({*map(str, d.variables), *map(str, d.dims)} for d in (plain, result))
    assert old <= before
    assert not old & after
    assert new <= after
    assert before - after == old
    for name in before & after & set(map(str, plain.data_vars)) - {"set"}:
        np.testing.assert_array_equal(plain[name].values, result[name].values, err_msg=name)


def test_renamed_entries_of_coordinates():
    assert results.load(FOLDER / "embedding_repair.nc")["repair"].values.tolist() == [
        "none", "random", "gaussian", "mean", "norm", "subword_mean", "gradient",
    ]  # fmt: skip
    assert results.load(FOLDER / "compare.nc")["set"].values.tolist() == ["detected", "not repeated"]


@pytest.mark.parametrize(
    ("experiment", "coord", "old", "new"),
    [
        ("argmaxability", "question", "behind the norm", "after the norm"),
        ("false_demonstrations", "group", "called", "classified"),
        ("glitch_attribution", "combination", "matching in called heads", "matching in classified heads"),
        ("glitch_heads", "group", "called", "classified"),
        ("glitch_heads", "head_group", "called", "classified"),
    ],
)
def test_earlier_words_of_coordinates_are_read_as_todays(experiment, coord, old, new, tmp_path):
    values = xr.DataArray([1.0, 2.0], dims="entry", coords={coord: ("entry", [old, "control"])})
    stored = results.stamp(values.to_dataset(name="effect"), {"experiment": experiment})
    read = results.load(results.save(stored, tmp_path / "result.nc"))
    assert read[coord].values.tolist() == [new, "control"]
    assert read[coord].dims == ("entry",)
    assert read["effect"].values.tolist() == [1.0, 2.0]
    assert results.upgraded(read).identical(read)


def test_current_results_are_left_alone(wired):
    """A variable that has an old name today is what its experiment called it."""
    made = xr.Dataset({"called": ("head", [1])})
    record = {"experiment": "head_ablation"}
    assert "called" in results.upgraded(results.stamp(made, record))
