"""Shared models and folders; shapes are checked at run time in every measurement."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # the tests never reach for the network
os.environ.setdefault("INTERP_DEVICE", "cpu")  # the same on every machine; test_devices.py uses accelerators
os.environ.setdefault("INTERP_CACHE", tempfile.mkdtemp(prefix="interp-cache-"))  # nor into a user's cache
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker: otherwise workers wait for each other
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

from jaxtyping import install_import_hook

with install_import_hook(["interp.measure"], "beartype.beartype"):
    import interp.measure  # noqa: F401

import pytest

from interp import models

_LONG = ("commands", "notebooks", "survey", "public", "process")


def pytest_collection_modifyitems(items):
    """Files with the longest tests start first: one worker runs each, and the last to start would hold up the rest."""
    items.sort(key=lambda item: not any(map(item.get_closest_marker, _LONG)))


_DRAWS = ("browser", "gallery", "commands", "notebooks")


@pytest.fixture(autouse=True)
def _no_images(request, monkeypatch):
    """Pretend that no browser is installed, except for tests of images: each start takes seconds."""
    if not any(map(request.node.get_closest_marker, _DRAWS)):

        def missing(*_, **__):
            raise RuntimeError("no test of this kind draws images")

        monkeypatch.setattr("plotly.io.write_images", missing)


@pytest.fixture(scope="session")
def hub_cache():
    """Lay out a hub cache and use it: (folder, model's name, {ref: (commit, source folder)}, monkeypatch)."""
    return _hub_cache


def _hub_cache(cache, name, refs, monkeypatch):
    """As the hub client has it: blobs, snapshots of links to them, refs."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    for ref, (commit, source) in refs.items():
        (repo / "refs" / ref).write_text(commit)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in source.iterdir():
            blob = repo / "blobs" / f"{commit}-{file.name}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(cache), raising=False)


@pytest.fixture(scope="session")
def wired():
    return models.load("wired")


@pytest.fixture(scope="session")
def organism():
    return models.load("organism")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """A GPT-2-shaped model with random weights, as a Hugging Face directory with the organism's tokenizer."""
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from interp.organisms import folder

    path = tmp_path_factory.mktemp("tiny") / "tiny-gpt2"
    size = {"vocab_size": 2048, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(**size, bos_token_id=2047, eos_token_id=2047)
        GPT2LMHeadModel(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder("organism") / name, path / name)
    return path
