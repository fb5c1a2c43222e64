"""Do the figures show the numbers of the result, and leave plotly as it was?"""

import io
import json
import math
from pathlib import Path

import numpy as np
import plotly.io
import pytest
import xarray as xr
from rich.console import Console

import interp
from interp import pages, results, views
from interp.errors import InterpError
from interp.statistics import mean_interval, statistic_interval
from interp.tokens import Pool

GALLERY = Path(__file__).parent.parent / "figures"
UNIFORM = -math.log(65)


@pytest.fixture(scope="module")
def result(wired):
    return interp.run("repeated_tokens", wired, ["a=1:40", "b=30:60"], length=10, batch=6)


def test_lines_are_the_means(result):
    figure = views.figures(result)["log_prob_by_position"]
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    assert list(drawn) == ["a", "b"]
    assert list(drawn["a"].x) == list(range(1, 21))
    assert drawn["a"].y[:11] == pytest.approx([UNIFORM] * 11, abs=1e-4)
    assert drawn["a"].y[11:] == pytest.approx([0.0] * 9, abs=1e-4)
    said = [a.text for a in figure.layout.annotations]
    assert said[:2] == ["first half: cannot be known", "second half: a repeat"]
    assert said[2:] == ["95% intervals: Student's t, 6 sequences."]
    assert figure.layout.shapes[0].x0 == 10.5  # between the halves
    assert figure.layout.yaxis.title.text.endswith("(nats)")


def test_intervals_are_drawn_around_the_mean(organism):
    result = interp.run("repeated_tokens", organism, batch=16)
    figure = views.figures(result)["log_prob_by_position"]
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    lines = [trace for trace in figure.data if trace.name]
    for band, line in zip(bands, lines, strict=True):
        n = len(line.x)
        assert all(low <= mean <= high for high, mean, low in zip(band.y[:n], line.y, band.y[n:][::-1], strict=True))
        assert max(np.subtract(band.y[:n], band.y[n:][::-1])) > 0.01


def test_heatmaps_show_every_head(wired):
    score = interp.run("attention_scores", wired, ["a=1:40", "b=30:60"])
    figure = views.figures(score)["head_scores"]
    assert len(figure.data) == 2 * 5
    assert np.array(figure.data[0].z) == pytest.approx(np.array([[0, 0.029], [1, 0.029]]), abs=0.01)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


@pytest.mark.experiment
def test_dose_response_reads_the_summary(organism):
    result = interp.run("repeated_tokens", organism, ["doses", "ordinary"], batch=8, length=10)
    figure = views.figures(result)["dose_response"]
    line = next(trace for trace in figure.data if trace.name == "one among ordinary tokens")
    assert list(line.x) == ["0", "1", "3", "10", "30", "100", "300", "1000", "3000", "ordinary"]
    means = result.summary.sel(measure="log_prob", definition="single", part="second", bound="mean")
    assert list(line.y) == pytest.approx(means.values.tolist())
    assert "dose_response" in views.figures(result)
    other = interp.run("repeated_tokens", organism, ["ordinary"], batch=2)
    assert list(views.figures(other)) == ["log_prob_by_position", "halves"]


@pytest.mark.parametrize("name", ["organism", "organism-untied", "organism-llama"])
def test_training_curve(name):
    curve = interp.training_curve(name)
    assert list(views.figures(curve)) == ["training_curve"]
    drawn = {trace.name: trace for trace in views.figures(curve)["training_curve"].data}
    assert drawn["best induction score"].y[-1] > 0.6
    title, table = views.tables(curve)
    assert "Training" in title.plain
    assert table.row_count == 12


def test_no_global_template_is_changed(result):
    before = plotly.io.templates.default
    views.figures(result)
    assert plotly.io.templates.default == before
    assert "interp" not in plotly.io.templates


def test_a_page_is_written_atomically(result, tmp_path):
    page = pages.write_page(views.figures(result), tmp_path / "figure.html", about="<seed 0>")
    text = page.read_text()
    assert text.count("Plotly.newPlot") == 2
    assert "&lt;seed 0&gt;" in text
    assert [p.name for p in tmp_path.iterdir()] == ["figure.html"]
    with pytest.raises(InterpError, match="cannot write"):
        pages.write_page({}, page / "below-a-file" / "figure.html")


@pytest.mark.browser
def test_images_where_a_browser_is_installed(result, tmp_path):
    import shutil

    written = pages.write_images(views.figures(result), tmp_path)
    if not any(shutil.which(name) for name in ("chromium", "google-chrome", "chrome", "chromium-browser")):
        assert written == []
        pytest.skip("no browser is installed, and none is needed")
    assert [p.name for p in written] == ["log_prob_by_position.png", "halves.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.experiment
def test_bootstrap_interval_covers_the_true_mean():
    """In 95 of 100 samples, less the percentile bootstrap's known shortfall: measured 93.7% over 3,000 of 60."""
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(1500):
        mean, low, high = mean_interval(rng.normal(3, 2, size=60), seed=i, resamples=400)
        assert low <= mean <= high
        hits += low <= 3 <= high
    assert 0.92 <= hits / 1500 <= 0.96


@pytest.mark.experiment
@pytest.mark.parametrize(("count", "skewed"), [(2, 0.89), (3, 0.86), (4, 0.86), (8, 0.87), (16, 0.89), (64, 0.91)])
def test_intervals_cover_the_mean_at_any_number_of_samples(count, skewed):
    """Normal samples at the nominal rate; exponential ones, whose tail no small sample shows, nearly so."""
    rng = np.random.default_rng(count)
    for samples, truth, least in (
        (rng.normal(3, 2, size=(count, 4000)), 3, 0.93),
        (rng.exponential(size=(count, 4000)), 1, skewed),
    ):
        _, low, high = mean_interval(samples, resamples=500)
        assert least <= np.mean((low <= truth) & (truth <= high)) <= 0.965


def test_samples_that_are_all_equal_have_no_interval_where_they_are_few():
    """Nine of ten sequences right: of four that are all right, an interval of 1 .. 1 would miss the truth."""
    assert np.isnan(mean_interval([1.0, 1.0, 1.0, 1.0])[1:]).all()
    assert mean_interval(np.ones(30)).tolist() == [1, 1, 1]


def test_intervals_of_other_statistics_need_thirty_samples():
    few, enough = np.arange(29), np.arange(30)
    assert np.isnan(statistic_interval(np.mean, few, resamples=50)).all()
    assert np.isfinite(statistic_interval(np.mean, enough, resamples=50)).all()


def test_bootstrap_of_too_little():
    mean, low, high = mean_interval([1.0])
    assert (mean, np.isnan(low), np.isnan(high)) == (1.0, True, True)
    both = mean_interval([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
    assert both[0].tolist() == [2.0, 5.0]
    assert np.isnan(both[1:, 1]).all()
    assert xr.DataArray(mean_interval([[np.nan], [np.nan]])).isnull().all()


@pytest.fixture(scope="module")
def detected():
    """The gallery's result, in which every token was verified."""
    return results.load(GALLERY / "undertrained")


def test_the_census_is_drawn_as_counted(organism):
    from interp.vocabulary import census, summary

    figure = views.figures(summary(census(organism)))["census"]
    bars = {bar.name: dict(zip(bar.y, bar.x, strict=True)) for bar in figure.data}
    assert bars["impossible"] == {"byte": 13, "fragment": None, "text": None, "special": None}
    assert bars["reachable"] == {"byte": 243, "fragment": 1, "text": 1790, "special": 1}
    assert figure.layout.title.text.endswith("organism")


def test_indicator_and_probability_meet_in_the_corners(detected):
    """Every verified token is drawn once, and the words in the corners count them."""
    usual = detected.attrs["indicator"]
    some = detected["detected"].sel(indicator=usual) | (detected["token"] % 4 == 0)
    detected = detected.assign(max_probability=detected["max_probability"].where(some))
    figure = views.figures(detected)["indicator_against_probability"]
    x, y = (np.concatenate([trace[axis] for trace in figure.data]) for axis in ("x", "y"))
    assert len(x) == int(detected.max_probability.notnull().sum()) > 700
    limit = float(detected.threshold.sel(indicator=detected.attrs["indicator"]))
    counted = [
        ("detected and not repeated", (x <= limit) & (y < 0.01)),
        ("detected, yet repeated", (x <= limit) & (y >= 0.01)),
        ("not detected, not repeated", (x > limit) & (y < 0.01)),
    ]
    said = [a.text for a in figure.layout.annotations]
    assert said == [f"{words}: {int(at.sum())}" for words, at in counted]
    unused = next(trace for trace in figure.data if trace.name == "no text can produce it")
    assert max(unused.y) < 0.01
    assert any("DIAERESIS" in text and "trained on 0 times" in text for trace in figure.data for text in trace.text)


def test_the_histogram_holds_every_token(detected):
    figure = views.figures(detected)["indicator_histogram"]
    assert sum(sum(bar.y) for bar in figure.data if bar.type == "bar") == 2048
    null = next(trace for trace in figure.data if trace.name == "null fitted to text")
    centre = float(detected.null_centre.sel(indicator=detected.attrs["indicator"]))
    assert abs(null.x[int(np.argmax(null.y))] - centre) < 0.03


def test_detection_curves_have_the_area_of_the_table(detected):
    figure = views.figures(detected)["detection"]
    curves = [trace for trace in figure.data if trace.showlegend is not False]
    assert len(curves) == detected.sizes["detector"]
    for trace, name in zip(curves, detected["detector"].values, strict=True):
        area = float(np.trapezoid(trace.y, trace.x))
        truth = detected.truth.sel(detector=name, subset="multi-character", measure="auroc", bound="value")
        assert area == pytest.approx(float(truth), abs=1e-6)
        assert trace.name == f"{name} ({float(truth):.3f})"


@pytest.mark.experiment
def test_exposure_prompt_and_logit_figures(organism):
    doses = interp.run("dose_response", organism, contexts=1, resamples=5)
    figure = views.figures(doses)["exposure_response"]
    mean = next(trace for trace in figure.data if trace.name == "mean of the canaries")
    assert list(mean.x) == [d + 1 for d in (0, 1, 3, 10, 30, 100, 300, 1000, 3000)]
    at = doses.isel(token=(doses.canary & (doses.exposure == 30)).values)
    assert mean.y[4] == pytest.approx(float(at.log_prob.mean()), abs=1e-5)
    asked = interp.run("repeat_prompt", organism, ["unexposed", "ordinary"], most=6, steps=4)
    line = next(trace for trace in views.figures(asked)["repeat_probability"].data if trace.name == "ordinary")
    expected = asked.probability.where(asked.pool == "ordinary", drop=True).mean("token").values
    assert np.array(line.y) == pytest.approx(expected, abs=1e-6)
    most = interp.run("unused_logits", organism, ["177:188", "ordinary"], contexts=4)
    dots = views.figures(most)["largest_log_prob"].data
    assert [len(d.y) for d in dots] == [11, len(most.token) - 11]
    assert max(dots[0].y) == pytest.approx(float(most.largest.sel(measure="log_prob")[:11].max()))


# --- the circuit ----------------------------------------------------------------------------------------------------------

MANY = [Pool(name, tuple(range(1, 25))) for name in ("<b>&", *(f"p{i}" for i in range(9)))]
CIRCUIT = {"length": 10, "batch": 4}


@pytest.fixture(scope="module")
def paths(wired):
    return interp.run("path_patching", wired, MANY[:3], reference="25:65", **CIRCUIT)


def printed(result):
    """What the tables of a result say, in one line of plain text."""
    console = Console(width=250, file=io.StringIO())
    for part in views.tables(result):
        console.print(part)
    return " ".join(console.file.getvalue().split())


def test_lines_are_as_wide_as_what_paths_carry(paths):
    """On the wired model: L0H0 through keys, ln 65; L1H0 to the logits, its all; nothing else."""
    figure = views.figures(paths)["path_strengths"]
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.x[0] is not None]
    said = {(trace.text[0].rsplit(":", 1)[0], trace.xaxis) for trace in lines}
    assert said == {
        ("L1H0 to logits, to the logits", axis) for axis in ("x", "x2", "x3")
    }  # 4.2 of 707 nats is too thin
    assert all(trace.line.width == pytest.approx(14) for trace in lines)
    nats = 200 * math.sqrt(200 / 16)
    assert f"{nats:.1f} nats" in figure.layout.title.text
    titles = [a.text for a in figure.layout.annotations]
    assert titles == ["&lt;b&gt;&amp; in the ordinary run", "p0 in the ordinary run", "p1 in the ordinary run"]
    # without the path to the logits, that through the keys is the widest
    alone = views.figures(paths.assign(direct=paths.direct * 0))["path_strengths"]
    lines = [trace for trace in alone.data if trace.mode == "lines" and trace.x[0] is not None]
    assert {trace.text[0] for trace in lines} == {f"L0H0 to L1H0, k: {UNIFORM:+.2f} nats"}
    assert all(trace.line.width == pytest.approx(14) and trace.line.dash == "solid" for trace in lines)


def test_the_table_of_paths_reads_the_ordinary_token(paths):
    """Noising loses it; denoising gains it: both directions are read where they mean something."""
    said = printed(paths)
    wrong = 200 * math.sqrt(200 / 16)
    # the same in all four sequences: no intervals
    assert f"<b>& noising L0H0 (previous) 0.00 {UNIFORM:.2f}" in said.replace("-0.00", "0.00")
    gained = wrong + UNIFORM  # no more of the wrong word
    assert f"<b>& denoising L0H0 (previous) 0.00 {gained:.2f}" in said.replace("-0.00", "0.00")


@pytest.mark.experiment
@pytest.mark.parametrize(
    "experiment", ["induction_heads", "head_ablation", "logit_lens", "logit_attribution", "attention_pattern"]
)
def test_many_pools_of_any_name(wired, experiment):
    """More pools than colours, and a name that looks like markup."""
    own = {"baseline_draws": 2} if experiment == "induction_heads" else {}
    own |= {"reference": "1:65"} if experiment in ("head_ablation", "attention_pattern") else {}
    result = interp.run(experiment, wired, MANY, **CIRCUIT, **own)
    drawn = views.figures(result)
    assert drawn
    for figure in drawn.values():
        assert "<b>" not in figure.to_json().replace("\\u003c", "<")
    assert "<b>&" in printed(result)


def test_many_heads_are_seen_in_rows(wired):
    """Four panels in a row, fewer labels where they are narrow; everything requested is drawn."""
    result = interp.run("attention_pattern", wired, ["1:65"], heads="L0H0,L0H1,L1H0,L1H1", length=12, batch=2)
    five = xr.concat(
        [result, result.isel(component=[0]).assign_coords(component=["L9H9"])], "component", data_vars="minimal"
    )
    figure = views.figures(five)["attention_view"]
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [trace.xaxis for trace in maps] == ["x", "x2", "x3", "x4", "x5"]
    assert (figure.layout.yaxis5.domain[1], figure.layout.xaxis5.domain) < (figure.layout.yaxis.domain[0], (1, 1))
    for trace, component in zip(maps, five.component.values, strict=True):
        assert np.array(trace.z) == pytest.approx(five.pattern.sel(component=component).values[0], abs=1e-6)
    assert [a.text for a in figure.layout.annotations[:5]] == [f"{c}, 1:65" for c in five.component.values]
    assert len(figure.layout.xaxis.tickvals) == 13  # of 25, four abreast


def test_a_title_names_the_last_part_of_a_long_path(wired):
    result = interp.run("logit_lens", wired, ["1:65"], **CIRCUIT)
    assert views.figures(result)["lens_by_layer"].layout.title.text.endswith("· wired")
    where = results.provenance(result)
    where["model"]["name"] = "/some/where/" + "very/" * 10 + "here"
    moved = result.assign_attrs(provenance=json.dumps(where))
    assert views.figures(moved)["lens_by_layer"].layout.title.text.endswith("· here")


def test_each_result_gets_the_figures_it_has_data_for(detected, wired):
    assert list(views.figures(detected)) == ["indicator_against_probability", "indicator_histogram", "detection"]
    unasked = detected.drop_vars(["max_probability", "probability", "truth"])
    assert list(views.figures(unasked)) == ["indicator_histogram"]
