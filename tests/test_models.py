"""Does a loaded model compute what Hugging Face computes, and does loading leave global state unchanged?"""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch

import interp
from interp import models
from interp.errors import InterpError
from interp.measure import log_probs
from interp.organisms import ORGANISMS, folder
from interp.pool_names import pools
from interp.tokens import repeated


@pytest.mark.parametrize("weights", ["raw", "folded"])
@pytest.mark.parametrize("name", ORGANISMS)
def test_log_probs_equal_hugging_face(name, weights):
    from transformers import AutoModelForCausalLM

    model = models.load(name, weights=weights)
    plain = AutoModelForCausalLM.from_pretrained(folder(name)).eval()
    for pool in pools(["ordinary", "unexposed"], model):
        tokens = repeated(pool, batch=4, length=60, bos=2047)
        with torch.inference_mode():
            ours = log_probs(model(tokens.ids), tokens.ids)
            theirs = torch.log_softmax(plain(tokens.ids).logits, -1)[:, :-1].gather(-1, tokens.ids[:, 1:, None])[..., 0]
        assert torch.allclose(ours[:, 1:], theirs, atol=1e-4), (ours[:, 1:] - theirs).abs().max()


@pytest.mark.parametrize("name", ORGANISMS)
def test_origin(name):
    model = models.load(name, dtype="float32")
    config = json.loads((folder(name) / "config.json").read_text())
    found = interp.origin(model)
    assert found["name"] == name
    assert found["architecture"] == config["architectures"][0]
    assert found["tied"] == (name == "organism") == config["tie_word_embeddings"]
    assert (found["weights"], found["dtype"]) == ("raw", "float32")
    assert len(found["sha256"]) == 16
    assert not model.training
    assert not any(part.training for part in model.original_model.modules())


def test_content_hash_changes_with_the_weights(tiny_gpt2, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_gpt2, other)
    first, same = (interp.origin(models.load(str(p)))["sha256"] for p in (tiny_gpt2, other))
    assert first == same
    weights = load_file(other / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert interp.origin(models.load(str(other)))["sha256"] != first


def test_hub_name_loads_from_the_cache_offline(tiny_gpt2, hub_cache, tmp_path, monkeypatch):
    commit, other = "a" * 40, "b" * 40
    hub_cache(tmp_path, "someone/tiny-gpt2", {"main": (commit, tiny_gpt2), "v2": (other, tiny_gpt2)}, monkeypatch)
    model = models.load("someone/tiny-gpt2")
    assert interp.origin(model) | {"architecture": ""} == {
        "name": "someone/tiny-gpt2",
        "revision": commit,
        "architecture": "",
        "weights": "raw",
        "dtype": "float32",
        "tied": True,
        "attention": "eager",
    }
    assert interp.origin(models.load("someone/tiny-gpt2", revision="v2"))["revision"] == other
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids), models.load(str(tiny_gpt2))(ids))
    with pytest.raises(InterpError, match=r"revision 'v3' of 'someone/tiny-gpt2' is not bundled"):
        models.load("someone/tiny-gpt2", revision="v3")
    with pytest.raises(InterpError, match="checkpoint revision convention"):
        models.load("someone/tiny-gpt2", checkpoint=1000)
    with pytest.raises(InterpError, match="not both"):
        models.load("someone/tiny-gpt2", revision="v2", checkpoint=1000)


@pytest.mark.experiment
def test_a_cached_hub_model_runs_the_main_job_by_name(tiny_gpt2, hub_cache, tmp_path, monkeypatch):
    """`--model gpt2`, as on a machine that has it: the article's experiment, the default pools, the stripes."""
    hub_cache(tmp_path, "gpt2", {"main": ("c" * 40, tiny_gpt2)}, monkeypatch)
    article = interp.run("repeated_tokens", "gpt2", ["177:188", "100:111"], protocol="article")
    assert article.summary.sel(definition="article", measure="log_prob", bound="mean").notnull().all()
    result = interp.run("repeated_tokens", "gpt2", batch=2)
    assert result.pool.values.tolist() == ["impossible-bytes", "text"]
    assert interp.provenance(result)["pools"]["impossible-bytes"] == {
        "size": 13,
        "ids": "124:126,177:188",
        "replacement": False,
    }
    assert interp.provenance(result)["sequences"]["length"] == 13
    assert interp.provenance(result)["model"]["name"] == "gpt2"


def test_a_checkpoint_of_pythia_loads_from_the_cache_offline(hub_cache, tmp_path, monkeypatch, tiny_gpt2):
    import shutil

    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    source = tmp_path / "source"
    size = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        GPTNeoXForCausalLM(GPTNeoXConfig(**size, intermediate_size=64)).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_gpt2 / name, source / name)
    refs = {"main": ("d" * 40, source), "step1000": ("e" * 40, source)}
    hub_cache(tmp_path / "cache", "EleutherAI/pythia-70m", refs, monkeypatch)
    model = models.load("EleutherAI/pythia-70m", checkpoint=1000)
    assert interp.origin(model)["revision"] == "e" * 40
    with pytest.raises(InterpError, match="checkpoint_value=1001 not in available checkpoints"):
        models.load("EleutherAI/pythia-70m", checkpoint=1001)
    with pytest.raises(InterpError, match="revision 'step2000'"):
        models.load("EleutherAI/pythia-70m", checkpoint=2000)


@pytest.mark.process
def test_loading_changes_no_global_state():
    """In a process of its own, since this one has loaded models already."""
    code = """
import sys, os, warnings, logging
import interp
assert "torch" not in sys.modules and "transformers" not in sys.modules, "importing interp imports torch"
import torch, transformers, numpy, random
torch.manual_seed(1)
def state():
    return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().tolist(),
            transformers.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled(),
            list(warnings.filters), dict(os.environ), str(numpy.random.get_state()), random.getstate(),
            logging.root.level, torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
before = state()
interp.load("organism"); interp.load("wired"); interp.load("organism-llama", weights="folded")
for a, b in zip(before, state()):
    assert a == b, (a, b)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/nothing", "'nobody/nothing' is not bundled, not in the hub cache, and the hub cannot be reached"),
        ("what is this!", "unknown model 'what is this!'"),
        ("./nowhere", "no model directory at"),
        (__file__, "is not a model directory, it has no config.json"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(InterpError) as caught:
        models.load(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_directories_without_a_model_are_refused(tmp_path, tiny_gpt2):
    with pytest.raises(InterpError, match=r"no config\.json"):
        models.load(str(tmp_path))
    (tmp_path / "config.json").write_bytes((tiny_gpt2 / "config.json").read_bytes())
    with pytest.raises(InterpError, match="does not load as a model") as caught:
        models.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(InterpError, match="does not load as a model"):
        models.load(str(tmp_path))


def test_wrong_options():
    with pytest.raises(InterpError, match="use 'raw' or 'folded'"):
        models.load("wired", weights="centred")
    with pytest.raises(InterpError, match="unknown dtype 'int8'"):
        models.load("wired", dtype="int8")
    with pytest.raises(InterpError, match="no device 'nonsense'"):
        models.load("wired", device="nonsense")
    with pytest.raises(InterpError, match="has no revisions"):
        models.load("organism", revision="main")


def test_a_failed_load_restores_global_state(tmp_path):
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_warning()
    filters, level = list(warnings.filters), logging.root.level
    with pytest.raises(InterpError):
        models.load(str(tmp_path))
    assert hf_logging.get_verbosity() == hf_logging.WARNING
    assert (warnings.filters, logging.root.level) == (filters, level)


@pytest.fixture(scope="module", params=["pythia", "qwen2"])
def other_architecture(request, tmp_path_factory, tiny_gpt2):
    """Random weights in two more shapes: parallel blocks with partial rotary positions; no BOS, grouped queries."""
    import shutil

    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp(request.param) / "model"
    size = {
        "vocab_size": 2048,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    ends = {"bos_token_id": 2047, "eos_token_id": 2047}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "pythia":
            GPTNeoXForCausalLM(GPTNeoXConfig(**size, **ends)).save_pretrained(path)
        else:
            Qwen2ForCausalLM(Qwen2Config(**size, **ends, num_key_value_heads=2)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_gpt2 / name, path / name)
    return path


@pytest.mark.experiment
def test_other_architectures(other_architecture):
    from transformers import AutoModelForCausalLM

    model = models.load(str(other_architecture))
    plain = AutoModelForCausalLM.from_pretrained(other_architecture, attn_implementation="eager").eval()
    result = interp.run("repeated_tokens", model, ["5:300"], batch=4)
    ids = torch.from_numpy(result.token_id.sel(pool="5:300").values)
    with torch.no_grad():
        theirs = torch.log_softmax(plain(ids).logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        patterns = plain(ids, output_attentions=True).attentions
    assert abs(result.log_prob.sel(pool="5:300").values[:, 1:] - theirs.numpy()).max() < 1e-4
    score = interp.run("attention_scores", model, ["5:300"], batch=4).score
    for layer, pattern in enumerate(patterns):
        # the definition, spelled out once more for [BOS, A, A] with L = 25
        by_hand = torch.stack([pattern[:, :, q, q - 24] for q in range(26, 50)]).mean(0)
        ours = score.sel(pool="5:300", key_kind="induction", layer=layer).values
        assert abs(ours.T - by_hand.numpy()).max() < 1e-5


def test_a_model_without_a_tokenizer(tiny_gpt2, tmp_path):
    """Ids are enough for whole blocks; what needs texts says so."""
    import shutil

    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_gpt2 / name, tmp_path / name)
    model = models.load(tmp_path)
    assert model.tokenizer is None
    result = interp.run("repeated_tokens", model, ["5:60"], length=10, batch=4)
    assert list(result.definition.values) == ["inducible", "article"]
    with pytest.raises(InterpError, match="no tokenizer: save one in the model's folder"):
        interp.census(model)
    with pytest.raises(InterpError, match="needs a tokenizer and this model has none: save one in the model's folder"):
        interp.run("undertrained", model)
    with pytest.raises(InterpError, match="needs a tokenizer and this model has none"):
        interp.run("repeated_tokens", model, ["text"])
    with pytest.raises(InterpError, match="needs a tokenizer and this model has none"):
        interp.run("attention_scores", model, ["5:60"], mixed=True)
    with pytest.raises(
        InterpError, match="ordinary tokens needs a tokenizer and this model has none: save one in the model's folder"
    ):
        interp.pools("control(0:100)", model)
    assert list(interp.run("repeated_tokens", model, batch=2).pool.values) == ["0:2048"]  # nothing tells pools apart
    with pytest.raises(
        InterpError, match="a prompt needs a tokenizer and this model has none: save one in the model's folder"
    ):
        interp.run("repeat_prompt", model, ["5:60"])


def test_weights_that_are_not_finite_are_refused(tiny_gpt2, tmp_path):
    """Said when the model is loaded, by the weight's name."""
    import shutil

    from transformers import AutoModelForCausalLM

    path = tmp_path / "broken"
    shutil.copytree(tiny_gpt2, path)
    network = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    with torch.no_grad():
        network.transformer.wte.weight[7] = float("nan")
    network.save_pretrained(path)
    with pytest.raises(
        InterpError, match=r"broken' holds NaN or infinity in transformer\.wte\.weight, row 7: fix its weights"
    ):
        models.load(path)


def test_no_attributes_are_added_to_a_loaded_model(wired):
    for name in ("origin", "own_tokenizer", "location", "exposure"):
        assert name not in wired.__dict__


def test_a_bridge_not_made_by_load_is_identified_by_its_own_config(tmp_path, monkeypatch, tiny_gpt2):
    """And not by an exposure file that happens to lie in the current folder."""
    from transformer_lens.model_bridge import TransformerBridge

    (tmp_path / "exposure.json").write_bytes((folder("organism") / "exposure.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tiny_gpt2), device="cpu")
    assert set(interp.origin(bridge)) == {"name", "architecture", "dtype", "attention"}
    assert models.exposure_of(bridge) is None
    assert models.location(bridge) is None
    assert models.model_name(bridge) == ""
    assert models.origin(models.folded(bridge))["weights"] == "folded"
