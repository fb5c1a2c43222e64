"""Does the report hold what was found, does its page work in a browser, and does an interrupted one go on?"""

import asyncio
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import interp
import interp.organisms
from interp import figures, results, tables
from interp.cli import app
from interp.errors import InterpError
from interp.report import report, run as running
from interp.report.page import Part, write
from interp.report.sections import Section, sections
from interp.report.tokens import COPIES, rows

comparing = importlib.import_module("interp.report.compare")  # its function has the module's name
ROOT = Path(__file__).parent.parent
GALLERY, NOTEBOOKS = ROOT / "figures", ROOT / "notebooks"
HELD = {
    "gap": "repeated_tokens", "census": "census", "found": "undertrained", "reach": "argmaxability", "heads": "induction_heads",
    "causes": "glitch_attribution_single",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return {name: results.load(GALLERY / folder) for name, folder in HELD.items()}


@pytest.fixture(scope="module")
def table(organism, found):
    table, odd = rows(organism, found)
    assert odd == len(table) / 2
    return table


@pytest.fixture(scope="module")
def page(organism, found, table, tmp_path_factory):
    """A page drawn from the gallery's results."""
    parts = []
    for section in sections():
        drawn = figures.figures_of(found[section.name])
        drawn = {name: drawn[name] for name in section.shown or drawn}
        parts.append(
            Part(
                section,
                section.command(interp.origin(organism)),
                "a table",
                drawn,
                results.provenance(found[section.name]),
            )
        )
    path = tmp_path_factory.mktemp("report") / "report.html"
    # a token's text may be anything
    table = [*table, table[0] | {"id": 99999, "text": "</script><b>&", "kind": "text", "indicator": 99.0}]
    return write(path, "organism", interp.origin(organism), parts, table, 751, 0)


# --- what is known of each token --------------------------------------------------------------------------------------------


def test_rows_hold_what_the_results_say(organism, found, table):
    by_id = {row["id"]: row for row in table}
    exposure = found["found"]["exposure"].values
    never = np.flatnonzero(exposure == 0)
    assert set(never) <= set(by_id)
    assert sum(exposure[i] > 1000 for i in by_id) > 50
    for token in never[:20]:
        row = by_id[int(token)]
        assert row["exposure"] == 0
        assert row["verdict"] == "argmaxable"
        assert row["lead"] == pytest.approx(float(found["reach"]["margin"].values[1, token]), rel=1e-4)
        assert len(row["curve"]) == COPIES
    copied = [row for row in table if not row["called"] and (row["exposure"] or 0) > 1000]
    assert np.mean([row["curve"][-1] for row in copied]) > -0.5
    assert np.mean([row["curve"][0] for row in copied]) < -5
    assert np.mean([by_id[int(t)]["curve"][-1] for t in never]) < -5
    asked = [row for row in table if row["shares"]]
    assert {row["cause"] for row in asked if row["exposure"] == 0} <= {
        "identity",
        "content",
        "readout",
        "suppression",
        "matching",
    }
    # of unexposed tokens the nearest are unexposed
    near = [exposure[t] for token in never[:50] for t, _, _ in by_id[int(token)]["near"]["output"]]
    assert np.mean(np.array(near) == 0) > 0.9


def test_the_nearest_are_the_nearest(organism, table):
    rows_in = organism.original_model.get_input_embeddings().weight.detach().double().numpy()
    unit = rows_in - rows_in.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row in table[:: len(table) // 10]:
        cosine = unit @ unit[row["id"]]
        cosine[row["id"]] = -2
        assert row["near"]["input"][0][0] == cosine.argmax()
        assert row["near"]["input"][0][2] == pytest.approx(cosine.max(), abs=1e-3)


# --- the page ---------------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', markup)
    assert text.count("Plotly.newPlot") >= 1
    assert len(re.findall(r"plotly\.js v\d", text[:2_000_000])) == 1  # embedded once
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert data["rows"][-1]["text"] == "</script><b>&"
    assert len(page.read_bytes()) < 8_000_000
    assert "Of 751 such tokens these are the 750 with the lowest indicator." in text


def browser_of():
    """A browser, or the reason for none."""
    try:
        import choreographer
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        pytest.skip("no choreographer: install the extra 'figures'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not found:
        pytest.skip("no browser on this machine")
    del Chromium
    return choreographer.Browser(path=found, headless=True, enable_sandbox=False)


async def visit(path, steps):
    """Open a page and evaluate expressions one after the other: their values, and all that the console said."""
    browser = await browser_of()
    said = []

    async def hears(message):
        said.append(message["params"])

    try:
        tab = await browser.create_tab("about:blank")
        for domain in ("Runtime", "Log", "Page"):
            await tab.send_command(f"{domain}.enable")
        for event in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            tab.subscribe(event, hears)
        await tab.send_command("Page.navigate", {"url": path.as_uri()})
        values = []
        for step in steps:
            if isinstance(step, dict):
                await tab.send_command(*step.popitem())
                continue
            for _ in range(100):  # until it holds, at most 20 seconds
                answer = await tab.send_command(
                    "Runtime.evaluate", {"expression": step, "returnByValue": True, "awaitPromise": True}
                )
                value = answer["result"]["result"].get("value")
                if value not in (None, False, "", []):
                    break
                await asyncio.sleep(0.2)
            values.append(value)
        return values, said
    finally:
        await browser.close()


def test_sorting_searching_choosing_and_hovering(page, table):
    steps = [
        "document.querySelectorAll('#tokens tbody tr').length",
        # sorting: by how often it was seen, upwards and downwards
        "(document.querySelector('th[data-key=exposure] button').click(), [...document.querySelectorAll('#tokens tbody tr')].slice(0, 5).map(r => Number(r.cells[3].textContent) + 1))",
        "(document.querySelector('th[data-key=exposure] button').click(), [...document.querySelectorAll('#tokens tbody tr')].slice(0, 5).map(r => Number(r.cells[3].textContent)))",
        "document.querySelector('th[data-key=exposure]').getAttribute('aria-sort')",
        # searching
        f"(s => (s.value = 'text {table[0]['id']}', s.dispatchEvent(new Event('input')), document.getElementById('count').textContent))(document.getElementById('search'))",
        "(s => (s.value = '<b>&', s.dispatchEvent(new Event('input')), document.querySelectorAll('#tokens tbody tr').length))(document.getElementById('search'))",
        "document.querySelector('#tokens tbody tr .token-text').textContent",
        "(s => (s.value = '', s.dispatchEvent(new Event('input')), document.querySelectorAll('#tokens tbody tr').length))(document.getElementById('search'))",
        # choosing
        f"(document.querySelector('tr[data-id=\"{table[0]['id']}\"]').click(), document.querySelectorAll('#token .beside table tr').length)",
        "document.querySelectorAll('#token .js-plotly-plot .trace, #token .js-plotly-plot .bars').length",
        "document.querySelectorAll('tr.chosen').length",
        # hovering over a figure
        "(f => (f.scrollIntoView(), f.dataset.drawn === 'yes' && f.querySelector('.plotly') !== null))(document.getElementById('gap-halves'))",
        "(f => (f.scrollIntoView(), f.dataset.drawn === 'yes' && f.data.map((_, i) => (Plotly.Fx.hover(f, [{curveNumber: i, pointNumber: 10}]), f.querySelector('.hoverlayer').textContent)).join('')))(document.getElementById('found-indicator_against_probability'))",
        "getComputedStyle(document.body).backgroundColor",
        {"Emulation.setEmulatedMedia": {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}},
        "getComputedStyle(document.body).backgroundColor",
        # no black mark on a dark page
        "(f => (f.scrollIntoView(), f.dataset.drawn === 'yes' && [JSON.stringify(f.data).includes('#e0e0e0'), JSON.stringify(f.data).includes('\"black\"')].join()))(document.getElementById('causes-deficit_shares'))",
        # on a telephone the page is as wide as the screen, and figures are moved inside it
        {"Emulation.setDeviceMetricsOverride": {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}},
        "[innerWidth, document.documentElement.scrollWidth, document.getElementById('gap-halves').offsetWidth]",
    ]  # fmt: skip
    values, said = asyncio.run(visit(page, steps))
    (
        count,
        low,
        high,
        direction,
        one,
        odd,
        text,
        every,
        near,
        drawn,
        chosen,
        figure,
        hover,
        light,
        dark,
        marks,
        narrow,
    ) = values
    assert count == every == len(table) + 1
    assert low == [1.0] * 5  # tokens never seen
    assert high == sorted((row["exposure"] for row in table), reverse=True)[:5]
    assert direction == "descending"
    assert one.endswith(f"of {len(table) + 1} tokens")
    assert odd == 1
    assert text == "</script><b>&"
    assert near >= 12
    assert drawn
    assert chosen == 1
    assert figure is True
    assert hover
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(22, 22, 22)"
    assert marks == "true,false"
    assert narrow == [390, 390, 600]
    assert said == []


# --- making it --------------------------------------------------------------------------------------------------------------


def of_the_notebook():
    """The cell of notebook 05 that holds a user's experiment."""
    cells = json.loads((NOTEBOOKS / "05_your_own_experiment.ipynb").read_text())["cells"]
    return next(text for text in ("".join(cell["source"]) for cell in cells) if "def look_or_carry" in text)


@pytest.fixture
def few(monkeypatch):
    """Two quick sections, one of which this model cannot have."""

    def chosen():
        return [
            Section("gap", "The gap", "words", "repeated_tokens", options={"batch": 2}, shown=("halves",)),
            Section("never", "Never", "words", "repeated_tokens", pools=("dose=7",)),
        ]

    monkeypatch.setattr(running, "sections", chosen)


def test_a_report_with_an_experiment_of_ones_own(tmp_path, few):
    mine = tmp_path / "my_file.py"
    mine.write_text(of_the_notebook())
    done = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), "--add", f"{mine}:look_or_carry"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text()
    for section in ("gap", "never", "look_or_carry", "methods"):
        assert f'<section id="{section}">' in text
    assert "This part cannot be had: " in text
    assert "Token by token" not in text  # nothing was found that could stand there
    lost = results.load(tmp_path / "out" / "look_or_carry")["lost"].sel(pool="ordinary", layer=0, head=2).mean("batch")
    assert float(lost.sel(what="values")) > 7 > 0.1 > float(lost.sel(what="attention"))  # what the notebook tells
    assert "lost: mean by pool" in text
    assert "interp run repeated_tokens --model organism --batch 2" in text


def test_what_is_there_is_not_run_again(tmp_path, few, monkeypatch):
    asked = []
    before = running.result_of

    def counted(section, *rest):
        asked.append(section.name)
        if len(asked) == 2 and interrupted:
            raise KeyboardInterrupt
        return before(section, *rest)

    monkeypatch.setattr(running, "result_of", counted)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        report("organism", tmp_path)
    assert not (tmp_path / "report.html").exists()
    interrupted = False
    report("organism", tmp_path)
    assert asked == ["gap", "never", "never"]
    report("organism", tmp_path, seed=1)
    assert asked[3:] == ["gap", "never"]
    (tmp_path / "gap" / "result.nc").write_bytes(b"damaged")
    report("organism", tmp_path, seed=1)
    assert asked[5:] == ["gap", "never"]


def test_a_report_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InterpError, match="choose another --out"):
        report("organism", blocked)
    done = CliRunner().invoke(app, ["report", "--model", "no-such-model-anywhere", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert len(done.output.strip().splitlines()) == 1


def test_every_section_names_its_command(organism):
    from interp import experiments

    for section in sections():
        command = section.command(interp.origin(organism))
        assert command.startswith("interp ")
        if isinstance(section.experiment, str) and section.experiment != "census":
            assert section.experiment in experiments.names()


def test_a_command_makes_the_numbers_again(tmp_path, few):
    """Seed, weights and a path with a space are in it; of a function, the file that it stands in."""
    import shlex

    from interp import experiments
    from interp.report.sections import of_experiment

    about = {"name": "my models/wired", "weights": "folded", "dtype": "float64", "revision": "abc"}
    section = Section("gap", "", "", "repeated_tokens", options={"batch": 2, "mixed": True}, pools=('texts=" a"',))
    assert shlex.split(section.command(about, 7)) == [
        "interp", "run", "repeated_tokens", "--model", "my models/wired", "--pool", 'texts=" a"', "--revision", "abc", "--weights", "folded",
        "--dtype", "float64", "--seed", "7", "--batch", "2", "--mixed",
    ]  # fmt: skip
    assert section.command({"name": "organism", "weights": "raw", "dtype": "float32"}).endswith("--batch 2 --mixed")
    mine = tmp_path / "mine.py"
    mine.write_text(of_the_notebook())
    for own in (f"{mine}:look_or_carry", experiments.find(f"{mine}:look_or_carry")):
        assert of_experiment(own).command({"name": "gpt2"}) == f"interp run {mine}:look_or_carry --model gpt2"
    report(interp.load("wired", weights="folded"), tmp_path / "out", seed=7)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "interp run repeated_tokens --model wired --weights folded --seed 7 --batch 2" in page


def test_sections_of_one_name(tmp_path, few):
    """One's own `gap` neither shows nor overwrites the report's."""
    text = 'import interp\n\n\ndef gap(model, tokens):\n    """`x` [batch]."""\n    return interp.label("x", [NUMBER] * len(tokens.ids), "batch", tokens.coords)\n'
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(text.replace("NUMBER", f"{ord(name)}.0"))
    path = report("wired", tmp_path / "out", add=[f"{tmp_path}/a.py:gap", f"{tmp_path}/b.py:gap"])
    assert re.findall(r'<section id="([^"]+)"', path.read_text()) == ["gap", "never", "gap-2", "gap-3", "methods"]
    assert "log_prob" in results.load(tmp_path / "out" / "gap")
    assert float(results.load(tmp_path / "out" / "gap-3").x.mean()) == ord("b")


def test_nothing_to_report(tmp_path, monkeypatch):
    never = Section("never", "Never", "words", "repeated_tokens", pools=("dose=7",))
    monkeypatch.setattr(running, "sections", lambda: [never])
    done = CliRunner().invoke(app, ["report", "--model", "wired", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "nothing can be said of 'wired': " in done.output
    with pytest.raises(InterpError, match="seed -1: use a whole number"):
        report("wired", tmp_path, seed=-1)


def test_the_page_of_another_model_goes(tmp_path, few, monkeypatch):
    """Interrupted, another model's results do not lie below the old page; the same model's do."""
    report("wired", tmp_path)
    page = tmp_path / "report.html"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "result_of", interrupted)
    for model, stays in (("wired", True), ("organism", False)):
        shutil.copy(page, tmp_path / "kept.html")
        result = (tmp_path / "gap" / "result.nc").read_bytes(), (tmp_path / "gap" / "asked.json").read_bytes()
        with pytest.raises(KeyboardInterrupt):
            report(model, tmp_path, seed=1)
        assert page.exists() == stays
        (tmp_path / "gap" / "result.nc").write_bytes(result[0])
        (tmp_path / "gap" / "asked.json").write_bytes(result[1])


def test_models_that_cannot_be_compared(tmp_path, monkeypatch):
    """Said before anything is run, and nothing is written but where it should be."""
    monkeypatch.setattr(comparing, "part_of", lambda *_: pytest.fail("run"))
    monkeypatch.chdir(tmp_path)
    whole, other = tmp_path / "whole", tmp_path / "with@sign"
    for folder in (whole, other):
        shutil.copytree(interp.organisms.folder("organism"), folder)
    for asked, said in (
        (["organism"], "two models"), (["organism", "organism"], "each once"), (["organism", "organsm"], "organsm"),
        (["organism@main", "wired"], "no revisions"), (["wired", "no/such@main"], "no/such"), (["wired", str(tmp_path)], "no config.json"),
    ):  # fmt: skip
        with pytest.raises(InterpError, match=said):
            comparing.compare(asked, "out")
    with pytest.raises(InterpError, match="pool"):
        comparing.compare(["organism", "wired"], "out", pools=["nonsense"])
    assert not list(tmp_path.glob("out/*"))
    seen = []

    def noted(section, model, folder, seed):
        seen.append(folder)
        raise InterpError("not now")

    monkeypatch.setattr(comparing, "part_of", noted)
    with pytest.raises(InterpError, match="are the same model"):
        comparing.compare(["whole", str(other)], "out")
    with pytest.raises(InterpError, match="nothing can be had"):
        comparing.compare(["wired", "../" + tmp_path.name + "/whole"], "out")
    out = (tmp_path / "out").resolve()
    assert seen
    assert all(folder.resolve().is_relative_to(out) and folder.resolve().parent != out for folder in seen)


def test_pools_on_all_models(tmp_path, monkeypatch):
    """Models of which unlike much is known are compared on what both have."""
    monkeypatch.setattr(comparing, "sections", lambda: _quick()[:3:2])
    done = CliRunner().invoke(
        app, ["compare", "organism", "wired", "--pool", "20:40", "--pool", "5:45", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    result = results.load(tmp_path)
    assert result["pool"].values.tolist() == ["20:40", "5:45"]
    assert result["called_on"].values.tolist() == ["5:45", "5:45"]
    assert result["copied"].notnull().all()


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step1000", 1000), ("checkpoint-500", 500), ("143000", 143000), ("stage1-step5000-tokens21B", 5000), ("deadbeef12", None), ("main", None),
        ("", None), ("v1.0", None),
    ],
)  # fmt: skip
def test_steps_of_revisions(revision, step):
    found = comparing._step(revision)
    assert found == step if step is not None else np.isnan(found)


def test_one_folder_for_each_name():
    names = ["organism", "a/b", "a--b", "..", "/x/y", "a@step1", "a b"]
    folders = {comparing._folder(name) for name in names}
    assert len(folders) == len(names)
    assert not any("/" in folder or folder.startswith(".") for folder in folders)


def _quick():
    return [
        Section("gap", "", "", "repeated_tokens", options={"batch": 8}),
        Section("found", "", "", "undertrained", options={"verify_tokens": "none"}),
        Section("heads", "", "", "induction_heads", options={"batch": 8}),
        Section("causes", "", "", "glitch_attribution", options={"batch": 8, "fits": 1}),
    ]  # fmt: skip


def test_models_side_by_side(tmp_path, monkeypatch):
    """The same numbers as each model's own runs; asked again, nothing is run; what a model lacks is said."""
    monkeypatch.setattr(comparing, "sections", _quick)
    asked = ["compare", "organism-untied", "wired", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "250"})
    assert done.exit_code == 0, done.output
    assert "identity" in done.output
    assert "wired lacks found (" in done.output
    result = results.load(tmp_path)
    assert result["model"].values.tolist() == ["organism-untied", "wired"]
    own = {name: results.load(tmp_path / "organism-untied" / name) for name in ("gap", "found", "heads", "causes")}
    there = result.sel(model="organism-untied")
    for name, bound in (("share", "mean"), ("share_low", "low"), ("share_high", "high")):
        assert there["share"].sel(pool="unexposed", bound=bound).values == pytest.approx(
            own["causes"][name].sel(pool="unexposed").values
        )
    second = (
        own["gap"]["log_prob"].where((own["gap"]["half"] == 2) & (own["gap"]["offset"] > 0)).mean(["batch", "position"])
    )
    for pool in ("unexposed", "ordinary"):
        assert float(there["copied"].sel(pool=pool, bound="mean")) == pytest.approx(
            float(second.sel(pool=pool)), abs=1e-5
        )
        low, high = (float(there["copied"].sel(pool=pool, bound=bound)) for bound in ("low", "high"))
        assert low < float(second.sel(pool=pool)) < high
    calls = own["found"]["called"].sel(indicator=own["found"].attrs["indicator"])
    assert int(there["under_trained"].sel(set="called")) == int(calls.sum()) > 100
    assert np.isnan(there["under_trained"].sel(set="not repeated"))  # nobody asked
    best = own["heads"]["score"].sel(pool="ordinary", stripe="induction").mean("batch").max()
    assert float(there["score"].sel(kind="induction", bound="mean")) == pytest.approx(float(best), abs=1e-6)
    assert float(there["without_repeat"].sel(kind="induction")) < 0.1
    wired = result.sel(model="wired")
    assert float(wired["score"].sel(kind="induction", bound="mean")) == pytest.approx(1, abs=1e-5)
    assert wired["heads"].sel(kind="induction").item() == "L1H0"
    assert set(figures.figures_of(result)) == {"side_by_side"}

    def never(*_):
        raise AssertionError("run again")

    real = running.result_of
    monkeypatch.setattr(
        running,
        "result_of",
        lambda section, model, *rest: (never if model.origin["name"] != "wired" else real)(section, model, *rest),
    )
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0, again.output
    alone = CliRunner().invoke(app, ["compare", "organism", "--out", str(tmp_path)])
    assert alone.exit_code == 1
    assert "two models" in alone.output


def test_checkpoints_of_one_training_run(hub_cache, organism, tmp_path, monkeypatch):
    """Step 0 knows nothing, the last step is `organism`, and between them stands one whose previous-token head is taken away."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from interp.organisms import folder

    whole = folder("organism")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            0: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(whole)),
            10: AutoModelForCausalLM.from_pretrained(whole),
        }
    size = made[10].config.n_embd // made[10].config.n_head
    with torch.no_grad():
        made[10].transformer.h[0].attn.c_proj.weight[2 * size : 3 * size] = 0  # L0H2, in the rows that read its output
    refs = {"main": ("f" * 40, whole), "step20": ("2" * 40, whole)}
    for step, model in made.items():
        model.save_pretrained(tmp_path / str(step))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(whole / name, tmp_path / str(step) / name)
        refs[f"step{step}"] = (f"{step % 7}" * 40, tmp_path / str(step))
    hub_cache(tmp_path / "hub", "someone/run", refs, monkeypatch)
    monkeypatch.setattr(comparing, "sections", lambda: _quick()[:3])
    result = comparing.compare([f"someone/run@step{step}" for step in (20, 0, 10)], tmp_path / "out")
    assert result["step"].values.tolist() == [20, 0, 10]
    assert [about["revision"][0] for about in results.provenance(result)["models"]] == ["2", "0", "3"]
    copied = result["copied"].sel(pool="text", bound="mean").values
    own = interp.run("repeated_tokens", organism, ["impossible-bytes", "text"], batch=8)
    second = own["log_prob"].sel(pool="text").where((own["half"] == 2) & (own["offset"] > 0)).mean()
    assert copied[0] == pytest.approx(float(second), abs=1e-4)
    assert (copied[1:] < copied[0] - 3).all()
    score = result["score"].sel(kind="induction")
    assert float(score.sel(bound="mean")[0]) > 0.7  # some of the text tokens were never trained
    assert (score.sel(bound="mean")[1:] < 0.2).all()
    assert result["heads"].sel(kind="previous").values.tolist()[0] == "L0H2"
    assert (result["heads"].sel(kind="induction")[1:] == "-").all()
    drawn = figures.figures_of(result)
    assert set(drawn) == {"side_by_side", "over_training"}
    assert list(drawn["over_training"].data[0].x) == ["0", "10", "20"]
    # more lines than colours, and a name without a revision beside one with
    text = result.sel(pool=["text"])
    many = xr.concat([text.assign_coords(pool=[f"pool {i}"]) for i in range(14)], "pool", data_vars="minimal")
    many = many.assign_coords(model=["someone/run", "someone/run@step0", "someone/run@step10"])
    assert len({trace.name for trace in figures.figures_of(many)["over_training"].data}) >= 14
    table = list(tables.story(many))[1]
    assert [column.header for column in table.columns] == ["", "someone/run", "step0", "step10"]
