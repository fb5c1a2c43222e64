"""Does every command and every piece of code in the README work as it stands there?"""

import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interp.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("interp ")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
EXPERIMENT = next(code for code in PYTHON if "def entropy" in code)


def test_the_experiment_of_the_readme_is_short():
    assert len(EXPERIMENT.splitlines()) < 25


def test_commands_in_order(tmp_path, monkeypatch):
    """The README's commands one after the other in an empty folder, its experiment saved as it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_file.py").write_text(EXPERIMENT)
    assert len(COMMANDS) >= 7
    for command in COMMANDS:
        if "gpt2" in command:  # needs the hub: its path is tested in test_models and test_reproduce
            continue
        if command.startswith("interp report"):  # a minute of experiments that all run here: test_report has the rest
            command += " --help"
        done = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": "200"})
        assert done.exit_code == 0, f"{command}\n{done.output}"
    assert "entropy: mean by pool" in done.output


@pytest.mark.parametrize("code", [code for code in PYTHON if code != EXPERIMENT])
def test_python(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert "ordinary" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_python_of_the_docs(path):
    names = {}  # a page is read from top to bottom
    for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        exec(compile(code, path.name, "exec"), names)


def test_entropy_is_right_on_the_wired_model(wired, tmp_path):
    """The README's experiment, on the model whose answer is known: ln 65 where nothing is known, 0 where it is."""
    import math

    import interp

    (tmp_path / "my_file.py").write_text(EXPERIMENT)
    result = interp.run(f"{tmp_path}/my_file.py:entropy", wired, ["text"], batch=4)
    # the distribution after a token is about the next one: shift by one
    after = result.entropy.sel(pool="text").values
    assert after[:, 1:25] == pytest.approx(math.log(65), abs=1e-4)
    assert after[:, 26:50] == pytest.approx(0, abs=1e-4)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert f"\n{target}:" in makefile


def test_links_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_tables_of_the_findings_are_those_of_the_results():
    """Every line that docs/findings.md shows below `interp show figures/...` is printed from that result."""
    from rich.console import Console

    from interp import results, tables

    page = (ROOT / "docs" / "findings.md").read_text()
    shown = re.findall(r"```sh\ninterp show (\S+)\n```\n```text\n(.*?)```", page, re.S)
    assert len(shown) >= 6
    for folder, table in shown:
        console = Console(width=165, file=io.StringIO())
        for line in tables.story(results.load(ROOT / folder)):
            console.print(line)
        printed = {" ".join(line.split()) for line in console.file.getvalue().splitlines()}
        missing = [line for line in table.splitlines() if " ".join(line.split()) not in printed]
        assert not missing, f"{folder}: {missing[0]}"
