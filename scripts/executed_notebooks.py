"""What does each notebook show? Executed copies in `build/notebooks`, made once and used by the tests and the site.

    python scripts/executed_notebooks.py                   # executes those whose copy is missing or out of date
    python scripts/executed_notebooks.py 03 07             # of these only

A copy is out of date when the notebook's code or anything in the package has changed since.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "build" / "notebooks"
_KEY = "interp_executed"  # key in the metadata of a copy


@cache
def _package_hash() -> bytes:
    """A hash of every file of the package: code, weights, truth."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "interp").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.digest()


def key(path: Path) -> str:
    """A hash of everything that determines a notebook's outputs: its code and the package."""
    cells = [cell.source for cell in _code_cells(nbformat.read(path, as_version=4))]
    return hashlib.sha256("\0".join(cells).encode() + _package_hash()).hexdigest()


def execute(path: Path, folder: Path | None = None) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in an empty folder.

    Args:
        path: the notebook, which is left as it is.
        folder: where it runs (default: a temporary folder).

    Returns:
        The notebook with its outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        resources = {"metadata": {"path": str(folder or scratch)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    return notebook


def keep(path: Path, ran: nbformat.NotebookNode) -> Path:
    """Store the outputs of a notebook, with what they were made of.

    Args:
        path: the notebook.
        ran: the same, executed; cells may have been put in front of its own.

    Returns:
        The executed copy.

    Raises:
        ValueError: what was executed is another notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    own = _code_cells(notebook)
    done = _code_cells(ran)[len(_code_cells(ran)) - len(own) :]
    if [cell.source for cell in done] != [cell.source for cell in own]:
        raise ValueError(f"what was executed is not {path.name}")
    for cell, executed in zip(own, done, strict=True):
        cell.outputs = executed.outputs
    notebook.metadata[_KEY] = key(path)
    kept = EXECUTED / path.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(kept)
    return kept


def stored(path: Path) -> nbformat.NotebookNode | None:
    """The executed copy of a notebook; None where there is none, or where code or package have changed since."""
    kept = EXECUTED / path.name
    if not kept.is_file():
        return None
    executed = nbformat.read(kept, as_version=4)
    if executed.metadata.get(_KEY) != key(path):
        return None
    notebook = nbformat.read(path, as_version=4)  # prose may have changed, without effect on outputs
    for cell, ran in zip(_code_cells(notebook), _code_cells(executed), strict=True):
        cell.outputs = ran.outputs
    return notebook


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def ensure_executed(paths: list[Path]) -> dict[Path, nbformat.NotebookNode]:
    """The executed copies of notebooks; missing ones are made, and the duration of each is printed."""
    found = {path: stored(path) for path in paths}
    missing = [path for path, notebook in found.items() if notebook is None]
    if missing:
        print(f"executing {len(missing)} of {len(paths)} notebooks, a minute or so each", file=sys.stderr, flush=True)
    began = time.monotonic()
    for i, path in enumerate(missing, start=1):
        started = time.monotonic()
        notebook = execute(path)
        keep(path, notebook)
        found[path] = notebook
        now = time.monotonic()
        print(
            f"  {path.name}: {now - started:.0f} s ({i} of {len(missing)}, {now - began:.0f} s so far)",
            file=sys.stderr,
            flush=True,
        )
    return {path: notebook for path, notebook in found.items() if notebook is not None}


if __name__ == "__main__":
    ensure_executed([path for path in NOTEBOOKS if not sys.argv[1:] or path.name.startswith(tuple(sys.argv[1:]))])
