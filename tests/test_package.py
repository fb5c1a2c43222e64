"""Do the source distribution and the wheel hold everything, and does the wheel work where no checkout is?"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.models import default_device

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NO_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".parts", "figures", "build", "results")
KEPT = ("interp", "tests", "docs", "notebooks", "scripts")


# --- what it says of itself -------------------------------------------------------------------------------------------


def test_version_lists_everything_that_affects_numbers():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    first, *others = done.output.splitlines()
    assert re.fullmatch(rf"interp {re.escape(interp.__version__)}( \(commit [0-9a-f]{{12}}(-dirty)?\))?", first)
    said = dict(line.split(" ", 1) for line in others)
    assert list(said) == ["python", "torch", "transformers", "transformer_lens", "numpy", "xarray", "device"]
    assert said["transformer_lens"] == importlib.metadata.version("transformer_lens")
    assert said["python"] == ".".join(map(str, sys.version_info[:3]))
    assert said["device"] == default_device()


def test_the_device_that_is_named_is_the_one_that_models_get(monkeypatch):
    monkeypatch.delenv("INTERP_DEVICE", raising=False)
    assert default_device().split()[0] == str(interp.load("wired").cfg.device).partition(":")[0]
    monkeypatch.setenv("INTERP_DEVICE", "cpu")
    assert re.fullmatch(r"cpu \(\d+ threads?\)", default_device())
    monkeypatch.setenv("INTERP_DEVICE", "mps")
    assert default_device() == "mps"


def test_the_version_is_one():
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## \[([\d.]+)\] - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == PROJECT["version"]


def test_the_bibtex_entry_says_what_the_citation_file_says():
    cff = (ROOT / "CITATION.cff").read_text()
    (entry,) = re.findall(r"```bibtex\n(.*?)```", (ROOT / "docs" / "citing.md").read_text(), re.S)
    fields = dict(re.findall(r"^  (\w+) *= \{(.+)\},?$", entry, re.M))
    told = {name: re.search(rf"^{name}: (.+)$", cff, re.M)[1] for name in ("type", "title", "version", "license")}
    assert entry.startswith(f"@{told.pop('type')}{{")
    assert {name: fields[name] for name in told} == told
    authors = re.findall(r"^  - name: (.+)$", cff, re.M)
    assert fields["author"] == " and ".join(f"{{{name}}}" for name in authors)
    assert fields["note"] in " ".join(cff.split())
    assert set(fields) == {*told, "author", "note"}


def test_python_versions_of_the_classifiers_are_allowed():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    least = PROJECT["requires-python"].removeprefix(">=")
    assert named
    assert all(tuple(map(int, name.split("."))) >= tuple(map(int, least.split("."))) for name in named)


# --- what is built ----------------------------------------------------------------------------------------------------


def _files(folder):
    """All files below a folder, as they are named from its parent."""
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if path.is_file()}


def _build(kind, where, to):
    """The file that setuptools builds of the project in a folder."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(to)], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return to / done.stdout.splitlines()[-1]


def _clean_environment():
    """The environment without what points at the checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project: building leaves files beside what is built."""
    copy = tmp_path_factory.mktemp("source") / "interp"
    copy.mkdir()
    for name in KEPT:
        shutil.copytree(ROOT / name, copy / name, ignore=NO_CODE)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    return copy


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(_build("sdist", source, folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"interp-{PROJECT['version']}"


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    """The wheel that the source distribution gives."""
    return _build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A clean environment with the wheel in it; everything else is that of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*words, "--no-compile", str(wheel)], cwd=folder, env=_clean_environment(), check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # a path in a .pth file is searched last, and .pth files there are not read: an editable install is out of sight
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in sorted(others)))
    return python


@pytest.fixture(scope="module")
def ran(installed, tmp_path_factory):
    """Run a program of the clean environment in an empty folder; what it prints."""
    place = tmp_path_factory.mktemp("elsewhere")

    def run(program, *words):
        command = [str(installed.with_name(program)), *words]
        done = subprocess.run(command, cwd=place, env=_clean_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.package
def test_the_source_distribution_holds_what_is_needed_to_test_it(source, unpacked):
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    wanted = set().union(*(_files(source / name) for name in ("interp", "tests", "docs", "notebooks")))
    wanted = {name for name in wanted if not name.startswith("interp.egg-info")}
    assert not wanted - held
    assert {"LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "constraints.txt", "mkdocs.yml"} <= held


@pytest.mark.package
def test_the_wheel_holds_the_package_and_nothing_else(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("interp-")}
        said = archive.read(f"interp-{PROJECT['version']}.dist-info/METADATA").decode()
    assert held == _files(source / "interp")
    assert {"interp/organisms/organism/model.safetensors", "interp/py.typed", "interp/report/page.js"} <= held
    assert wheel.stat().st_size < 40e6
    for line in PROJECT["classifiers"]:
        assert f"Classifier: {line}\n" in said


@pytest.mark.package
def test_the_installed_wheel_works_without_the_checkout(installed, ran):
    code = "import interp, interp.cli, sys; print(interp.__file__, interp.__version__, interp.cli.__file__)"
    package, version, cli = ran("python", "-c", code).split()
    assert Path(package).is_relative_to(installed.parent.parent)
    assert Path(cli).is_relative_to(installed.parent.parent)
    assert version == PROJECT["version"]
    assert ran("python", "-m", "interp", "--version").splitlines()[0] == f"interp {version}"
    table = ran("interp", "run", "repeated_tokens", "--batch", "2", "--format", "html")
    assert "blocks of unexposed" in table
    assert "are copied almost perfectly" in table
