"""Does every notebook run from top to bottom on a bundled model, and is it committed without outputs?"""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from interp.organisms import BUNDLED

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "scripts"))
import executed_notebooks  # noqa: E402


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert re.match(r'MODEL = "([\w-]+)"', cells[0].source)[1] in BUNDLED
    assert len(cells) <= 25
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    executed_notebooks.keep(path, notebook)  # the documentation site shows them
    assert sum("plotly" in str(cell.outputs) for cell in cells) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_committed_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
