"""Does every command and every piece of code in the README and the docs work as written?"""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import interp
from interp import cli, gallery
from interp.cli import app
from interp.gallery.verification import differences

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
README, TOUR = ((ROOT / page).read_text() for page in ("README.md", "docs/tour.md"))
sys.path.insert(0, str(ROOT / "scripts"))
import newcomer  # noqa: E402

PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
EXPERIMENT = next(code for code in PYTHON if "def entropy" in code)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 90
    assert len(EXPERIMENT.splitlines()) < 12


def test_the_readme_commands_are_found():
    page = '```sh\nmake demo  # first\ninterp run a \\\n --pool "x y"\n```\n| is it | `interp census` | `interp no` |\n'
    page += "```sh\nmake notebook\n```\n```python\nx = 1\n```\n\nSaved as `x.py`, it runs"
    assert newcomer.commands(page) == ["make demo", "interp run a --pool 'x y'", "interp census"]
    assert newcomer.saved(page) == {"x.py": "x = 1\n"}
    with pytest.raises(ValueError, match="pip install x"):
        newcomer.commands("```sh\npip install x\n```")
    lines = newcomer.commands(README)
    assert lines[0] == "make demo"
    assert lines[-1] == "make test"
    assert len(lines) >= 9
    assert newcomer.saved(README) == {"my_file.py": EXPERIMENT}


def test_the_newcomer_script_reports_failures(tmp_path, capsys):
    import os

    lines = ["false", "true", "interp run x --model gpt2"]
    verdicts = [verdict for _, verdict, _ in newcomer.walk(lines, tmp_path, dict(os.environ))]
    assert verdicts == ["FAILED (1)", "ok", "skipped: needs the hub"]


@pytest.mark.newcomer  # minutes, and a package index: pytest -m newcomer
def test_from_a_fresh_clone():
    subprocess.run([sys.executable, ROOT / "scripts" / "newcomer.py", "--without", "make test"], check=True)


@pytest.mark.commands
def test_commands_in_order(tmp_path, monkeypatch):
    """The commands of the README and of the tour, one after the other in an empty folder.

    The experiment is saved as the README says. Results that the gallery shows must be reproduced.
    """
    compared = set()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_file.py").write_text(EXPERIMENT)
    lines = [
        line for line in dict.fromkeys(newcomer.commands(TOUR) + newcomer.commands(README)) if line.startswith("interp")
    ]
    for line in lines:
        if any(name in line for name in newcomer.HUB):  # their path is tested in test_models and test_reproduce
            continue
        if line.startswith(
            ("interp report", "interp compare", "interp survey")
        ):  # minutes of what runs here: test_report has the rest
            line += " --help"
        if line == "interp argmaxability":  # the tour has it on another model
            line += " --help"
        if line in ("interp run glitch_attribution", "interp run glitch_heads"):  # minutes: test_budgets has the rest
            line += " --budget quick"
        done = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": "200"})
        assert done.exit_code == 0, f"{line}\n{done.output}"
        for entry in gallery.entries():
            if line == entry.command or (line == f"interp {entry.folder}" and not entry.request.pools):
                found = differences(
                    entry, tmp_path / "results" / shlex.split(line)[2 if "run" in line else 1], FIGURES / entry.folder
                )
                assert not any(found.values()), (line, {name: said for name, said in found.items() if said})
                compared.add(entry.folder)
    assert compared == {
        "repeated_tokens",
        "census",
        "induction_heads",
        "induction_heads_llama",
        "head_ablation",
        "path_patching",
        "embedding_repair",
    }  # glitch_attribution is in the gallery with the repairs of its findings, not with the default ones
    assert "entropy: mean by pool" in done.output


PAGES = [ROOT / "CONTRIBUTING.md", FIGURES / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_command_in_the_docs_parses(path, organism):
    """Verb, options, experiment, its parameters, and the pools of bundled models: all but the running."""
    group = typer.main.get_command(app)
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.S):
        for words in (shlex.split(line, comments=True) for line in block.splitlines()):
            if words[:2] == ["interp", "run"]:
                request = _requested(words[2:])
                if request.model.name == "organism" and request.pools:
                    interp.pools(list(request.pools), organism)
            elif words[:1] == ["interp"]:
                context = group.make_context("interp", words[1:2])
                name, command, rest = group.resolve_command(context, words[1:])
                given = command.make_context(name, rest, parent=context)
                if given.params.get("model") == "organism" and given.params.get("pool"):
                    interp.pools(given.params["pool"], organism)
            elif words[:1] == ["make"]:
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def _requested(words):
    """What the command line passes to the runner for the words after `interp run`."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.runner.run_request", lambda request, **_: asked.append(request))
        patch.setattr("interp.cli._show", lambda *_: None)
        cli.run_words(words[0], words[1:])
    return asked[0]


def test_an_invalid_command_is_noticed(tmp_path, organism):
    for line in (
        "interp cencus",
        "interp run repeated_tokens --pol text",
        "interp run repeated_tokns",
        "interp run head_ablation --btch 3",
        "interp census --pool x",
        "interp run repeated_tokens --pool nonsense",
        "make tset",
    ):
        (tmp_path / "page.md").write_text(f"```sh\n{line}\n```")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - typer brings a click of its own
            test_every_command_in_the_docs_parses(tmp_path / "page.md", organism)
        assert type(caught.value).__name__ in {"UsageError", "NoSuchOption", "Exit", "InterpError", "AssertionError"}


def test_the_tour_has_every_verb():
    commands = [command for command in app.registered_commands if not command.hidden]
    verbs = {"run", "models", *(command.name or command.callback.__name__ for command in commands)}
    told = {shlex.split(line)[1] for line in newcomer.commands(TOUR)}
    assert told == verbs - {"figures"}  # which are for those who change interp


def test_entropy_is_right_on_the_wired_model(wired, tmp_path):
    """The README's experiment, on the model whose answer is known: ln 65 where nothing is known, 0 where it is."""
    import math

    (tmp_path / "my_file.py").write_text(EXPERIMENT)
    result = interp.run(f"{tmp_path}/my_file.py:entropy", wired, ["text"], batch=4)
    # the distribution after a token is about the next one: shift by one
    after = result.entropy.sel(pool="text").values
    assert after[:, 1:25] == pytest.approx(math.log(65), abs=1e-4)
    assert after[:, 26:50] == pytest.approx(0, abs=1e-4)


@pytest.mark.experiment
@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_python_of_the_docs(path):
    names = {}  # a page is read from top to bottom
    for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        exec(compile(code, path.name, "exec"), names)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_links_exist(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.experiment
@pytest.mark.parametrize(
    ("name", "least"), [("docs/findings.md", 6), ("docs/findings_smollm2.md", 6), ("docs/flip_flop.md", 3)]
)
def test_the_tables_of_the_findings_are_those_of_the_results(name, least):
    """Every line that a page shows below `interp show figures/...` is printed from that result."""
    page = (ROOT / name).read_text()
    shown = re.findall(r"```sh\ninterp show (\S+)\n```\n```text\n(.*?)```", page, re.S)
    assert len(shown) >= least
    _check_shown(shown)


@pytest.mark.experiment
def test_the_table_of_the_readme_is_that_of_the_result():
    (table,) = re.findall(r"```text\n(.*?)```", README, re.S)
    (folder,) = set(re.findall(r"interp show (figures/\w+)", README))
    assert len(table.splitlines()) == 5
    _check_shown([(folder, table)])


def _check_shown(shown):
    from rich.console import Console

    from interp import results, views

    for folder, table in shown:
        console = Console(width=165, file=io.StringIO())
        for line in views.tables(results.load(ROOT / folder)):
            console.print(line)
        printed = {" ".join(line.split()) for line in console.file.getvalue().splitlines()}
        missing = [line for line in table.splitlines() if " ".join(line.split()) not in printed]
        assert not missing, f"{folder}: {missing[0]}"
