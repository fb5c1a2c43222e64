"""Does the gallery make what it documents, and does its check notice changes?"""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import interp
from interp import gallery, results
from interp.errors import InterpError
from interp.exhibits import CHAPTERS, Caption, GalleryEntry, Tolerance
from interp.gallery import collection, regeneration
from interp.gallery.comparison import diff_figures, diff_results
from interp.request import Drawing, ModelRequest, Request

ROOT = Path(__file__).parent.parent
WIRED = {"model": ModelRequest(name="wired"), "pools": ("1:40",)}
TINY = (
    GalleryEntry(
        "halves",
        Request(experiment="repeated_tokens", drawing=Drawing(length=5, batch=3), **WIRED),
        (
            Caption("log_prob_by_position", "Log-probs."),
            Caption("halves", "Halves.", "the halves of S. Xiang (2024)"),
        ),
        "copying",
    ),
    GalleryEntry(
        "stripes",
        Request(experiment="attention_scores", drawing=Drawing(length=5, batch=2), **WIRED),
        (Caption("head_scores", "Scores."),),
        "the copying circuit",
    ),
    GalleryEntry(
        "curve",
        None,
        (Caption("training_curve", "Training."),),
        "the copying circuit",
        stored="interp/organisms/organism/curve.nc",
    ),
)


def write_images(drawn, folder):
    """PNG files without a browser: only their existence is tested."""
    paths = [Path(folder) / f"{name}.png" for name in drawn]
    for path in paths:
        path.write_bytes(b"\x89PNG")
    return paths


@pytest.fixture(scope="module", autouse=True)
def no_browser():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regeneration.pages, "write_images", write_images)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, no_browser):
    """A whole gallery, made once."""
    folder = tmp_path_factory.mktemp("gallery")
    said = []
    gallery.regenerate(folder, entries=TINY, log=said.append)
    assert said == ["1 of 3  halves", "2 of 3  stripes", "3 of 3  curve"]
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "figures")


def failed(folder, **options):
    """(folder, name): the message, for everything that does not pass."""
    table = gallery.check(folder, entries=TINY, **options)
    bad = table[~table.passed]
    return {(row.folder, row.name): row.said for row in bad.itertuples(index=False)}


def altered(folder, variable, where, change):
    """Change one number of a committed result, and leave the rest as it is."""
    result = results.load(folder)
    result[variable].values[where] = change(result[variable].values[where])
    results.save(result, folder / "result.nc")


@pytest.mark.experiment
def test_a_regenerated_gallery_is_complete_and_passes(made):
    files = {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()}
    assert files == {
        "README.md", "halves/result.nc", "halves/log_prob_by_position.png", "halves/log_prob_by_position.json",
        "halves/halves.png", "halves/halves.json", "stripes/result.nc", "stripes/head_scores.png",
        "stripes/head_scores.json", "curve/result.nc", "curve/training_curve.png", "curve/training_curve.json",
    }  # fmt: skip
    said = []
    table = gallery.check(made, entries=TINY, log=said.append)
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
        assert diff_figures(read.to_json(), path.read_text()) == ""
        assert read.layout.meta["command"].startswith("interp ")


@pytest.mark.experiment
def test_one_altered_number_is_named(copied):
    """Beyond the tolerance: folder, variable and place are named. In the quick check: the figures, drawn from another file."""
    altered(copied / "stripes", "score", (0, 1, 0, 1, 0), lambda v: v + 0.01)
    quick = failed(copied, drawn_only=True)
    assert set(quick) == {("stripes", "head_scores.json")}
    bad = failed(copied)
    assert set(bad) == {("stripes", "result.nc: score"), ("stripes", "head_scores.json")}
    assert re.match(
        r"differs in 1 of \d+, most at pool=1:40, key_kind=previous, layer=0, head=1, batch=0: .*, made .* \(allowed: 0.001 \+ 0.001 of it\)",
        bad["stripes", "result.nc: score"],
    )


@pytest.mark.experiment
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


@pytest.mark.experiment
def test_a_bundled_result_is_compared_with_its_copy(copied):
    altered(copied / "curve", "second_half", (3, 0), lambda v: v * 1.1)
    assert ("curve", "result.nc: second_half") in failed(copied, only=["curve"])


@pytest.mark.experiment
def test_missing_damaged_and_unexpected_files_are_named(copied):
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
        "was made with length 6, and the request has 5"
    )


@pytest.mark.experiment
def test_a_result_of_the_first_schema_is_compared_with_its_record(copied):
    """It has no request and no default parameters; what it has is compared nevertheless."""
    result = results.load(copied / "halves")
    record = results.provenance(result)
    for name in ("schema", "request", "module"):
        del record[name]
    record["parameters"] = {"seed": 0}

    def store(**changes):
        stored = result.assign_attrs(provenance=json.dumps(record | changes))
        results.save(stored, copied / "halves" / "result.nc")

    def kept(**changes):
        store(**changes)
        gallery.regenerate(copied, ["halves"], drawn_only=True, entries=TINY)
        return failed(copied, only=["halves"])

    assert kept() == {}
    said = kept(sequences=record["sequences"] | {"length": 6})
    assert said["halves", "result.nc"] == "was made with length 6, and the request has 5"
    assert ("halves", "result.nc: provenance sequences") in said
    assert kept(parameters={"seed": 0, "steps": 3})["halves", "result.nc"] == (
        "was made with steps 3, and the request has None"
    )
    assert kept(seed=1)["halves", "result.nc"] == "was made with seed 1, and the request has 0"
    store(experiment="logit_lens")  # has other figures
    said = failed(copied, only=["halves"], drawn_only=True)["halves", "result.nc"]
    assert said == "was made with experiment logit_lens, and the request has repeated_tokens"


@pytest.mark.experiment
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pools": ("1:41",)}, r"was made with pools \('1:40',\), and the request has \('1:41',\)"),
        ({"seed": 0}, ""),  # as by default
        ({"seed": 1}, "was made with seed 0, and the request has 1"),
        (
            {"model": ModelRequest(name="wired", weights="folded")},
            "was made with weights raw, and the request has folded",
        ),
        ({"drawing": Drawing(length=5, batch=3, copies=2)}, ""),
        ({"parameters": {"batch_size": 2}}, "was made with batch_size None, and the request has 2"),
    ],
)
def test_the_request_in_a_result_must_be_the_entrys(made, change, said):
    entry = replace(TINY[0], request=TINY[0].request.model_copy(update=change))
    table = gallery.check(made, entries=(entry,), drawn_only=True).set_index("name")
    assert re.fullmatch(said, table.said["result.nc"])


@pytest.mark.experiment
def test_an_interrupted_call_resumes(tmp_path, monkeypatch):
    """What is finished is not made again; nothing appears in the folder until all of it does."""
    told = []
    real = regeneration.runner.run_request

    def interrupted(request, **options):
        if request.experiment == "attention_scores":
            raise KeyboardInterrupt
        return noted(request, **options)

    def noted(request, **options):
        return real(request, **options | {"log": told.append})

    monkeypatch.setattr(regeneration.runner, "run_request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gallery.regenerate(tmp_path, entries=TINY)
    assert told == []
    assert {p.name for p in tmp_path.iterdir()} == {".parts"}
    monkeypatch.setattr(regeneration.runner, "run_request", noted)
    gallery.regenerate(tmp_path, entries=TINY)
    assert [line.split(": ")[1] for line in told] == [
        "taken from an earlier run of the same request (--fresh runs it again)"
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "halves", "stripes", "curve"}
    assert not any((tmp_path / name / "request.json").exists() for name in ("halves", "stripes"))
    # another request: nothing of an interrupted call is reused
    parts = regeneration.parts_folder(tmp_path)
    other = replace(TINY[0], request=TINY[0].request.model_copy(update={"seed": 1}))
    told.clear()
    for entry in (other, TINY[0]):
        regeneration.ensure_result(entry, parts)
    assert [line.partition(": ")[2] for line in told] == [
        "the stored result belongs to another request, code or model: running again"
    ]
    assert not failed(tmp_path, only=["halves"])


def test_a_missing_browser_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(regeneration.pages, "write_images", lambda drawn, at: [])
    with pytest.raises(InterpError, match="drawn by kaleido and a browser"):
        gallery.regenerate(tmp_path, ["curve"], entries=TINY)


def test_a_large_figure_is_left_out_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(regeneration, "LARGEST_JSON", 10)
    monkeypatch.setattr("interp.gallery.verification.LARGEST_JSON", 10)
    said = []
    gallery.regenerate(tmp_path, ["curve"], entries=TINY, log=said.append)
    assert said == ["1 of 1  curve; above 0 kB as JSON, PNG only: training_curve"]
    assert not (tmp_path / "curve" / "training_curve.json").exists()
    assert not failed(tmp_path, only=["curve"])


@pytest.mark.parametrize("call", [gallery.regenerate, gallery.check])
def test_an_unknown_name_gets_a_one_line_message(call, made):
    with pytest.raises(InterpError, match=r"^unknown figures 'nothing': use halves, stripes, curve$"):
        call(made, only=["halves", "nothing"], entries=TINY)


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(InterpError, match="no folder"):
        gallery.check(tmp_path / "nowhere")


# --- the list -------------------------------------------------------------------------------------------------------------


def test_the_committed_page_matches_the_entries():
    assert (ROOT / "figures" / "README.md").read_text() == gallery.readme()


def test_every_figure_of_the_page_is_there():
    for entry in gallery.entries():
        for figure in entry.captions:
            assert (ROOT / "figures" / entry.folder / f"{figure.name}.png").is_file(), (entry.folder, figure.name)
            assert figure.shows.endswith(".")


def test_the_makefile_makes_the_gallery():
    """Line by line where it has lines of its own; otherwise it leaves the list to `interp figures`."""
    target = re.search(r"^figures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    lines = re.findall(r"^\t\$\(BIN\)/interp (.*)$", target, re.M)
    if lines == ["figures"]:
        return
    assert lines == [f"{entry.command} --out figures/{entry.folder}" for entry in gallery.entries()]


def test_every_folder_is_an_entry_and_has_its_own_name():
    folders = [entry.folder for entry in gallery.entries()]
    assert len(set(folders)) == len(folders)
    there = {path.name for path in (ROOT / "figures").iterdir() if path.is_dir() and path.name != ".parts"}
    assert there == set(folders)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_figures_shown_in_the_docs_are_in_the_gallery(page):
    known = {e.folder: {f.name for f in e.captions} for e in gallery.entries()}
    for folder, name in re.findall(r"(?<!interp/)figures/(?!README)(\w+)(?:/(\w+)\.png)?", (ROOT / page).read_text()):
        assert folder in known, f"{page}: figures/{folder}"
        assert not name or name in known[folder], f"{page}: {folder}/{name}"


def test_the_gallery_has_all_required_figures():
    shown = {figure.name for entry in gallery.entries() for figure in entry.captions}
    assert shown >= {
        "log_prob_by_position", "halves", "dose_response", "head_scores", "attention_view", "training_curve",
        "matching_and_copying", "head_composition", "ablation_curve", "patched_positions", "patched_heads",
        "path_strengths", "deficit_shares", "indicator_against_probability", "detection", "margin_by_kind",
    }  # fmt: skip


@pytest.mark.parametrize("entry", [e for e in (*gallery.entries(), *TINY) if e.request], ids=lambda e: e.folder)
def test_the_command_on_the_page_gives_the_same_request(entry):
    """What a reader types is the request that made the result."""
    words = shlex.split(entry.command)
    assert words[0] == "interp"
    assert Request.from_argv(words[1:]) == entry.request


def test_entries_come_from_every_view_chapter_by_chapter(tmp_path, monkeypatch):
    """An entry in a view is on the page, in its chapter, without being registered anywhere."""
    package = tmp_path / "scratch_package"
    (package / "experiments" / "new").mkdir(parents=True)
    for folder in (package, package / "experiments", package / "experiments" / "new"):
        (folder / "__init__.py").touch()
    (package / "experiments" / "new" / "view.py").write_text(
        "from interp.exhibits import Caption, GalleryEntry\n"
        "from interp.request import Request\n"
        "CAPTIONS = (Caption('new', 'New.'),)\n"
        "GALLERY = (GalleryEntry('other', Request.of('new'), CAPTIONS, 'the vocabulary', order=0),\n"
        "           GalleryEntry('last', Request.of('new'), CAPTIONS, 'copying'),\n"
        "           GalleryEntry('first', Request.of('new'), CAPTIONS, 'copying', order=1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(collection, "PACKAGE", package)
    found = gallery.entries()
    assert [entry.folder for entry in found] == ["first", "last", "other"]
    page = gallery.readme(found)
    assert page.index("## Copying") < page.index("### first") < page.index("### last") < page.index("## The vocabulary")


def test_the_entries_of_this_package_stand_chapter_by_chapter():
    chapters = [CHAPTERS.index(entry.chapter) for entry in gallery.entries()]
    assert chapters == sorted(chapters)


# --- comparing ------------------------------------------------------------------------------------------------------------


def dataset(**changes):
    given = {"x": [1.3, np.nan, 100.0], "flag": [True, False, True], "name": ["a", "b", "c"], "n": [1, 2, 3]} | changes
    coords = {"token": ["t", "u", "v"], "id": ("token", given.pop("id", [5, 6, 7]))}
    return xr.Dataset({k: ("token", v) for k, v in given.items()}, coords).assign_attrs(verdict="2.13 of 6.28 nats")


def test_comparing_results():
    usual = Tolerance()
    assert set(diff_results(dataset(), dataset(), usual).values()) == {""}
    assert not any(diff_results(dataset(x=[1.302, np.nan, 100.1]), dataset(), usual).values())
    said = diff_results(dataset(x=[1.3, 0.0, 100.2]), dataset(), usual)["x"]
    assert said == "differs in 2 of 3, most at token=u: nan, made 0 (allowed: 0.001 + 0.001 of it)"
    said = diff_results(dataset(flag=[True, True, True]), dataset(), usual)["flag"]
    assert said == "differs in 1 of 3, first at token=u: False, made True"
    assert "name" in {k for k, v in diff_results(dataset(name=["a", "b", "d"]), dataset(), usual).items() if v}
    assert diff_results(dataset(id=[5, 6, 8]), dataset(), Tolerance(atol=9))["id"]  # a coordinate is exact
    assert not diff_results(dataset(n=[1, 2, 4]), dataset(), Tolerance(atol=1))["n"]
    ties = Tolerance(ties=0.4)
    odd = dataset(n=[1, 2, 9], flag=[True, True, True], name=["a", "b", "d"], x=[1.3, np.nan, 101.0])
    assert [k for k, v in diff_results(odd, dataset(), ties).items() if v] == ["x"]
    assert len([v for v in diff_results(odd, dataset(), Tolerance(ties=0.3)).values() if v]) == 4
    assert diff_results(dataset(id=[5, 6, 8]), dataset(), ties)["id"]
    assert [k for k, v in diff_results(odd, dataset(), Tolerance(outliers=0.4)).items() if v] == ["flag", "n", "name"]
    assert diff_results(odd, dataset(), Tolerance(outliers=0.3))["x"]
    ranks = dataset(x=[1.5, np.nan, 100.0]), dataset(x=[1.5, np.nan, 101.0])  # two tokens share rank 1.5
    assert not diff_results(*ranks, ties)["x"]
    assert diff_results(dataset().drop_vars("n"), dataset(), usual)["n"] == "is no longer made"
    assert diff_results(dataset(), dataset().drop_vars("n"), usual)["n"] == "is not in the committed result"
    assert diff_results(dataset().isel(token=[0]), dataset(), usual)["x"].startswith("is {'token': 3}")
    for verdict, same in (("2.14 of 6.28 nats", True), ("2.20 of 6.28 nats", False), ("2.13 of 6.28 bits", False)):
        assert (
            not diff_results(dataset().assign_attrs(verdict=verdict), dataset(), usual)["attribute verdict"]
        ) is same


def test_comparing_figures():
    import plotly.graph_objects as go

    one = go.Figure(go.Scatter(x=np.array([1.0, 2.0]), y=[[1, 2]], name="a")).to_json()
    assert "bdata" in one
    listed = json.dumps(
        {"data": [{"type": "scatter", "x": [1.0, 2.0000001], "y": [[1, 2]], "name": "a"}], "layout": {}}
    )
    template = json.loads(one)["layout"]
    listed = json.dumps(json.loads(listed) | {"layout": template})
    assert diff_figures(one, listed) == ""
    assert diff_figures(one, listed.replace("2.0000001", "2.1")) == "has 2.1 at data[0].x[1], drawn 2.0"
    assert diff_figures(one, listed.replace('"a"', '"b"')) == "has b at data[0].name, drawn a"
    assert diff_figures(one, listed.replace(', "name": "a"', "")) == "has nothing at data[0].name, drawn a"
    assert diff_figures(one, listed.replace("[1.0, 2.0000001]", "[1.0]")) == "has nothing at data[0].x[1], drawn 2.0"
    assert (
        diff_figures(one, listed.replace("2.0000001]", "2.0000001, 3.0]")) == "has 3.0 at data[0].x[2], drawn nothing"
    )
    assert (
        diff_figures(one, listed.replace('"name": "a"', '"name": "a", "ids": []'))
        == "has [] at data[0].ids, drawn nothing"
    )


QUICK = (  # test_readme makes others, those of the tour's commands
    "attention_scores",
    "training_curve",
    "census",
    "repeat_prompt",
    "unused_logits",
    "head_ablation_llama",
    "head_ablation_mixed",
    "activation_patching",
    "head_attribution",
    "logit_attribution",
    "logit_lens",
    "attention_pattern",
    "edge_attribution_llama",
    "score_attribution",
)


def test_entries_of_a_public_model_are_made_only_when_it_is_named():
    every = gallery.entries()
    bundled, public = (gallery.regeneration.select((), every, model) for model in ("", "smollm2"))
    assert {entry.request.model.name for entry in public} == {"smollm2"}
    assert {entry.chapter for entry in public} == {"a public model"}
    assert len(bundled) + len(public) == len(every)
    with pytest.raises(InterpError, match="no figures of 'gpt2': use smollm2, or leave --model out"):
        gallery.regeneration.select((), every, "gpt2")


@pytest.mark.gallery
def test_committed_figures_are_drawn_from_committed_results():
    table = gallery.check(ROOT / "figures", drawn_only=True)
    assert table["passed"].all(), table[~table["passed"]].to_string()


@pytest.mark.gallery
def test_the_code_reproduces_the_committed_results():
    """Those that take seconds; `interp figures --check` has all of them."""
    table = gallery.check(ROOT / "figures", QUICK)
    assert table["passed"].all(), table[~table["passed"]].to_string()
