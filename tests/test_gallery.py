"""Does the gallery make what it says, and does its check notice what was changed?"""

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

import interp
from interp import gallery, results
from interp.errors import InterpError
from interp.gallery import making
from interp.gallery.comparing import Tolerance, parted, redrawn
from interp.gallery.entries import Entry, Figure

ROOT = Path(__file__).parent.parent
TINY = (
    Entry("halves", "run repeated_tokens --model wired --pool 1:40 --length 5 --batch 3", (
        Figure("log_prob_by_position", "Log-probs."), Figure("halves", "Halves.", "the halves of S. Xiang (2024)"),
    )),
    Entry("stripes", "run attention_stripes --model wired --pool 1:40 --length 5 --batch 2", (Figure("head_scores", "Scores."),)),
    Entry("curve", "show interp/organisms/organism/curve.nc", (Figure("training_curve", "Training."),)),
)  # fmt: skip


def write_images(drawn, folder):
    """PNG files without a browser: what is tested is that they are there."""
    paths = [Path(folder) / f"{name}.png" for name in drawn]
    for path in paths:
        path.write_bytes(b"\x89PNG")
    return paths


@pytest.fixture(scope="module", autouse=True)
def no_browser():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making.figures, "write_images", write_images)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, no_browser):
    """A whole gallery, made once."""
    folder = tmp_path_factory.mktemp("gallery")
    said = []
    gallery.regenerate(folder, entries=TINY, say=said.append)
    assert said == ["1 of 3  halves", "2 of 3  stripes", "3 of 3  curve"]
    return folder


@pytest.fixture
def copied(made, tmp_path):
    import shutil

    return shutil.copytree(made, tmp_path / "figures")


def failed(folder, **options):
    """(folder, name): what is said, of all that does not pass."""
    table = gallery.check(folder, entries=TINY, **options)
    bad = table[~table.passed]
    return {(row.folder, row.name): row.said for row in bad.itertuples(index=False)}


def altered(folder, variable, where, change):
    """Change one number of a committed result, and leave the rest as it is."""
    result = results.load(folder)
    result[variable].values[where] = change(result[variable].values[where])
    results.save(result, folder / "result.nc")


def test_what_is_made_is_whole_and_passes(made):
    files = {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()}
    assert files == {
        "README.md", "halves/result.nc", "halves/log_prob_by_position.png", "halves/log_prob_by_position.json",
        "halves/halves.png", "halves/halves.json", "stripes/result.nc", "stripes/head_scores.png",
        "stripes/head_scores.json", "curve/result.nc", "curve/training_curve.png", "curve/training_curve.json",
    }  # fmt: skip
    said = []
    table = gallery.check(made, entries=TINY, say=said.append)
    assert table.passed.all(), table[~table.passed].to_string()
    assert {"result.nc: log_prob", "halves.png", "halves.json", "result.nc"} <= set(
        table[table.folder == "halves"].name
    )
    assert said[0] == "1 of 3  halves: the same"
    assert not (made / ".parts").exists()


def test_a_figure_reads_as_plotly_has_it(made):
    import plotly.io

    for path in sorted(made.glob("*/*.json")):
        read = plotly.io.read_json(path)
        assert redrawn(read.to_json(), path.read_text()) == ""
        assert read.layout.meta["command"].startswith("interp ")


def test_one_altered_number_is_named(copied):
    """Beyond the tolerance: folder, variable and place are said. In the quick check: the figures, which are of another file."""
    altered(copied / "stripes", "score", (0, 1, 0, 1, 0), lambda v: v + 0.01)
    quick = failed(copied, drawn_only=True)
    assert set(quick) == {("stripes", "head_scores.json")}
    bad = failed(copied)
    assert set(bad) == {("stripes", "result.nc: score"), ("stripes", "head_scores.json")}
    assert re.match(
        r"differs in 1 of \d+, most at pool=1:40, stripe=previous, layer=0, head=1, batch=0: .*, made .* \(allowed: 0.001 \+ 0.001 of it\)",
        bad["stripes", "result.nc: score"],
    )


def test_a_number_that_no_figure_shows_is_noticed_too(copied):
    """Of the quick check, by the checksum that each figure carries; even below the tolerance."""
    altered(copied / "halves", "rank", (0, 0, 3), lambda v: v + 1)
    quick = failed(copied, drawn_only=True)
    assert set(quick) == {("halves", "log_prob_by_position.json"), ("halves", "halves.json")}
    assert all("at layout.meta.result_sha256" in said for said in quick.values())
    assert ("halves", "result.nc: rank") in failed(copied, only=["halves"])
    gallery.regenerate(copied, drawn_only=True, entries=TINY)  # drawn anew from the altered result
    assert set(failed(copied, only="halves")) == {("halves", "result.nc: rank")}
    assert failed(copied, drawn_only=True) == {}


def test_a_bundled_result_is_compared_with_its_copy(copied):
    altered(copied / "curve", "second_half", (3, 0), lambda v: v * 1.1)
    assert ("curve", "result.nc: second_half") in failed(copied, only=["curve"])


def test_files_missing_damaged_and_odd(copied):
    (copied / "halves" / "halves.png").unlink()
    (copied / "halves" / "log_prob_by_position.png").write_bytes(b"")
    (copied / "stripes" / "head_scores.json").unlink()
    (copied / "stripes" / "census.csv").write_text("id\n")
    (copied / "curve" / "training_curve.json").write_text("{")
    (copied / "README.md").write_text("# Figures\n")
    assert failed(copied, drawn_only=True) == {
        ("README.md", "README.md"): "is not the page of this list",
        ("halves", "halves.png"): "is missing",
        ("halves", "log_prob_by_position.png"): "is damaged",
        ("stripes", "head_scores.json"): "is missing",
        ("stripes", "census.csv"): "does not belong here",
        ("curve", "training_curve.json"): "is no JSON",
    }
    (copied / "stripes" / "result.nc").unlink()
    assert failed(copied, only=["stripes"])["stripes", "result.nc"].startswith("no result at")


def test_an_edited_figure_is_noticed(copied):
    path = copied / "stripes" / "head_scores.json"
    figure = json.loads(path.read_text())
    figure["layout"]["coloraxis"]["cmax"] = 0.99
    path.write_text(json.dumps(figure))
    assert failed(copied, drawn_only=True) == {
        ("stripes", "head_scores.json"): "has 0.99 at layout.coloraxis.cmax, drawn 1"
    }


def test_a_result_of_another_command_is_noticed(copied, wired):
    interp.run("repeated_tokens", wired, "1:40", length=6, batch=3, out=copied / "halves")
    assert failed(copied, drawn_only=True, only="halves")["halves", "result.nc"] == (
        "was made with length 6, and the command has 5"
    )


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch):
    """What is finished is not made again; nothing is in the folder before all of it is."""
    ran = []
    real = making.run

    def interrupted(experiment, *args, **kwargs):
        ran.append(experiment)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return real(experiment, *args, **kwargs)

    monkeypatch.setattr(making, "run", interrupted)
    monkeypatch.setattr(making, "arguments", lambda command: ARGUMENTS[command])
    with pytest.raises(KeyboardInterrupt):
        gallery.regenerate(tmp_path, entries=TINY)
    assert {p.name for p in tmp_path.iterdir()} == {".parts"}
    gallery.regenerate(tmp_path, entries=TINY)
    assert ran == ["repeated_tokens", "attention_stripes", "attention_stripes"]
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "halves", "stripes", "curve"}
    # other code: nothing of an interrupted call is taken up
    ran[:] = ["again"]
    with pytest.raises(KeyboardInterrupt):
        gallery.check(tmp_path, only=["halves"], entries=TINY)
    assert not failed(tmp_path, only=["halves"])


ARGUMENTS = {entry.command: making.arguments(entry.command) for entry in TINY if entry.command.startswith("run ")}


def test_no_browser_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(making.figures, "write_images", lambda drawn, at: [])
    with pytest.raises(InterpError, match="drawn by kaleido and a browser"):
        gallery.regenerate(tmp_path, ["curve"], entries=TINY)


def test_a_large_figure_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "MOST", 10)
    monkeypatch.setattr("interp.gallery.checking.MOST", 10)
    said = []
    gallery.regenerate(tmp_path, ["curve"], entries=TINY, say=said.append)
    assert said == ["1 of 1  curve; above 0 kB as JSON, PNG only: training_curve"]
    assert not (tmp_path / "curve" / "training_curve.json").exists()
    assert not failed(tmp_path, only=["curve"])


@pytest.mark.parametrize("call", [gallery.regenerate, gallery.check])
def test_an_unknown_name_is_one_line(call, made):
    with pytest.raises(InterpError, match=r"^unknown figures 'nothing': use halves, stripes, curve$"):
        call(made, only=["halves", "nothing"], entries=TINY)


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(InterpError, match="no folder"):
        gallery.check(tmp_path / "nowhere")


# --- the list -------------------------------------------------------------------------------------------------------------


def test_the_committed_page_is_that_of_the_list():
    assert (ROOT / "figures" / "README.md").read_text() == gallery.readme()


def test_every_figure_of_the_page_is_there():
    for entry in gallery.GALLERY:
        for figure in entry.figures:
            assert (ROOT / "figures" / entry.folder / f"{figure.name}.png").is_file(), (entry.folder, figure.name)
            assert figure.shows.endswith(".")


def test_the_makefile_makes_this_list():
    """Line by line where it has lines of its own; else it leaves the list to `interp figures`."""
    target = re.search(r"^figures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    lines = re.findall(r"^\t\$\(BIN\)/interp (.*)$", target, re.M)
    if lines == ["figures"]:
        return
    assert lines == [f"{entry.command} --out figures/{entry.folder}" for entry in gallery.GALLERY]


def test_every_folder_is_an_entry_and_has_its_own_name():
    folders = [entry.folder for entry in gallery.GALLERY]
    assert len(set(folders)) == len(folders)
    there = {path.name for path in (ROOT / "figures").iterdir() if path.is_dir() and path.name != ".parts"}
    assert there == set(folders)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_what_the_pages_show_is_in_the_list(page):
    known = {e.folder: {f.name for f in e.figures} for e in gallery.GALLERY}
    for folder, name in re.findall(r"(?<!interp/)figures/(?!README)(\w+)(?:/(\w+)\.png)?", (ROOT / page).read_text()):
        assert folder in known, f"{page}: figures/{folder}"
        assert not name or name in known[folder], f"{page}: {folder}/{name}"


def test_what_the_issue_asks_for_is_shown():
    shown = {figure.name for entry in gallery.GALLERY for figure in entry.figures}
    assert shown >= {
        "log_prob_by_position", "halves", "dose_response", "head_scores", "attention_view", "training_curve",
        "matching_and_copying", "head_composition", "ablation_curve", "patched_positions", "patched_heads",
        "path_strengths", "deficit_shares", "indicator_against_probability", "detection", "margin_by_kind",
    }  # fmt: skip


@pytest.mark.parametrize("command", [e.command for e in (*gallery.GALLERY, *TINY) if e.command.startswith("run ")])
def test_words_mean_what_they_mean_on_the_command_line(command, monkeypatch):
    """What `interp run ...` hands to the library is what the gallery hands to it."""
    import shlex

    from interp import experiments, models
    from interp.cli import app

    seen = []
    run = sys.modules["interp.run"]
    real = inspect.signature(run.run)

    def noted(*args, **kwargs):
        seen.append((args, kwargs))
        raise typer.Exit(0)

    monkeypatch.setattr(run, "run", noted)
    monkeypatch.setattr(models, "load", lambda name, **_: name)
    assert CliRunner().invoke(app, [*shlex.split(command), "--out", "x"]).exit_code == 0
    args, kwargs = seen[0]
    by_words = real.bind(*args, **(kwargs | {"out": None}))
    experiment, given = making.arguments(command)
    ours = real.bind(experiments.find(experiment), **given)
    for bound in (by_words, ours):
        bound.apply_defaults()
    assert ours.arguments == by_words.arguments


# --- comparing ------------------------------------------------------------------------------------------------------------


def dataset(**changes):
    given = {"x": [1.5, np.nan, 100.0], "flag": [True, False, True], "name": ["a", "b", "c"], "n": [1, 2, 3]} | changes
    coords = {"token": ["t", "u", "v"], "id": ("token", given.pop("id", [5, 6, 7]))}
    return xr.Dataset({k: ("token", v) for k, v in given.items()}, coords).assign_attrs(verdict="2.13 of 6.28 nats")


def test_comparing_results():
    usual = Tolerance()
    assert set(parted(dataset(), dataset(), usual).values()) == {""}
    assert not any(parted(dataset(x=[1.502, np.nan, 100.1]), dataset(), usual).values())
    said = parted(dataset(x=[1.5, 0.0, 100.2]), dataset(), usual)["x"]
    assert said == "differs in 2 of 3, most at token=u: nan, made 0 (allowed: 0.001 + 0.001 of it)"
    said = parted(dataset(flag=[True, True, True]), dataset(), usual)["flag"]
    assert said == "differs in 1 of 3, first at token=u: False, made True"
    assert "name" in {k for k, v in parted(dataset(name=["a", "b", "d"]), dataset(), usual).items() if v}
    assert parted(dataset(id=[5, 6, 8]), dataset(), Tolerance(atol=9))["id"]  # a coordinate is exact
    assert not parted(dataset(n=[1, 2, 4]), dataset(), Tolerance(atol=1))["n"]
    ties = Tolerance(ties=0.4)
    odd = dataset(n=[1, 2, 9], flag=[True, True, True], name=["a", "b", "d"], x=[1.5, np.nan, 101.0])
    assert [k for k, v in parted(odd, dataset(), ties).items() if v] == ["x"]
    assert len([v for v in parted(odd, dataset(), Tolerance(ties=0.3)).values() if v]) == 4
    assert parted(dataset(id=[5, 6, 8]), dataset(), ties)["id"]
    assert parted(dataset().drop_vars("n"), dataset(), usual)["n"] == "is no longer made"
    assert parted(dataset(), dataset().drop_vars("n"), usual)["n"] == "is not in the committed result"
    assert parted(dataset().isel(token=[0]), dataset(), usual)["x"].startswith("is {'token': 3}")
    for verdict, same in (("2.14 of 6.28 nats", True), ("2.20 of 6.28 nats", False), ("2.13 of 6.28 bits", False)):
        assert (not parted(dataset().assign_attrs(verdict=verdict), dataset(), usual)["attribute verdict"]) is same


def test_comparing_figures():
    import plotly.graph_objects as go

    one = go.Figure(go.Scatter(x=np.array([1.0, 2.0]), y=[[1, 2]], name="a")).to_json()
    assert "bdata" in one
    listed = json.dumps(
        {"data": [{"type": "scatter", "x": [1.0, 2.0000001], "y": [[1, 2]], "name": "a"}], "layout": {}}
    )
    template = json.loads(one)["layout"]
    listed = json.dumps(json.loads(listed) | {"layout": template})
    assert redrawn(one, listed) == ""
    assert redrawn(one, listed.replace("2.0000001", "2.1")) == "has 2.1 at data[0].x[1], drawn 2.0"
    assert redrawn(one, listed.replace('"a"', '"b"')) == "has b at data[0].name, drawn a"
    assert redrawn(one, listed.replace(', "name": "a"', "")).startswith("has other parts at data[0]: name")
    assert redrawn(one, listed.replace("[1.0, 2.0000001]", "[1.0]")) == "has 1 things at data[0].x, drawn 2"


QUICK = (  # test_readme makes others, those of the tour's commands
    "attention_stripes", "training_curve", "census", "repeat_prompt", "unused_logits", "head_ablation_untied", "head_ablation_llama",
    "head_ablation_mixed", "activation_patching", "head_attribution", "logit_attribution", "logit_lens", "attention_pattern", "argmaxability_llama",
)  # fmt: skip


def test_what_is_committed_is_drawn_from_what_is_committed():
    table = gallery.check(ROOT / "figures", drawn_only=True)
    assert table["passed"].all(), table[~table["passed"]].to_string()


def test_the_code_makes_what_is_committed():
    """Those that take seconds; `interp figures --check` has all of them."""
    table = gallery.check(ROOT / "figures", QUICK)
    assert table["passed"].all(), table[~table["passed"]].to_string()
