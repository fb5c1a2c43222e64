"""Do the figures show the numbers of the result, and leave plotly as it was?"""

import math

import numpy as np
import plotly.io
import pytest
import xarray as xr

import interp
from interp import figures, tables
from interp.errors import InterpError
from interp.statistics import mean_interval

UNIFORM = -math.log(65)


@pytest.fixture(scope="module")
def result(wired):
    return interp.run("repeated_tokens", wired, ["a=1:40", "b=30:60"], length=10, batch=6)


def test_lines_are_the_means(result):
    figure = figures.log_prob_by_position(result)
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    assert list(drawn) == ["a", "b"]
    assert list(drawn["a"].x) == list(range(1, 21))
    assert drawn["a"].y[:11] == pytest.approx([UNIFORM] * 11, abs=1e-4)
    assert drawn["a"].y[11:] == pytest.approx([0.0] * 9, abs=1e-4)
    said = [a.text for a in figure.layout.annotations]
    assert said == ["first half: cannot be known", "second half: a repeat"]
    assert figure.layout.shapes[0].x0 == 10.5  # between the halves
    assert figure.layout.yaxis.title.text.endswith("(nats)")


def test_intervals_are_drawn_around_the_mean(organism):
    result = interp.run("repeated_tokens", organism, batch=16)
    figure = figures.log_prob_by_position(result)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    lines = [trace for trace in figure.data if trace.name]
    for band, line in zip(bands, lines, strict=True):
        n = len(line.x)
        assert all(low <= mean <= high for high, mean, low in zip(band.y[:n], line.y, band.y[n:][::-1], strict=True))
        assert max(np.subtract(band.y[:n], band.y[n:][::-1])) > 0.01


def test_heatmaps_show_every_head(wired):
    score = interp.run("attention_stripes", wired, ["a=1:40", "b=30:60"])
    figure = figures.head_scores(score)
    assert len(figure.data) == 2 * 5
    assert np.array(figure.data[0].z) == pytest.approx(np.array([[0, 0.029], [1, 0.029]]), abs=0.01)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


def test_dose_response_reads_the_summary(organism):
    result = interp.run("repeated_tokens", organism, ["doses", "ordinary"], batch=8, length=10)
    figure = figures.dose_response(result)
    line = next(trace for trace in figure.data if trace.name == "one among ordinary tokens")
    assert list(line.x) == ["0", "1", "3", "10", "30", "100", "300", "1000", "3000", "ordinary"]
    means = result.summary.sel(measure="log_prob", definition="single", part="second", bound="mean")
    assert list(line.y) == pytest.approx(means.values.tolist())
    assert "dose_response" in figures.figures_of(result)
    other = interp.run("repeated_tokens", organism, ["ordinary"], batch=2)
    with pytest.raises(InterpError, match="--pool doses"):
        figures.dose_response(other)


@pytest.mark.parametrize("name", ["organism", "organism-untied", "organism-llama"])
def test_training_curve(name):
    curve = interp.training_curve(name)
    assert list(figures.figures_of(curve)) == ["training_curve"]
    drawn = {trace.name: trace for trace in figures.training_curve(curve).data}
    assert drawn["best induction score"].y[-1] > 0.6
    title, table = tables.story(curve)
    assert "Training" in title.plain
    assert table.row_count == 12


def test_no_global_template_is_changed(result):
    before = plotly.io.templates.default
    figures.figures_of(result)
    assert plotly.io.templates.default == before
    assert "interp" not in plotly.io.templates


def test_a_page_is_whole_or_not_there(result, tmp_path):
    page = figures.write_page(figures.figures_of(result), tmp_path / "figure.html", about="<seed 0>")
    text = page.read_text()
    assert text.count("Plotly.newPlot") == 2
    assert "&lt;seed 0&gt;" in text
    assert [p.name for p in tmp_path.iterdir()] == ["figure.html"]
    with pytest.raises(InterpError, match="cannot write"):
        figures.write_page({}, page / "below-a-file" / "figure.html")


def test_images_where_a_browser_is_installed(result, tmp_path):
    import shutil

    written = figures.write_images(figures.figures_of(result), tmp_path)
    if not any(shutil.which(name) for name in ("chromium", "google-chrome", "chrome", "chromium-browser")):
        assert written == []
        pytest.skip("no browser is installed, and none is needed")
    assert [p.name for p in written] == ["log_prob_by_position.png", "halves.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    assert len(list(tmp_path.iterdir())) == 2


def test_bootstrap_interval_covers_the_true_mean():
    """In 95 of 100 samples, less the percentile bootstrap's known shortfall: measured 93.7% over 3,000 of 60."""
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(1500):
        mean, low, high = mean_interval(rng.normal(3, 2, size=60), seed=i, resamples=400)
        assert low <= mean <= high
        hits += low <= 3 <= high
    assert 0.92 <= hits / 1500 <= 0.96


def test_bootstrap_of_too_little():
    mean, low, high = mean_interval([1.0])
    assert (mean, np.isnan(low), np.isnan(high)) == (1.0, True, True)
    both = mean_interval([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
    assert both[0].tolist() == [2.0, 5.0]
    assert np.isnan(both[1:, 1]).all()
    assert xr.DataArray(mean_interval([[np.nan], [np.nan]])).isnull().all()
