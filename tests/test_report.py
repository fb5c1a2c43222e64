"""Does the report hold the results, does its page work in a browser, and does an interrupted report resume?"""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import interp
import interp.organisms
from interp import catalog, results, views
from interp.cli import app
from interp.compare import comparison
from interp.errors import InterpError
from interp.exhibits import ReportSection
from interp.report import report, run as running
from interp.report.page import Page, Part, write
from interp.report.sections import added_section, on_model, sections
from interp.report.tokens import COPIES, TokenTable, token_table
from interp.request import Request

ROOT = Path(__file__).parent.parent
GALLERY, NOTEBOOKS = ROOT / "figures", ROOT / "notebooks"
HELD = {
    "gap": "repeated_tokens", "census": "census", "found": "undertrained", "reach": "argmaxability", "repeated_token": "repeated_token",
    "massive": "massive_activations", "heads": "induction_heads",
    "causes": "glitch_attribution_single",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return {name: results.load(GALLERY / folder) for name, folder in HELD.items()}


@pytest.fixture(scope="module")
def table(organism, found):
    table = token_table(organism, found)
    assert table.suspicious == len(table.rows) / 2
    return table.rows


@pytest.fixture(scope="module")
def page(organism, found, table, tmp_path_factory):
    """A page drawn from the gallery's results."""
    parts = []
    for section in sections():
        drawn = views.figures(found[section.name])
        drawn = {name: drawn[name].to_json() for name in section.figures or drawn}
        section = on_model(section, interp.origin(organism), 0)
        parts.append(Part(section, "a table", drawn, found[section.name], seconds=1.0))
    path = tmp_path_factory.mktemp("report") / "report.html"
    # a token's text may be anything
    table = [*table, table[0] | {"id": 99999, "text": "</script><b>&", "kind": "text", "indicator": 99.0}]
    return write(path, Page(interp.origin(organism), 0, parts, TokenTable(table, 751)))


# --- what is known of each token --------------------------------------------------------------------------------------------


@pytest.mark.experiment
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
    copied = [row for row in table if not row["detected"] and (row["exposure"] or 0) > 1000]
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


def test_the_listed_neighbours_are_the_nearest(organism, table):
    rows_in = organism.original_model.get_input_embeddings().weight.detach().double().numpy()
    unit = rows_in - rows_in.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row in table[:: len(table) // 10]:
        cosine = unit @ unit[row["id"]]
        cosine[row["id"]] = -2
        assert row["near"]["input"][0][0] == cosine.argmax()
        assert row["near"]["input"][0][2] == pytest.approx(cosine.max(), abs=1e-3)


# --- the page ---------------------------------------------------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.experiment
def test_the_page_is_self_contained(page):
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
    """A browser, or the reason why there is none."""
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


@pytest.mark.browser
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
            ReportSection("gap", "The gap", "words", Request.of("repeated_tokens", batch=2), figures=("halves",)),
            ReportSection("never", "Never", "words", Request.of("repeated_tokens", pools="dose=7")),
        ]

    monkeypatch.setattr(running, "sections", chosen)


@pytest.mark.experiment
def test_a_report_can_include_a_users_experiment(tmp_path, few):
    mine = tmp_path / "my_file.py"
    mine.write_text(of_the_notebook())
    done = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), "--add", f"{mine}:look_or_carry"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text()
    for section in ("gap", "never", "look_or_carry", "methods"):
        assert f'<section id="{section}">' in text
    assert "Not available: " in text
    assert "Token by token" not in text  # nothing was found that could stand there
    lost = results.load(tmp_path / "out" / "look_or_carry")["lost"].sel(pool="ordinary", layer=0, head=2).mean("batch")
    assert float(lost.sel(what="values")) > 7 > 0.1 > float(lost.sel(what="attention"))  # what the notebook tells
    assert "lost: mean by pool" in text
    assert "interp run repeated_tokens --batch 2" in text


@pytest.mark.experiment
def test_a_section_of_the_same_request_is_not_run_again(tmp_path, few, monkeypatch):
    run, asked, said = running.run_request, [], []

    def interrupted(request, *rest, **options):
        asked.append(request)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run(request, *rest, **options)

    monkeypatch.setattr(running, "run_request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report("organism", tmp_path, log=said.append)
    assert not (tmp_path / "report.html").exists()
    assert said == []
    monkeypatch.setattr(running, "run_request", run)

    def ran(**options):
        said.clear()
        text = report("organism", tmp_path, log=said.append, **options).read_text()
        assert "<li>Never: 0." in text
        taken = sum("taken from an earlier run" in line for line in said)
        anew = sum(line.endswith("running again") for line in said)
        assert len(said) == taken + anew + 1  # "Never" is not available
        assert ("<li>The gap: taken from an earlier run</li>" in text) == taken
        return not taken

    assert not ran()
    assert ran(seed=1)
    assert not ran(seed=1)
    (tmp_path / "gap" / "result.nc").write_bytes(b"damaged")
    assert ran(seed=1)
    assert ran(seed=1, fresh=True)


def test_an_unwritable_report_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InterpError, match="choose another --out"):
        report("organism", blocked)
    done = CliRunner().invoke(app, ["report", "--model", "no-such-model-anywhere", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert len(done.output.strip().splitlines()) == 1


def test_every_section_names_its_command(organism):
    for section in sections():
        request = on_model(section, interp.origin(organism), 0).request
        assert request.command().startswith("interp run ")
        if section.function is None:
            assert request.experiment in catalog.names()
            assert Request.from_argv(shlex.split(request.command())[1:]) == request
    assert [section.name for section in sections()] == list(HELD)


@pytest.mark.experiment
def test_a_command_reproduces_the_numbers(tmp_path, few):
    """Seed, weights and a path with a space are in it; of a function, the file that it stands in."""
    about = {"name": "my models/wired", "weights": "folded", "dtype": "float64", "revision": "abc"}
    asked = Request.of("repeated_tokens", batch=2, mixed=True, pools='texts=" a"')
    section = ReportSection("gap", "", "", asked)
    command = on_model(section, about, 7).request.command()
    assert shlex.split(command)[:5] == ["interp", "run", "repeated_tokens", "--model", "my models/wired"]
    for words in (
        ["--pool", 'texts=" a"'],
        ["--revision", "abc"],
        ["--weights", "folded"],
        ["--dtype", "float64"],
        ["--seed", "7"],
        ["--batch", "2"],
        ["--mixed"],
    ):
        assert shlex.join(words) in command
    usual = on_model(section, {"name": "organism", "weights": "raw", "dtype": "float32"}, 0).request.command()
    assert usual == """interp run repeated_tokens --pool 'texts=" a"' --batch 2 --mixed"""
    mine = tmp_path / "mine.py"
    mine.write_text(of_the_notebook())
    for own in (f"{mine}:look_or_carry", catalog.find(f"{mine}:look_or_carry")):
        section = on_model(added_section(own), {"name": "gpt2"}, 0)
        assert section.request.command() == f"interp run {mine}:look_or_carry --model gpt2"
    report(interp.load("wired", weights="folded"), tmp_path / "out", seed=7)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "interp run repeated_tokens --model wired --weights folded --batch 2 --seed 7" in page


OWN = '''"""Experiments of a user's: names that other results have, and mistakes."""
import interp
import numpy as np
import plotly.graph_objects as go


def effects(model, tokens):
    """What sender does what?"""
    return interp.label("effect", np.ones((2, len(tokens.ids))), "sender batch", tokens.coords).to_dataset()


def shares(model, tokens):
    ones = np.ones(len(tokens.ids))
    share = interp.label("share", ones, "batch", tokens.coords)
    return share.to_dataset().assign(deficit=interp.label("deficit", ones, "batch", tokens.coords))


def patterns(model, tokens):
    return interp.label("pattern", np.ones(tokens.ids.shape), "batch position", tokens.coords)


def breaks(model, tokens):
    return 1 / 0


def sized(model, tokens, *, factor: float = 1.0, kind: str = "plain"):
    """How long is it?

    More of it.
    """
    sizes = np.full(len(tokens.ids), factor * tokens.ids.shape[1])
    return interp.label("size", sizes, "batch", tokens.coords).to_dataset().assign_attrs(kind=kind)
'''


@pytest.mark.experiment
def test_a_failing_section_gives_its_reason_and_the_page_is_written(tmp_path, few):
    """A user's variables may have any names, and a user's code any mistakes."""
    mine, said = tmp_path / "mine.py", []
    mine.write_text(OWN)
    names = ["effects", "shares", "patterns", "breaks", "sized"]
    path = report("wired", tmp_path / "out", add=[f"{mine}:{name}" for name in names], log=said.append)
    text = path.read_text()
    assert re.findall(r'<section id="([^"]+)"', text) == ["gap", "never", *names, "methods"]
    assert "Not available: ZeroDivisionError: division by zero (see breaks/error.txt)" in text
    failed = (tmp_path / "out" / "breaks" / "error.txt").read_text()
    assert failed.startswith("Traceback")
    assert "return 1 / 0" in failed
    assert [line for line in said if "ZeroDivisionError" in line] == [
        "Breaks: ZeroDivisionError: division by zero (see breaks/error.txt)"
    ]
    assert not (tmp_path / "out" / "sized" / "error.txt").exists()
    assert "size: mean by pool" in text
    for name in ("effects", "shares", "patterns"):
        assert results.provenance(results.load(tmp_path / "out" / name))["experiment"] == f"{mine}:{name}"
    for name in names:
        assert f"interp run {mine}:{name} --model wired" in text
    # repaired, nothing is left of the mistake
    mine.write_text(OWN.replace("return 1 / 0", "return sized(model, tokens)"))
    assert (
        "ZeroDivisionError"
        not in report("wired", tmp_path / "out", add=[f"{mine}:breaks"], log=said.append).read_text()
    )
    assert not (tmp_path / "out" / "breaks" / "error.txt").exists()


@pytest.mark.experiment
def test_an_interruption_inside_an_experiment_ends_the_report(tmp_path, few):
    (tmp_path / "mine.py").write_text(OWN.replace("return 1 / 0", "raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        report("wired", tmp_path / "out", add=[f"{tmp_path}/mine.py:breaks"], log=print)
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.experiment
def test_the_figures_and_the_table_of_a_users_file_are_shown(tmp_path, few):
    mine, said = tmp_path / "mine.py", []
    view = """

def table(result):
    return [f"the size is {float(result['size'].mean()):g}"]


def my_figure(result):
    return go.Figure(go.Bar(y=result['KEY'].values))


FIGURES = [my_figure]
"""
    mine.write_text(OWN + view.replace("KEY", "size"))
    text = report("wired", tmp_path / "out", add=[f"{mine}:sized"], log=said.append).read_text()
    assert "the size is 51" in text
    assert 'id="sized-my_figure"' in text
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert set(data["figures"]) == {"gap-halves", "sized-my_figure"}
    # a mistake in it is said in its place, above plain figures
    mine.write_text(OWN + view.replace("KEY", "sise"))
    text = report("wired", tmp_path / "out", add=[f"{mine}:sized"], log=said.append).read_text()
    said_there = "the figures of mine are not available for this result (KeyError: "
    assert f"<p>{said_there[0].upper()}{said_there[1:]}" in text
    assert any(said_there in line and "sized/error.txt" in line for line in said)
    assert 'id="sized-size"' in text
    assert "the size is 51" in text
    assert "my_figure" in (tmp_path / "out" / "sized" / "error.txt").read_text()
    assert '<section id="methods">' in text
    assert 'id="gap-halves"' in text


@pytest.mark.experiment
def test_an_added_experiment_takes_its_own_parameters_and_options(tmp_path, few):
    mine = tmp_path / "my file.py"
    mine.write_text(OWN + "\nwith open(__file__ + '.runs', 'a') as file:\n    file.write('x')\n")
    text = f"'{mine}:sized' --factor 2 --kind bold --batch 3 --length 10 --pool 20:40 --seed 5"
    asked = Request.of(f"{mine}:sized", factor=3.0, batch=4, pools="20:40")
    path = report("wired", tmp_path / "out", seed=1, add=[text, asked], log=print)
    first, second = (results.load(tmp_path / "out" / name) for name in ("sized", "sized-2"))
    assert first["size"].values.tolist() == [[42.0] * 3]  # with BOS
    assert results.provenance(first)["parameters"] == {"factor": 2.0, "kind": "bold"}
    assert second["size"].values.tolist() == [[123.0] * 4]
    assert [results.provenance(result)["seed"] for result in (first, second)] == [5, 1]
    assert "--batch 3 --length 10 --seed 5 --factor 2.0 --kind bold" in path.read_text()
    assert "<p>How long is it?</p>" in path.read_text()
    assert (tmp_path / "my file.py.runs").read_text() == "x"  # run once
    for added, said in (
        (f"'{mine}:sized' --model gpt2", "leave the model's options out"),
        (f"'{mine}:sized' --facto 2", "did you mean --factor"),
        (f"'{mine}:sized", "close the quotation mark"),
        ("no_such_experiment", "unknown experiment"),
    ):
        with pytest.raises(InterpError, match=said):
            report("wired", tmp_path / "never", add=[added])
    assert not (tmp_path / "never").exists()


def test_the_package_loads_without_torch():
    code = "import sys; from interp import compare, report; sys.exit('torch' in sys.modules or 'report' not in dir(report))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.experiment
def test_sections_of_one_name(tmp_path, few):
    """A user's `gap` neither shows nor overwrites the report's."""
    text = 'import interp\n\n\ndef gap(model, tokens):\n    """`x` [batch]."""\n    return interp.label("x", [NUMBER] * len(tokens.ids), "batch", tokens.coords)\n'
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(text.replace("NUMBER", f"{ord(name)}.0"))
    path = report("wired", tmp_path / "out", add=[f"{tmp_path}/a.py:gap", f"{tmp_path}/b.py:gap"])
    assert re.findall(r'<section id="([^"]+)"', path.read_text()) == ["gap", "never", "gap-2", "gap-3", "methods"]
    assert "log_prob" in results.load(tmp_path / "out" / "gap")
    assert float(results.load(tmp_path / "out" / "gap-3").x.mean()) == ord("b")


def test_a_report_without_sections_is_refused(tmp_path, monkeypatch):
    never = ReportSection("never", "Never", "words", Request.of("repeated_tokens", pools="dose=7"))
    monkeypatch.setattr(running, "sections", lambda: [never])
    done = CliRunner().invoke(app, ["report", "--model", "wired", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "no section is available for 'wired': " in done.output
    with pytest.raises(InterpError, match="seed -1: use 0 or a positive integer"):
        report("wired", tmp_path, seed=-1)


@pytest.mark.experiment
def test_the_page_of_another_model_is_removed(tmp_path, few, monkeypatch):
    """After an interruption, another model's results are not left under the old page; the same model's are."""
    report("wired", tmp_path)
    page = tmp_path / "report.html"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_request", interrupted)
    for model, stays in (("wired", True), ("organism", False)):
        with pytest.raises(KeyboardInterrupt):
            report(model, tmp_path, seed=1)
        assert page.exists() == stays


@pytest.mark.experiment
def test_invalid_comparisons_are_refused(tmp_path, monkeypatch):
    """Refused before anything runs, and nothing is written elsewhere."""
    monkeypatch.setattr(comparison, "run_request", lambda *_, **__: pytest.fail("run"))
    monkeypatch.chdir(tmp_path)
    whole, other = tmp_path / "whole", tmp_path / "with@sign"
    for folder in (whole, other):
        shutil.copytree(interp.organisms.folder("organism"), folder)
    for asked, said in (
        (["organism"], "two or more models"), (["organism", "organism"], "each once"), (["organism", "organsm"], "organsm"),
        (["organism@main", "wired"], "no revisions"), (["wired", "no/such@main"], "no/such"), (["wired", str(tmp_path)], "no config.json"),
    ):  # fmt: skip
        with pytest.raises(InterpError, match=said):
            comparison.compare(asked, "out")
    with pytest.raises(InterpError, match="pool"):
        comparison.compare(["organism", "wired"], "out", pools=["nonsense"])
    assert not list(tmp_path.glob("out/[!.]*"))
    seen = []

    def noted(request, model, *, out, **options):
        seen.append(out)
        raise InterpError("not now")

    monkeypatch.setattr(comparison, "run_request", noted)
    with pytest.raises(InterpError, match="are the same model"):
        comparison.compare(["whole", str(other)], "out")
    with pytest.raises(InterpError, match="nothing is available"):
        comparison.compare(["wired", "../" + tmp_path.name + "/whole"], "out")
    out = (tmp_path / "out").resolve()
    assert seen
    assert all(folder.resolve().is_relative_to(out) and folder.resolve().parent != out for folder in seen)


@pytest.mark.comparison
def test_pools_on_all_models(tmp_path, monkeypatch):
    """Models with different sections are compared on those that both have."""
    monkeypatch.setattr(comparison, "sections", lambda: _quick()[:3:2])
    done = CliRunner().invoke(
        app, ["compare", "organism", "wired", "--pool", "20:40", "--pool", "5:45", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    result = results.load(tmp_path)
    assert result["pool"].values.tolist() == ["20:40", "5:45"]
    assert result["classified_on"].values.tolist() == ["5:45", "5:45"]
    assert result["copied"].sel(bound="mean").notnull().all()


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step1000", 1000), ("checkpoint-500", 500), ("143000", 143000), ("stage1-step5000-tokens21B", 5000), ("deadbeef12", None), ("main", None),
        ("", None), ("v1.0", None),
    ],
)  # fmt: skip
def test_steps_of_revisions(revision, step):
    found = comparison._step(revision)
    assert found == step if step is not None else np.isnan(found)


@pytest.mark.parametrize(
    ("name", "revision", "run", "step"),
    [
        ("runs/step40", None, "runs", 40), ("runs/checkpoint-500/", None, "runs", 500), ("step40", None, ".", 40),
        ("runs/tied-step40", None, "runs/tied", 40), ("gpt2", "step1000", "gpt2", 1000), ("gpt2", "main", "gpt2", None),
        ("gpt2", None, "gpt2", None), ("runs/footstep40", None, "runs/footstep40", None),
        ("runs/step40/last", None, "runs/step40/last", None),
    ],
)  # fmt: skip
def test_runs_and_steps_of_names(name, revision, run, step):
    found = comparison._run_and_step(name, revision)
    assert found[0] == run
    assert found[1] == step if step is not None else np.isnan(found[1])


@pytest.mark.parametrize(
    ("names", "headers", "of"),
    [
        (["runs/step80", "runs/step40"], ["step80", "step40"], "runs"),
        (["runs/a-step80", "runs/a-step40"], ["a-step80", "a-step40"], "runs/a"),
        (["runs/step80", "runs-2/step40"], None, None),
    ],
)
def test_folders_of_one_run_are_drawn_over_training(names, headers, of):
    values = [np.float32([[-level - pool, -level - 1, -level + 1] for pool in range(2)]) for level in (2, 6)]
    parts = [
        xr.Dataset(
            {"copied": (("pool", "bound"), value), "missing": "", "shorter_blocks": ""},
            {"pool": ["rare", "text"], "bound": ["mean", "low", "high"]},
        )
        for value in values
    ]
    found = comparison._side_by_side(parts, {name: (name, None) for name in names})
    found = results.stamp(found, {"experiment": "compare"})
    figures = views.figures(found)
    lines = list(views.tables(found))
    shown = [column.header for column in lines[1].columns][1:]
    if headers is None:
        assert "over_training" not in figures
        assert shown == names
        assert "Side by side" in str(lines[0])
        return
    assert list(figures["over_training"].data[0].x) == ["40", "80"]
    assert list(figures["over_training"].data[0].y) == [-6, -2]  # each value with its own step
    assert shown == headers
    assert f"Checkpoints of {of}:" in str(lines[0])


def test_one_folder_for_each_name():
    names = ["organism", "a/b", "a--b", "..", "/x/y", "a@step1", "a b"]
    folders = {comparison._folder(name) for name in names}
    assert len(folders) == len(names)
    assert not any("/" in folder or folder.startswith(".") for folder in folders)


def _quick():
    asked = {
        "gap": Request.of("repeated_tokens", batch=8),
        "found": Request.of("undertrained", verify_tokens="none"),
        "heads": Request.of("induction_heads", batch=8),
        "causes": Request.of("glitch_attribution", batch=8, fits=1),
    }
    return [ReportSection(name, "", "", request) for name, request in asked.items()]


@pytest.mark.comparison
def test_models_side_by_side(tmp_path, monkeypatch):
    """The same numbers as each model's own runs; a second call runs nothing; what a model lacks is reported."""
    monkeypatch.setattr(comparison, "sections", _quick)
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
            own["causes"][name].sel(pool="unexposed").values, nan_ok=True
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
    calls = own["found"]["detected"].sel(indicator=own["found"].attrs["indicator"])
    assert int(there["under_trained"].sel(set="detected")) == int(calls.sum()) > 100
    assert np.isnan(there["under_trained"].sel(set="not repeated"))  # not requested
    best = own["heads"]["score"].sel(pool="ordinary", key_kind="induction").mean("batch").max()
    assert float(there["score"].sel(kind="induction", bound="mean")) == pytest.approx(float(best), abs=1e-6)
    assert float(there["without_repeat"].sel(kind="induction")) < 0.1
    wired = result.sel(model="wired")
    assert float(wired["score"].sel(kind="induction", bound="mean")) == pytest.approx(1, abs=1e-5)
    assert wired["heads"].sel(kind="induction").item() == "L1H0"
    assert set(views.figures(result)) == {"side_by_side"}

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/result.nc")}
    assert len(written) > 4
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in written} == written
    record = results.provenance(results.load(tmp_path))
    assert record["request"] == {"models": ["organism-untied", "wired"], "pools": [], "seed": 0}
    assert record["schema"] == 2
    alone = CliRunner().invoke(app, ["compare", "organism", "--out", str(tmp_path)])
    assert alone.exit_code == 1
    assert "two or more models" in alone.output


def test_a_model_that_lacks_sections_is_compared_as_dashes(found):
    """Whether it comes first or last, and whatever it lacks; pools stay in the order of the models."""
    data = {}
    for name, summarize in comparison._SUMMARIES.items():
        data |= summarize(found[name])
    known, nothing = xr.Dataset(data).assign(missing=""), xr.Dataset().assign(missing="all")
    some = known[["heads", "score", "classified_on", "missing"]]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        parts = [(known, nothing, some)[i] for i in order]
        result = comparison._side_by_side(parts, {"a": ("a", None), "b": ("b", "step10"), "c": ("c", None)})
        whole, none, few = (result.isel(model=order.index(i)) for i in range(3))
        assert set(none["heads"].values) == {"-"} == {none["classified_on"].item()}
        assert none["copied"].isnull().all()
        assert none["under_trained"].isnull().all()
        assert few["copied"].isnull().all()
        assert few["heads"].values.tolist() == known["heads"].values.tolist()
        assert whole["pool"].values.tolist() == found["gap"]["pool"].values.tolist()
        assert (whole["share"] == known["share"]).all()
        assert result["step"].values.tolist()[1] == 10


@pytest.mark.comparison
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
    monkeypatch.setattr(comparison, "sections", lambda: _quick()[:3])
    result = comparison.compare([f"someone/run@step{step}" for step in (20, 0, 10)], tmp_path / "out")
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
    drawn = views.figures(result)
    assert set(drawn) == {"side_by_side", "over_training"}
    assert list(drawn["over_training"].data[0].x) == ["0", "10", "20"]
    # more lines than colours, and a name without a revision beside one with
    text = result.sel(pool=["text"])
    many = xr.concat([text.assign_coords(pool=[f"pool {i}"]) for i in range(14)], "pool", data_vars="minimal")
    many = many.assign_coords(model=["someone/run", "someone/run@step0", "someone/run@step10"])
    assert len({trace.name for trace in views.figures(many)["over_training"].data}) >= 14
    table = list(views.tables(many))[1]
    assert [column.header for column in table.columns] == ["", "someone/run", "step0", "step10"]
