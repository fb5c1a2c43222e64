"""Is a stored result reused only where it answers the present request?"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import cache, catalog, models, results

ROOT = Path(__file__).parent.parent
PLAIN = """
import interp
{imports}
FACTOR = {factor}

def helper(tokens):
    {comment}
    return {value}

def mine(model, tokens, *, power=1):
    {docstring}
    return interp.label("x", [float(helper(tokens)) * FACTOR] * len(tokens.ids), "batch")
"""
USUAL = {"imports": "", "factor": "1", "value": "1", "comment": "# none", "docstring": '"""x [batch]."""'}


def written(path, **changes):
    path.write_text(PLAIN.format(**USUAL | changes))
    return catalog.find(f"{path}:mine")


@pytest.mark.experiment
def test_fingerprints_depend_on_code_and_not_on_comments(tmp_path):
    """Comments and docstrings aside, every edit of the file changes the fingerprint."""
    file = tmp_path / "mine.py"
    first = cache.code_fingerprint(written(file))
    assert cache.code_fingerprint(written(file, comment="# another")) == first
    assert cache.code_fingerprint(written(file, docstring='"""Other words."""')) == first
    assert cache.code_fingerprint(written(file, docstring="pass")) != first
    assert cache.code_fingerprint(written(file, value="2")) != first
    assert cache.code_fingerprint(written(file, factor="2")) != first


def test_fingerprints_depend_on_every_imported_module(tmp_path, monkeypatch):
    """Imported at the top, late, from a package, by another module; edited on disk, loaded or not."""
    package = tmp_path / "mypack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("D = 1\n")
    (tmp_path / "near.py").write_text("from mypack import deep\n\ndef f():\n    return deep.D\n")
    file = tmp_path / "mine.py"
    monkeypatch.syspath_prepend(tmp_path)
    late = {"value": "__import__('near').f()", "comment": "import near"}
    found = [
        cache.code_fingerprint(written(file, imports="import near")),
        cache.code_fingerprint(written(file, **late)),
    ]
    (package / "deep.py").write_text("D = 2\n")
    for name in ("near", "mypack", "mypack.deep"):
        sys.modules.pop(name, None)
    assert cache.code_fingerprint(written(file, imports="import near")) != found[0]
    assert cache.code_fingerprint(written(file, **late)) != found[1]


def test_fingerprints_depend_on_the_current_values_of_globals(tmp_path):
    """A script may have set them; an object that no file defines has no fingerprint."""
    function = written(tmp_path / "mine.py")
    first = cache.code_fingerprint(function)
    module = sys.modules[function.__module__]
    module.FACTOR = 3
    assert cache.code_fingerprint(function) != first
    for value in (np.zeros(2), object(), np.random.default_rng(0)):
        module.FACTOR = value
        with pytest.raises(cache.UnknownCodeError, match="the global 'FACTOR'"):
            cache.code_fingerprint(function)
    module.FACTOR = 1
    assert cache.code_fingerprint(function) == first
    module.helper = eval("lambda tokens: 3", vars(module))
    with pytest.raises(cache.UnknownCodeError, match="'helper' is not what its file holds"):
        cache.code_fingerprint(function)


def test_functions_without_a_source_file_have_no_fingerprint(tmp_path):
    def inside(model, tokens):
        return None

    for function in (inside, lambda model, tokens: None):
        with pytest.raises(cache.UnknownCodeError, match="defined inside a function"):
            cache.code_fingerprint(function)
    typed = {"__name__": "__typed__"}
    sys.modules["__typed__"] = type(sys)("__typed__")
    exec("def typed(model, tokens):\n    return None\n", typed)
    with pytest.raises(cache.UnknownCodeError, match="typed in a notebook"):
        cache.code_fingerprint(typed["typed"])


def test_packages_installed_into_a_folder_are_not_user_code(tmp_path):
    """`pip install --target` puts a package beside its dist-info, wherever that is."""
    for folder in ("mine", "installed"):
        (tmp_path / folder / "package" / "inner").mkdir(parents=True)
        for place in ("package", "package/inner"):
            (tmp_path / folder / place / "__init__.py").write_text("")
    (tmp_path / "installed" / "package-1.0.dist-info").mkdir()
    assert cache._is_local(tmp_path / "mine" / "package" / "inner" / "__init__.py")
    assert not cache._is_local(tmp_path / "installed" / "package" / "inner" / "__init__.py")


@pytest.mark.process
def test_the_same_fingerprint_in_another_process(tmp_path):
    """Sets are in another order there."""
    written(tmp_path / "mine.py", factor='{"a", "b", "c", "d", "e"} and 1')
    code = (
        "from interp import cache, catalog; "
        f"print(cache.code_fingerprint(catalog.find({str(tmp_path / 'mine.py:mine')!r})))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(said) == 1


@pytest.mark.resumption
def test_the_fingerprint_does_not_depend_on_what_is_loaded_or_on_the_folder(tmp_path):
    """Defect: in an editable install, away from the repository, modules counted only once something had loaded them."""
    code = "{}; from interp import cache, catalog; print(cache.code_fingerprint(catalog.find('induction_heads')))"
    loading = "import interp.argmax.norm_ball, interp.prompts.sets, interp.undertrained.verification"
    said = {
        subprocess.run(
            [sys.executable, "-c", code.format(first)], capture_output=True, text=True, check=True, cwd=folder
        ).stdout
        for first, folder in (("pass", ROOT), (loading, tmp_path))
    }
    assert len(said) == 1


def test_modules_of_this_package_and_of_installed_ones_are_not_searched_for(monkeypatch):
    """Defect: a thousand searches on the disk for each fingerprint took most of what a small cell of a survey takes."""
    function = catalog.find("repeated_tokens")
    first = cache.code_fingerprint(function)
    searched, real = [], cache._spec
    monkeypatch.setattr(cache, "_spec", lambda name, beside: (searched.append(name), real(name, beside))[1])
    assert cache.code_fingerprint(function) == first
    loaded = {name.partition(".")[0] for name in searched} & {"interp", "numpy", "torch", "xarray", "pandas"}
    assert not loaded, searched
    assert len(searched) < 100


def test_a_view_does_not_change_the_fingerprint():
    """Otherwise a new colour would discard every stored result."""
    from interp.experiments.logit_lens.experiment import logit_lens

    found = {}
    cache._collect(Path(sys.modules[logit_lens.__module__].__file__), logit_lens.__module__, found)
    names = {Path(path).name for path in found}
    assert {"experiment.py", "sweep.py", "measure.py", "hooks.py"} & names
    assert not {"view.py", "plots.py", "tables.py", "pages.py"} & names


def test_the_key_depends_on_weights_buffers_tokenizer_and_hooks(wired):
    model = models.load("wired")
    first = cache.model_fingerprint(model)
    assert first == cache.model_fingerprint(wired)
    assert not cache.has_hooks(model)
    network = model.original_model
    row = network.get_input_embeddings().weight
    for change in (lambda: row[3].add_(1), lambda: row[3].sub_(1)):
        with torch.no_grad():
            change()
        assert (cache.model_fingerprint(model) == first) == bool(
            torch.equal(row, wired.original_model.get_input_embeddings().weight)
        )
    network.register_buffer("scalar", torch.tensor(1.0))  # no dimension
    other = cache.model_fingerprint(model)
    network.scalar += 1
    assert len({first, other, cache.model_fingerprint(model)}) == 3
    handle = next(iter(network.modules())).register_forward_hook(lambda *_: None)
    assert cache.has_hooks(model)
    handle.remove()
    assert not cache.has_hooks(model)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda value, hook: value)]):
        assert cache.has_hooks(model)
    assert not cache.has_hooks(model)


def test_another_tokenizer_changes_the_key(organism):
    first, tokenizer = cache.model_fingerprint(organism), organism.tokenizer
    try:
        organism.tokenizer = None
        assert cache.model_fingerprint(organism) != first
    finally:
        organism.tokenizer = tokenizer
    assert cache.model_fingerprint(organism) == first


@pytest.mark.experiment
def test_a_stored_result_is_reused_only_for_the_same_request_and_file(wired, tmp_path):
    said = []

    def go(**options):
        given = {"batch": 2, "length": 5, "out": tmp_path, "log": said.append} | options
        return interp.run("logit_lens", wired, given.pop("pools", "1:40"), **given)

    def taken():
        return bool(said) and "taken from an earlier run" in said.pop()

    first = go()
    assert not taken()
    assert go().identical(first)
    assert taken()
    for other in ({"seed": 1}, {"batch": 3}, {"pools": "1:41"}, {"bos": False}, {"fresh": True}):
        go(**other)
        assert not taken(), other
    made = go()
    said.clear()
    results.save(made.assign(log_prob_after=made.log_prob_after + 1), tmp_path / "result.nc")
    assert go().identical(first)
    assert not taken()
    (tmp_path / cache.REQUEST_FILE).write_bytes(b"\xff\xfe")
    assert go().identical(first)
    assert not taken()


def test_a_folder_from_the_last_release_is_run_again(wired, tmp_path):
    """It has `asked.json` and parts of another kind: never misread, and removed by the new result."""
    interp.run("logit_lens", wired, "1:40", batch=2, length=5, out=tmp_path)
    (tmp_path / cache.REQUEST_FILE).rename(tmp_path / "asked.json")
    (tmp_path / ".parts").mkdir()
    said = []
    interp.run("logit_lens", wired, "1:40", batch=2, length=5, out=tmp_path, log=said.append)
    assert [line.partition(": ")[2] for line in said] == [
        "the stored result belongs to another request, code or model: running again"
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["request.json", "result.nc"]


STOPS = """
import interp
from pathlib import Path

HERE = Path(__file__).parent

def ran(name):
    with (HERE / "ran").open("a") as file:
        file.write(f"{name} ")
    return (HERE / "ran").read_text().split()

def each(model, tokens):
    if len(ran(tokens.pool)) == 2:
        raise KeyboardInterrupt
    return interp.label("found", tokens.ids.float().mean(1), "batch")

def together(model, pools, keep):
    def size(pool):
        return interp.label("size", [float(sum(map(len, pools)))], "batch").to_dataset()

    found = [keep(pool.name, lambda p=pool: size(p)) for pool in pools]
    if len(ran("all")) == 1:
        raise KeyboardInterrupt
    return found[0].drop_attrs()

def parts(model, keep, *, most=3):
    def part(i):
        if ran(i) == ["0", "1"]:
            raise KeyboardInterrupt
        return interp.label("found", [float(i)], "batch").to_dataset()

    import xarray
    return xarray.concat([keep(f"part {i}", lambda i=i: part(i)).drop_attrs() for i in range(most)], "batch")
"""


@pytest.fixture
def stops(tmp_path):
    (tmp_path / "stops.py").write_text(STOPS)
    return tmp_path


def ran(folder):
    return (folder / "ran").read_text().split()


def test_an_interrupted_run_resumes(wired, stops):
    pools = ["1:30", "30:60", "20:50"]
    with pytest.raises(KeyboardInterrupt):
        interp.run(f"{stops}/stops.py:each", wired, pools, out=stops / "out")
    assert not (stops / "out" / "result.nc").exists()
    assert cache.unfinished(stops / "out")
    made = interp.run(f"{stops}/stops.py:each", wired, pools, out=stops / "out")
    assert ran(stops) == ["1:30", "30:60", "30:60", "20:50"]  # the finished pool was not run again
    xr.testing.assert_identical(made, interp.run(f"{stops}/stops.py:each", wired, pools))
    assert sorted(p.name for p in (stops / "out").iterdir()) == ["request.json", "result.nc"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 3}, {"bos": False}, "code"])
def test_parts_of_another_run_are_not_reused(wired, stops, change):
    def go(**options):
        return interp.run(f"{stops}/stops.py:each", wired, ["1:30", "30:60"], out=stops / "out", **options)

    with pytest.raises(KeyboardInterrupt):
        go()
    if change == "code":
        (stops / "stops.py").write_text(STOPS.replace("tokens.ids.float()", "(0 * tokens.ids).float()"))
        assert float(go().found.max()) == 0
    else:
        go(**change)
    assert ran(stops) == ["1:30", "30:60", "1:30", "30:60"]


def test_a_part_is_keyed_by_all_pools_that_its_experiment_sees(wired, stops):
    """Defect: a part under a pool's name was reused although the other pool had changed: 29 in place of 59."""
    name = f"{stops}/stops.py:together"
    with pytest.raises(KeyboardInterrupt):
        interp.run(name, wired, ["a=1:20", "b=20:30"], out=stops / "out")
    made = interp.run(name, wired, ["a=1:20", "b=20:60"], out=stops / "out")
    assert made["size"].values.tolist() == [59.0]


def test_an_experiment_keeps_its_own_parts(wired, stops):
    name = f"{stops}/stops.py:parts"
    with pytest.raises(KeyboardInterrupt):
        interp.run(name, wired, out=stops / "out")
    result = interp.run(name, wired, out=stops / "out")
    assert ran(stops) == ["0", "1", "1", "2"]
    assert result.found.values.tolist() == [0, 1, 2]
    interp.run(name, wired)  # without a folder, nothing is stored
    assert ran(stops)[4:] == ["0", "1", "2"]


def test_uncacheable_runs_are_repeated_with_a_message(wired, tmp_path):
    calls, said = [], []

    def inside(model, tokens):
        calls.append(tokens.pool)
        return interp.label("x", tokens.ids.float().mean(1), "batch")

    for _ in range(2):
        interp.run(inside, wired, "1:30", out=tmp_path, log=said.append)
    assert calls == ["1:30", "1:30"]
    assert len(said) == 2
    assert "defined inside a function" in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.nc"]


@pytest.mark.process
def test_a_second_process_waits_with_a_message(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from interp import cache\n"
        f"with cache.locked({str(tmp_path / 'out')!r}, lambda line: print(line, flush=True)):\n"
        "    print('in', flush=True); sys.stdin.readline(); print('out', time.time(), flush=True)\n"
    )
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", code], **piped)
    assert first.stdout.readline() == "in\n"
    second = subprocess.Popen([sys.executable, "-c", code], **piped)
    assert "another process is writing to" in second.stdout.readline()
    left = float(first.communicate("go on\n")[0].split()[1])
    assert second.stdout.readline() == "in\n"
    assert time.time() >= left
    second.communicate("go on\n")
    assert second.returncode == 0
    assert list((tmp_path / "out").iterdir()) == []


def test_the_experiments_in_the_docs_can_be_cached(tmp_path):
    """Otherwise an interrupted run of such an experiment would start again."""
    import json
    import re

    page = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    cells = json.loads((ROOT / "notebooks" / "05_your_own_experiment.ipynb").read_text())["cells"]
    cell = next(text for text in ("".join(cell["source"]) for cell in cells) if "def look_or_carry" in text)
    for name, text in (("entropy", page), ("look_or_carry", cell)):
        (tmp_path / f"{name}.py").write_text(text)
        assert cache.code_fingerprint(catalog.find(f"{tmp_path}/{name}.py:{name}"))


def test_recalled_facts_are_recomputed_only_after_damage_or_model_edits(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model, asked = models.load("wired"), []

    def make():
        asked.append(1)
        return {"found": [1.5, None]}

    def found():
        return cache.recalled(model, "a matter", make, __file__)

    assert [found(), found()] == [{"found": [1.5, None]}] * 2
    assert len(asked) == 1
    (kept,) = (tmp_path / "known").iterdir()
    kept.write_text('{"fou')
    assert [found(), found()] == [{"found": [1.5, None]}] * 2
    assert len(asked) == 2
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[0] += 1
    assert [found(), found()] == [{"found": [1.5, None]}] * 2
    assert len(asked) == 4
