"""Does a survey become one labelled Dataset and one page, with gaps where cells are missing?"""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from interp import cli, results, views
from interp.compare import compare_survey, survey_view, surveyed
from interp.errors import InterpError
from interp.request import Request

FIGURES = Path(__file__).parent.parent / "figures"


def put(folder, model, experiment, result, seed=None, **parameters):
    """A cell with a result of ours, or one of the gallery's."""
    request = Request.of(experiment, model=model, seed=seed, **parameters)
    cell = folder / "cells" / f"{len(list(folder.glob('cells/*')))}-{experiment}"
    cell.mkdir(parents=True)
    (cell / "cell.json").write_text(json.dumps({"request": request.to_json()}))
    if isinstance(result, xr.Dataset):
        results.save(results.stamp(result, {"experiment": experiment}), cell / "result.nc")
    else:
        shutil.copy(FIGURES / result / "result.nc", cell / "result.nc")


def copied(worst, ordinary):
    """A summary of `repeated_tokens`, with the pools as the cells have them."""
    values = np.array([[worst, worst - 1, worst + 1], [ordinary] * 3], dtype=np.float32)
    coords = {"pool": ["<never>", "ordinary"], "bound": ["mean", "low", "high"]}
    return xr.Dataset({"copied": (("pool", "bound"), values)}, coords)


def classified(heads, score):
    kinds = {"kind": ["induction", "previous"], "bound": ["mean", "low", "high"]}
    data = {
        "heads": ("kind", np.array([heads, "-"], dtype=object)),
        "score": (("kind", "bound"), np.full((2, 3), score, np.float32)),
        "classified_on": ((), np.array("ordinary", dtype=object)),
    }
    return xr.Dataset(data, kinds)


def detected(count, not_repeated):
    return xr.Dataset(
        {"under_trained": ("set", [float(count), float(not_repeated)])}, {"set": ["detected", "not repeated"]}
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two models: one over three checkpoints and two seeds of its training, the other of a few cells."""
    kept = {
        name: (lambda found: {str(n): a for n, a in found.data_vars.items()})
        for name in ("repeated_tokens", "undertrained", "induction_heads")
    }
    monkeypatch.setattr(surveyed, "_SUMMARIES", kept)
    path = tmp_path / "survey"
    for seed in (1, 2):
        for step, worst, head in ((100, -2.2, "-"), (20, -2.0, "-"), (300, -5.0 - seed, "L1H0")):
            put(path, f"runs-seed{seed}/step{step}", "repeated_tokens", copied(worst, -2.0))
            put(path, f"runs-seed{seed}/step{step}", "induction_heads", classified(head, 0.1 * seed))
    put(path, "other", "undertrained", detected(7, 3), seed=1)
    put(path, "other", "repeated_tokens", copied(-9.0, -1.5), seed=1)
    put(path, "other", "logit_lens", detected(0, 0), seed=1)
    return path


@pytest.mark.experiment
def test_every_cell_is_placed_at_its_model_checkpoint_and_seed(folder, tmp_path):
    said = []
    found = compare_survey(folder, tmp_path / "out", log=said.append)
    assert said == ["1 cells of other experiments are left out: 'interp show' shows each"]
    assert list(found["model"].values) == ["other", "runs"]
    assert list(found["checkpoint"].values) == [-1, 20, 100, 300]
    assert list(found["seed"].values) == [1, 2]
    assert list(found["pool"].values) == ["<never>", "ordinary"]
    gap = found["gap"].sel(pool="<never>")
    assert float(gap.sel(model="runs", checkpoint=300, seed=2)) == 5.0
    assert float(gap.sel(model="other", checkpoint=-1, seed=1)) == 7.5
    assert int(gap.notnull().sum()) == 7  # and nothing else is known
    assert found["heads"].sel(model="runs", checkpoint=300, seed=1, kind="induction") == "L1H0"
    assert found["heads"].sel(model="other", checkpoint=-1, seed=2, kind="induction") == "-"
    assert float(found["under_trained"].sel(model="other", checkpoint=-1, seed=1, set="detected")) == 7
    first = found["appears"].sel(model="runs")
    assert (first.sel(appearing=["copying gap", "induction head"]) == 300).all()
    assert first.sel(appearing="glitch tokens").isnull().all()
    stored = results.load(tmp_path / "out")
    assert stored.identical(results.load(tmp_path / "out"))
    assert set(views.figures(stored)) == {"over_models", "over_training"}


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"model": "runs-seed1/step400"}, ("runs", 400, 1)),
        ({"model": "runs/tied-seed2-step400"}, ("runs/tied", 400, 2)),
        ({"model": "gpt2", "revision": "step1000"}, ("gpt2", 1000, 0)),
        ({"model": "gpt2", "revision": "main"}, ("gpt2@main", -1, 0)),
        ({"model": "EleutherAI/pythia-70m", "checkpoint": 8, "seed": 3}, ("EleutherAI/pythia-70m", 8, 3)),
        ({"model": "organism-llama"}, ("organism-llama", -1, 0)),
    ],
)
def test_model_checkpoint_and_seed_of_a_name(options, at):
    assert surveyed._coordinates(Request.of("undertrained", **options)) == at


@pytest.mark.experiment
def test_rows_and_tables_show_what_is_known(folder, tmp_path):
    found = compare_survey(folder, tmp_path / "out", log=lambda line: None)
    rows = survey_view.rows(found)
    assert len(rows) == 7
    other = next(row for row in rows if row["model"] == "other")
    assert (other["gap"], other["worst"], other["detected"], other["score"], other["heads"]) == (
        7.5,
        "<never>",
        7.0,
        None,
        None,
    )
    said = CliRunner().invoke(
        cli.app, ["compare", str(folder), "--out", str(tmp_path / "again"), "--format", "html"], env={"COLUMNS": "160"}
    )
    assert said.exit_code == 0, said.output
    assert "4.50 (4.00 .. 5.00)" in said.output
    assert "300" in next(line for line in said.output.splitlines() if "induction head" in line and "best" not in line)
    assert "survey.html" in said.output


def test_mistakes_get_a_one_line_message(folder, tmp_path):
    empty = tmp_path / "empty"
    put(empty, "a", "logit_lens", detected(0, 0))
    with pytest.raises(InterpError, match="holds no cells of"):
        compare_survey(empty, tmp_path / "out", log=lambda line: None)
    said = CliRunner().invoke(cli.app, ["compare", str(folder), "--pool", "text", "--out", str(tmp_path / "out")])
    assert said.exit_code == 1
    assert "leave all options but --out out" in said.stderr
    put(folder, "other", "undertrained", detected(8, 3), seed=1, fdr=0.1)
    with pytest.raises(InterpError, match="with other options"):
        compare_survey(folder, tmp_path / "out", log=lambda line: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.experiment
def test_results_of_real_experiments_are_read(tmp_path):
    put(tmp_path, "organism", "repeated_tokens", "repeated_tokens")
    put(tmp_path, "organism", "induction_heads", "induction_heads")
    put(tmp_path, "organism-llama", "induction_heads", "induction_heads_llama")
    put(tmp_path, "organism", "undertrained", "undertrained")
    put(tmp_path, "organism", "glitch_attribution", "glitch_attribution_single")
    found = compare_survey(tmp_path, tmp_path / "out")
    row = survey_view.rows(found)[0]
    assert row["model"] == "organism"
    assert row["gap"] > 5
    assert row["detected"] >= row["not_repeated"] > 100
    assert row["score"] > 0.5
    assert ": " in row["cause"]
    assert survey_view.rows(found)[1]["heads"].startswith("L")


@pytest.mark.browser
def test_the_page_is_searched_sorted_and_dark_in_a_browser(folder, tmp_path):
    from test_report import visit

    compare_survey(folder, tmp_path / "out", log=lambda line: None)
    column = "[...document.querySelectorAll('#rows tbody tr')].map(r => r.cells[{}].textContent).join()"
    click = "(document.querySelector('th[data-key={}] button').click(), {})"
    steps = [
        "document.getElementById('count').textContent",
        column.format(3),
        click.format("gap", column.format(3)),
        "document.querySelector('th[data-key=gap]').getAttribute('aria-sort')",
        click.format("checkpoint", column.format(1)),
        "(s => (s.value = 'RUNS l1h0', s.dispatchEvent(new Event('input')), document.getElementById('count').textContent))(document.getElementById('search'))",
        "(s => (s.value = '<never> other', s.dispatchEvent(new Event('input')), document.querySelector('#rows tbody tr').cells[4].textContent))(document.getElementById('search'))",
        "[...document.querySelectorAll('.figure')].map(f => f.querySelector('.plotly') !== null).join()",
        "getComputedStyle(document.body).backgroundColor",
        {"Emulation.setEmulatedMedia": {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}},
        "getComputedStyle(document.body).backgroundColor",
        {"Emulation.setDeviceMetricsOverride": {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}},
        "String(document.documentElement.scrollWidth <= 400)",
    ]
    values, said = asyncio.run(visit(tmp_path / "out" / "survey.html", steps))
    assert values[0] == "7 of 7 rows"
    assert values[1] == "7.50,5.00,4.00,0.20,0.20,0.00,0.00"
    assert values[2] == "0.00,0.00,0.20,0.20,4.00,5.00,7.50"
    assert values[3] == "ascending"
    assert values[4] == "20,20,100,100,300,300,"  # what is not known comes last
    assert values[5] == "2 of 7 rows"
    assert values[6] == "<never>"
    assert values[7] == "true,true"
    assert values[8] == "rgb(255, 255, 255)"
    assert values[9] == "rgb(22, 22, 22)"
    assert values[10] == "true"
    assert not said
