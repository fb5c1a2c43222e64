"""Are notebooks stripped of what running them leaves behind, and of nothing else?"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "strip_notebooks.py"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def strip(*arguments, text=None):
    given = None if text is None else text.encode()
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], input=given, capture_output=True, check=False)


@pytest.fixture
def clean():
    return NOTEBOOKS[0].read_text(encoding="utf-8")


@pytest.fixture
def run(clean):
    """The same notebook as Jupyter leaves it."""
    notebook = json.loads(clean)
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["metadata"]["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00Z"}
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["ú\n"]}]
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def test_as_a_filter(clean, run):
    done = strip(text=run)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, clean, b"")


def test_what_is_stripped_stays_to_the_byte(clean):
    odd = json.dumps(json.loads(clean), indent=4).replace("\n", "\r\n")  # other indentation, line ends and escapes
    assert strip(text=odd).stdout == odd.encode()


def test_in_place_and_check(clean, run, tmp_path):
    paths = [tmp_path / "a b.ipynb", tmp_path / "c.ipynb"]
    paths[0].write_text(run, encoding="utf-8")
    paths[1].write_text(clean, encoding="utf-8")
    done = strip("--check", *paths)
    assert done.returncode == 1
    assert "a b.ipynb: not stripped" in done.stderr.decode()
    assert "c.ipynb" not in done.stderr.decode()
    assert paths[0].read_text(encoding="utf-8") == run
    assert strip("--check", text=run).returncode == 1
    assert strip(*paths).returncode == 0
    assert [path.read_text(encoding="utf-8") for path in paths] == [clean, clean]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert strip("--check", *paths).returncode == 0
    nbformat.validate(nbformat.read(paths[0], as_version=4))


@pytest.mark.parametrize("text", ["", "no notebook", "[]", '{"nbformat": 3, "worksheets": []}'])
def test_what_is_no_notebook_is_left_alone(text, tmp_path):
    path = tmp_path / "other.ipynb"
    path.write_text(text)
    for done in (strip(path), strip("--check", path), strip(text=text)):
        assert done.returncode == 1
        assert done.stdout == b""
        assert len(done.stderr.splitlines()) == 1
    assert path.read_text() == text
    assert strip(tmp_path / "none.ipynb").returncode == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_as_gits_clean_filter(clean, run, tmp_path):
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True).stdout.decode()

    git("init", "-q")
    git("config", "filter.notebooks.clean", f'"{sys.executable}" "{SCRIPT}"')
    (tmp_path / ".gitattributes").write_text("*.ipynb filter=notebooks\n")
    (tmp_path / "a.ipynb").write_text(run, encoding="utf-8")
    git("add", "a.ipynb")
    assert git("show", ":a.ipynb") == clean
    assert (tmp_path / "a.ipynb").read_text(encoding="utf-8") == run  # outputs stay on the screen


def test_committed_notebooks_are_stripped_and_short():
    assert len(NOTEBOOKS) >= 5
    assert strip("--check", *NOTEBOOKS).returncode == 0
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert sum(cell["cell_type"] == "code" for cell in cells) <= 25, path.name
