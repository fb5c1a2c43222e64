"""Does the architecture hold? No name hides a module, no import hides in a function, and an experiment is one folder."""

import ast
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import interp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "interp"
MODULES = sorted(module.name for module in pkgutil.walk_packages(interp.__path__, "interp."))
# torch, and what imports it; and what need not be installed
LATE = ("torch", "transformers", "transformer_lens", "accelerate", "gguf")


def test_no_function_has_the_name_of_a_module():
    """`import interp.x as x` gives a module, also after `interp.x` was used."""
    for name in interp.__all__:
        getattr(interp, name)
    for name in MODULES:
        module = importlib.import_module(name)
        package, _, leaf = name.rpartition(".")
        assert getattr(sys.modules[package], leaf) is module, name


@pytest.mark.process
def test_only_torch_is_imported_late():
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                    assert all(name.partition(".")[0] in LATE for name in names), f"{path.name}: {names}"


@pytest.mark.process
@pytest.mark.parametrize("name", ["interp", "interp.cli", "interp.runner", "interp.views", "interp.gallery.collection"])
def test_importing_the_package_does_not_import_torch(name):
    code = f"import sys, importlib; importlib.import_module({name!r}); sys.exit(bool({{'torch', 'dask', 'distributed'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


EXPERIMENT = '''"""How many tokens does a pool have?"""

from interp.results import label


def pool_size(model, pools, *, power: int = 1):
    """Count the tokens of each pool.

    Args:
        model: any.
        pools: what is counted.
        power: to which power the count is taken.

    Returns:
        `size` [pool].
    """
    return label("size", [float(len(pool) ** power) for pool in pools], "pool", {"pool": [p.name for p in pools]})
'''
VIEW = '''"""How does a result of `pool_size` look?"""

import plotly.graph_objects as go

from interp.exhibits import Caption, GalleryEntry, ReportSection
from interp.request import Request
from interp.tables import table_of


def table(result):
    """A row for each pool."""
    rows = table_of("pool", "how many")
    for pool in result["pool"].values:
        rows.add_row(str(pool), f"{float(result['size'].sel(pool=pool)):.0f} tokens")
    yield rows


def sizes(result):
    """A bar for each pool."""
    return go.Figure().add_bar(x=result["pool"].values, y=result["size"].values)


FIGURES = [sizes]
GALLERY = (
    GalleryEntry("pool_size", Request.of("pool_size", pools=["1:5", "5:9"]), (Caption("sizes", "A count."),), "copying"),
)
SECTION = ReportSection("size", "Of what size?", "It counts.", Request.of("pool_size"), order=15)
'''
TRIED = """
import sys
from typer.testing import CliRunner
from interp import catalog, gallery, results, views
from interp.cli import app
from interp.report.sections import sections

def said(*words):
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.output

assert "pool_size" in catalog.names()
assert "How many tokens does a pool have?" in said("experiments")
assert "to which power the count is taken" in said("run", "pool_size", "--help")
out = said("run", "pool_size", "--pool", "1:30", "--power", "2", "--model", "wired", "--format", "html", "--out", "out")
assert "841 tokens" in out and "figure" in out, out
assert "841 tokens" in said("show", "out", "--format", "html")
assert list(views.figures(results.load("out"))) == ["sizes"]
assert [s.name for s in sections()][:3] == ["gap", "size", "census"]
entry = next(entry for entry in gallery.entries() if entry.folder == "pool_size")
from interp.gallery.regeneration import draw, ensure_result, parts_folder
from pathlib import Path
place = ensure_result(entry, parts_folder(Path("figures")))
assert list(draw(entry, place)) == ["sizes"]
assert "A count." in gallery.readme(gallery.entries())
print("all of it")
"""


def in_a_copy(folder, script, **files):
    """The output of a script that runs on a copy of the package with one more experiment, made of these files."""
    shutil.copytree(PACKAGE, folder / "interp", ignore=shutil.ignore_patterns("__pycache__"))
    added = folder / "interp" / "experiments" / "pool_size"
    added.mkdir()
    (added / "__init__.py").write_text('"""How many tokens does a pool have?"""\n')
    for name, text in files.items():
        (added / f"{name}.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.process
def test_an_experiment_with_table_figure_gallery_entry_and_report_section_is_one_folder(tmp_path):
    assert in_a_copy(tmp_path, TRIED, experiment=EXPERIMENT, view=VIEW).endswith("all of it")


WITHOUT = """
from typer.testing import CliRunner
from interp.cli import app
from interp.report.sections import sections

def said(*words):
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.output

assert "size: mean by pool" in said("run", "pool_size", "--pool", "1:30", "--model", "wired", "--format", "html", "--out", "out")
assert "size: mean by pool" in said("show", "out", "--format", "html")
assert "size" not in [section.name for section in sections()]
open("interp/experiments/pool_size/view.py", "w").write("import nothing_of_this_name")
out = said("show", "out", "--format", "html")
assert "No module named 'nothing_of_this_name'" in out and "size: mean by pool" in out, out
print("all of it")
"""


@pytest.mark.process
def test_an_experiment_without_a_view_or_with_a_broken_one_gets_the_plain_view(tmp_path):
    assert in_a_copy(tmp_path, WITHOUT, experiment=EXPERIMENT).endswith("all of it")
