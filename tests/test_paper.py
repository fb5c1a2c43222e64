"""Do figures survive a column of print: fitting texts, requested sizes, and unchanged numbers?"""

import doctest
import json
import re
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
import pytest
from typer.testing import CliRunner

from interp import plots
from interp.cli import app
from interp.errors import InterpError

FIGURES = Path(__file__).parent.parent / "figures"
# lines with shades and a legend, error bars, a grid of heatmaps, panels with titles of rows, dots, bars, a note below
SHOWN = (
    "repeated_tokens/log_prob_by_position",
    "repeated_tokens/halves",
    "attention_scores/head_scores",
    "glitch_heads/heads_over_layers",
    "logit_lens/lens_by_layer",
    "smollm2_undertrained/indicator_against_probability",
    "glitch_attribution/deficit_shares",
    "smollm2_repeated_tokens/log_prob_by_position",
    "census/census",
)


def of(name):
    return plotly.io.read_json(FIGURES / f"{name}.json")


def seen_lines(text):
    return [re.sub("<[^>]*>", "", line) for line in (text or "").split("<br>")]


@pytest.mark.parametrize("name", SHOWN)
def test_no_number_and_no_word_changes(name):
    before, figure = of(name), of(name)
    styled = plots.paper(figure)
    assert figure.to_json() == before.to_json()  # a copy is restyled
    for old, new in zip(before.data, styled.data, strict=True):
        was, now = json.loads(old.to_json()), json.loads(new.to_json())
        for key in ("x", "y", "z", "base", "text", "name", "customdata", "hovertemplate"):
            assert was.get(key) == now.get(key)
        for end in ("array", "arrayminus"):
            assert was.get("error_y", {}).get(end) == now.get("error_y", {}).get(end)
    words = [note.text for note in before.layout.annotations] + [before.layout.title.text]
    told = [note.text for note in styled.layout.annotations] + [styled.layout.title.text]
    assert [" ".join((w or "").replace("<br>", " ").split()) for w in told] == [
        " ".join((w or "").replace("<br>", " ").split()) for w in words
    ]


@pytest.mark.experiment
@pytest.mark.parametrize("name", SHOWN)
def test_texts_are_of_one_size_and_fit_the_column(name):
    styled = plots.paper(of(name), width=3.3, points=8)
    assert styled.layout.width == 317
    assert 140 <= styled.layout.height <= 900
    size = pytest.approx(8 * 96 / 72)
    for note in styled.layout.annotations:  # a title of a narrow panel may be smaller
        assert 5 * 96 / 72 <= note.font.size <= 8 * 96 / 72 + 0.01
    for axis in (*styled.select_xaxes(), *styled.select_yaxes()):
        assert axis.tickfont.size == axis.title.font.size == size
    assert styled.layout.title.font.size == pytest.approx(9 * 96 / 72)
    for line in seen_lines(styled.layout.title.text):
        assert len(line) * 0.53 * 9 * 96 / 72 <= 317 or " " not in line
    assert plots.paper(of(name), title=False).layout.title.text is None
    assert plots.paper(of(name), height=2.5).layout.height == 240


def test_a_users_template_is_applied_on_top():
    serif = go.layout.Template(layout={"font": {"family": "Times"}, "xaxis": {"showgrid": False}})
    layout = plots.paper(of("repeated_tokens/halves"), template=serif).layout.template.layout
    assert layout.font.family == "Times"
    assert layout.font.color == "black"
    assert layout.xaxis.showgrid is False
    assert plots.PAPER.layout.font.family.startswith("Helvetica")  # as before


def test_panels_whose_axes_have_titles_move_apart():
    before, after = of("logit_lens/lens_by_layer"), plots.paper(of("logit_lens/lens_by_layer"))
    gaps = [f.layout.xaxis2.domain[0] - f.layout.xaxis.domain[1] for f in (before, after)]
    assert gaps[1] > gaps[0] + 0.05
    assert after.layout.xaxis.domain[0] == 0
    assert after.layout.xaxis2.domain[1] == pytest.approx(1)


def test_a_long_title_is_wrapped_and_markup_is_not_counted():
    figure = plots.Figure().update_layout(title="<b>one</b> " + "word " * 40)
    lines = seen_lines(plots.paper(figure).layout.title.text)
    assert len(lines) > 3
    assert max(map(len, lines)) <= 317 / (0.53 * 12)
    high, higher = plots.paper(figure, title=False).layout.height, plots.paper(figure).layout.height
    assert higher > high + 3 * 12


def test_the_example_of_the_docstring_is_right():
    assert doctest.testmod(plots) == (0, 4)


@pytest.mark.parametrize("sizes", [{"width": 0}, {"height": -1.0}, {"points": 0}])
def test_an_invalid_size_is_refused(sizes):
    with pytest.raises(InterpError, match=f"{next(iter(sizes))} .*: use a positive number"):
        plots.paper(go.Figure(), **sizes)


@pytest.mark.experiment
def test_the_command_writes_images_of_that_width(tmp_path, monkeypatch):
    drawn = {}

    def written(figures, paths, **how):
        drawn.update(how, figures=figures)
        for path in paths:
            Path(path).write_bytes(b"<svg")

    monkeypatch.setattr("plotly.io.write_images", written)
    stored = FIGURES / "repeated_tokens" / "result.nc"
    told = ["show", str(stored), "--format", "svg", "--format", "png", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*told, "--width", "3.3"])
    assert done.exit_code == 0, done.output
    assert set(drawn["width"]) == {317}
    assert set(drawn["scale"]) == {1, 300 / 96}
    assert drawn["height"] == [figure.layout.height for figure in drawn["figures"]]
    assert {path.name for path in tmp_path.iterdir()} >= {"halves.svg", "halves.png"}
    done = CliRunner().invoke(app, told)
    assert set(drawn["width"]) == {900}
    done = CliRunner().invoke(app, [*told, "--width", "0"])
    assert done.exit_code == 1
    assert "a width in inches from 1 to 20" in done.output
    assert len(done.output.strip().splitlines()) == 1
