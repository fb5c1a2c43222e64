"""Does every notebook run from top to bottom, its solutions included, and is each section announced before it runs?"""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from interp.organisms import BUNDLED, HAND_WIRED

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "scripts"))
import executed_notebooks  # noqa: E402

PUBLIC = "12_a_public_model"  # runs on the organism where SmolLM2 is not fetched, as here
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells_of(path, kind=None):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if kind in (None, cell.cell_type)]


def is_solution(cell):
    return "solution" in cell.metadata.get("tags", [])


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks, each of which begins without names: torch is imported once, not twelve times."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.notebooks
@each
def test_runs(path, tmp_path, kernel):
    notebook = nbformat.read(path, as_version=4)
    start = nbformat.v4.new_code_cell(
        f"%reset -f\nimport os, torch\ntorch.set_grad_enabled(True)\nos.chdir({str(tmp_path)!r})"
    )
    notebook.cells.insert(0, start)
    client = NotebookClient(notebook, timeout=300, km=kernel)
    client.execute()
    executed_notebooks.keep(path, notebook)  # the documentation site shows them
    assert sum("plotly" in str(cell.get("outputs")) for cell in notebook.cells) >= 1
    if path.stem == PUBLIC:
        assert "smollm2 is not here" in str(notebook.cells)


@each
def test_the_first_cell_names_the_model(path):
    first = re.match(r'MODEL = "([\w-]+)"', cells_of(path, "code")[0].source)[1]
    assert first == "smollm2" if path.stem == PUBLIC else first in (*BUNDLED, *HAND_WIRED)
    assert len([cell for cell in cells_of(path, "code") if not is_solution(cell)]) <= 25


@each
def test_every_section_that_runs_says_what_to_expect(path):
    """For each heading: the first code cell after it has an expectation or an exercise before it."""
    said, sections = True, 0
    for cell in cells_of(path)[1:]:  # after the title
        if cell.cell_type == "markdown":
            said = said and not re.search(r"^## ", cell.source, re.M)
            said = said or bool(re.search(r"\*Expect\*|\*expect\*|\*\*Exercise", cell.source))
        elif not re.match(r"MODEL = ", cell.source):
            assert said, cell.source
            sections += 1
    assert sections


@each
def test_every_exercise_has_a_folded_solution_that_checks_itself(path):
    """An exercise, a cell for the reader, then the solution, whose source JupyterLab hides."""
    cells = cells_of(path)
    exercises = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and "**Exercise" in cell.source]
    solutions = [i for i, cell in enumerate(cells) if is_solution(cell)]
    assert len(exercises) == len(solutions) >= 2
    for exercise, solution in zip(exercises, solutions, strict=True):
        assert solution == exercise + 2
        assert cells[exercise + 1].source.rstrip().endswith("# Your turn.")
        assert cells[solution].source.startswith("# Solution")
        assert cells[solution].metadata.jupyter.source_hidden
        assert "assert " in cells[solution].source or "print(" in cells[solution].source
    numbers = [int(n) for n in re.findall(r"\*\*Exercise (\d+)\.", "".join(cell.source for cell in cells))]
    assert numbers == list(range(1, len(exercises) + 1))


@each
def test_everything_a_notebook_refers_to_exists(path):
    text = "".join(cell.source for cell in cells_of(path, "markdown"))
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
    for name in re.findall(r"`(\d\d_\w+\.ipynb)`", text):
        assert (path.parent / name).exists(), name


@each
def test_is_committed_without_outputs(path):
    for cell in cells_of(path, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
