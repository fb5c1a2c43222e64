"""Is a stored result taken again only where it answers the same question?"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
import interp.experiments
from interp import kept, models, results

ROOT = Path(__file__).parent.parent
ENVIRONMENT = dict(os.environ)
FACTOR = 1
TABLE = np.zeros(3)


def plain(model, tokens, *, power=2):
    return helper(tokens) ** power


def helper(tokens):
    return len(tokens.ids) * FACTOR


def uses_an_array(model, tokens):
    return TABLE.sum()


def constants(model, tokens):
    return tokens in {"a", "b", "c", "d", "e"}, np.exp, torch.float32


def of(number, how=None):
    def experiment(model, tokens):
        return number, how

    return experiment


def test_what_a_function_does(monkeypatch):
    """Its code, defaults and closure, and those of what it uses."""
    first = kept.doing(plain)
    assert first == kept.doing(plain) != kept.UNKNOWN
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2)
    assert kept.doing(plain) != first
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda tokens: 3)
    assert kept.doing(plain) != first
    monkeypatch.undo()
    assert kept.doing(plain) == first
    monkeypatch.setattr(plain, "__kwdefaults__", {"power": 3})
    assert kept.doing(plain) != first
    assert kept.doing(of(1)) == kept.doing(of(1)) != kept.doing(of(2))
    assert kept.doing(of(1, plain)) != kept.doing(of(1, helper))
    cached, grown = functools.cache(of(1)), []
    assert kept.doing(of(cached)) == kept.doing(of(functools.cache(of(1)))) != kept.doing(of(functools.cache(of(2))))
    one = kept.doing(of(grown.append))
    grown.append(1)
    assert kept.doing(of(grown.append)) != one
    assert kept.doing(of(functools.partial(plain, power=1))) != kept.doing(of(functools.partial(plain, power=2)))
    assert kept.doing(of(np.vectorize(helper))) == kept.UNKNOWN
    assert kept.doing(of(np.exp)) != kept.doing(of(np.sum)) != kept.doing(of(torch.relu)) != kept.UNKNOWN
    assert kept.doing(uses_an_array) == kept.UNKNOWN
    assert kept.doing(of(TABLE)) == kept.UNKNOWN


def test_the_same_in_another_process():
    """Sets are in another order there."""
    code = "import sys; sys.path.insert(0, 'tests'); import test_kept as t; from interp import kept; print(*map(kept.doing, (t.plain, t.constants)))"
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT | {"PYTHONHASHSEED": seed}).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(said) == 1
    assert kept.UNKNOWN not in said.pop()


def test_an_edited_helper_module(tmp_path, monkeypatch):
    """The module that an experiment imports is edited, and so is its file while the old one is still loaded."""
    (tmp_path / "my_helper_module.py").write_text("def value():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import my_helper_module\nfrom my_helper_module import value\ndef e(model, tokens):\n    return my_helper_module.value() + value()\n"
    )
    loaded = interp.experiments.find(f"{mine}:e")
    first = kept.doing(loaded)
    mine.write_text(mine.read_text().replace("+", "-"))
    assert kept.doing(loaded) == first  # what is loaded is still the old one
    assert kept.doing(interp.experiments.find(f"{mine}:e")) != first
    mine.write_text(mine.read_text().replace("-", "+"))
    assert kept.doing(interp.experiments.find(f"{mine}:e")) == first
    (tmp_path / "my_helper_module.py").write_text("def value():\n    return 2\n")
    assert kept.doing(interp.experiments.find(f"{mine}:e")) != first


def test_what_a_model_is(wired):
    """Weights, buffers, tokenizer; hooks of either kind."""
    model = models.load("wired")
    first = kept.checksum(model)
    assert first == kept.checksum(wired)
    assert not kept.hooked(model)
    network = model.original_model
    row = network.get_input_embeddings().weight
    for change in (lambda: row[3].add_(1), lambda: row[3].sub_(1)):
        with torch.no_grad():
            change()
        assert (kept.checksum(model) == first) == bool(
            torch.equal(row, wired.original_model.get_input_embeddings().weight)
        )
    network.register_buffer("scalar", torch.tensor(1.0))  # no dimension
    other = kept.checksum(model)
    network.scalar += 1
    assert len({first, other, kept.checksum(model)}) == 3
    handle = next(iter(network.modules())).register_forward_hook(lambda *_: None)
    assert kept.hooked(model)
    handle.remove()
    assert not kept.hooked(model)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda value, hook: value)]):
        assert kept.hooked(model)
    assert not kept.hooked(model)


def test_another_tokenizer_is_another_model(organism):
    first, tokenizer = kept.checksum(organism), organism.tokenizer
    try:
        organism.tokenizer = None
        assert kept.checksum(organism) != first
    finally:
        organism.tokenizer = tokenizer
    assert kept.checksum(organism) == first


def test_answers(tmp_path, wired):
    """Taken again for the same question and the same file only; nothing is kept for no question."""
    made = []

    def make():
        made.append(1)
        interp.run("attention_stripes", wired, "1:40", batch=2, length=5, out=tmp_path)

    question = kept.about("attention_stripes", wired, seed=0)
    first = kept.answer(tmp_path, question, make)
    assert kept.answer(tmp_path, question, make).identical(first)
    assert len(made) == 1
    assert kept.answered(tmp_path, kept.about("attention_stripes", wired, seed=1)) is None
    assert kept.answered(tmp_path, None) is None
    results.save(first.assign(score=first.score + 1), tmp_path / "result.nc")
    assert kept.answered(tmp_path, question) is None
    kept.answer(tmp_path, question, make)
    (tmp_path / kept.ASKED).write_bytes(b"\xff\xfe")
    kept.answer(tmp_path, question, make)
    kept.answer(tmp_path, None, make)
    assert len(made) == 4
    assert not (tmp_path / kept.ASKED).exists()

    def fails():
        raise KeyboardInterrupt

    kept.answer(tmp_path, question, make)
    with pytest.raises(KeyboardInterrupt):
        kept.answer(tmp_path, question | {"seed": 1}, fails)
    assert kept.answered(tmp_path, question | {"seed": 1}) is None


def test_parts_of_other_code_are_not_taken(wired, tmp_path, monkeypatch):
    """Interrupted, the package edited, and started again: all pools are run anew."""
    ran = []

    def interrupted(pool):
        ran.append(pool)
        if len(ran) == 2:
            raise KeyboardInterrupt

    def go():
        return interp.run(noted, wired, ["1:20", "20:40"], batch=2, length=5, out=tmp_path)

    monkeypatch.setattr(sys.modules[__name__], "SAY", interrupted)
    monkeypatch.setattr(kept, "doing", lambda function: "the same")
    with pytest.raises(KeyboardInterrupt):
        go()
    monkeypatch.setattr(kept, "_CODE", "edited")
    go()
    assert ran == ["1:20", "20:40", "1:20", "20:40"]


SAY = print


def noted(model, tokens):
    """`x` [batch]."""
    SAY(tokens.pool)
    return interp.label("x", np.zeros(len(tokens.ids)), "batch", tokens.coords)


def test_the_experiments_of_the_pages_can_be_kept(tmp_path):
    """Else an interrupted run of such an experiment would begin anew."""
    import json
    import re

    page = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    cells = json.loads((ROOT / "notebooks" / "05_your_own_experiment.ipynb").read_text())["cells"]
    cell = next(text for text in ("".join(cell["source"]) for cell in cells) if "def look_or_carry" in text)
    for name, text in (("entropy", page), ("look_or_carry", cell)):
        (tmp_path / f"{name}.py").write_text(text)
        assert kept.doing(interp.experiments.find(f"{tmp_path}/{name}.py:{name}")) != kept.UNKNOWN
