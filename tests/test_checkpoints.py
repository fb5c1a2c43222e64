"""Are checkpoints without a complete decoder refused in one line, and complete ones loaded?"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp import models, results
from interp.errors import InterpError
from interp.organisms import folder

pytestmark = pytest.mark.experiment

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SIZE = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def saved(network, path, **options):
    """A network beside the organism's tokenizer."""
    network.save_pretrained(path, **options)
    for name in TOKENIZER:
        shutil.copy(folder("organism") / name, path / name)
    return path


def made(kind, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    network = made(LlamaForCausalLM, LlamaConfig(**SIZE, num_key_value_heads=2, bos_token_id=2047))
    return saved(network, tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture
def copied(tmp_path):
    """A copy of a model's folder, its tensors changed by a function."""

    def copy(source, change=lambda tensors: tensors, form="safetensors"):
        path = tmp_path / "copy"
        shutil.copytree(source, path)
        tensors = change(load_file(path / "model.safetensors"))
        if form == "safetensors":
            save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors", {"format": "pt"})
            return path
        (path / "model.safetensors").unlink()
        if form == "pickled":
            torch.save(tensors, path / "pytorch_model.bin")
            return path
        parts = {f"model-0000{i}-of-00002.safetensors": sorted(tensors)[i - 1 :: 2] for i in (1, 2)}
        for file, keys in parts.items():
            save_file({k: tensors[k].contiguous() for k in keys}, path / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return copy


def refusal(path, **options):
    """The one line that a model is refused with."""
    with pytest.raises(InterpError) as caught:
        models.load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(part):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if part not in key}


# --- L1: weights that do not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "sharded", "pickled"])
def test_missing_weights_are_refused_by_their_keys(llama, copied, form):
    said = refusal(copied(llama, without("layers.1."), form), allow_pickle=form == "pickled")
    assert "missing: model.layers.1.input_layernorm.weight, " in said
    assert "and 6 more" in said
    assert "get all of its files" in said


def test_a_missing_head_is_refused_where_it_is_not_tied(llama, copied):
    assert "missing: lm_head.weight)" in refusal(copied(llama, without("lm_head")))


def test_weights_without_a_place_are_refused(llama, copied):
    path = copied(llama, lambda tensors: tensors | {"model.layers.2.mlp.up_proj.weight": torch.ones(64, 32)})
    assert "without a place: model.layers.2.mlp.up_proj.weight)" in refusal(path)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "pickled"])
def test_misshapen_weights_are_refused_with_both_shapes(llama, copied, form):
    key = "model.layers.0.mlp.up_proj.weight"
    path = copied(llama, lambda tensors: tensors | {key: torch.ones(63, 32)}, form)
    assert f"of another shape: {key} [63, 32] for [64, 32])" in refusal(path, allow_pickle=True)


def test_a_missing_shard_is_named(llama, copied):
    path = copied(llama, form="sharded")
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors, which its index of weights names" in refusal(path)


def old_gpt2(tensors):
    """As the hub's gpt2 is: no prefix, masks beside the weights."""
    mask = torch.tril(torch.ones(128, 128))[None, None]
    masks = {f"h.{i}.attn.{name}": mask.clone() for i in (0, 1) for name in ("bias", "masked_bias")}
    return {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()} | masks


def with_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}


@pytest.mark.parametrize("change", [old_gpt2, with_head])
def test_what_a_checkpoint_of_gpt2_may_hold_or_leave_out(tiny_gpt2, copied, change):
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(models.load(copied(tiny_gpt2, change))(ids), models.load(tiny_gpt2)(ids))


def old_llama(tensors):
    """As checkpoints of 2023 are: rotary frequencies in every layer."""
    return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in (0, 1)}


@pytest.mark.parametrize(("change", "form"), [(old_llama, "safetensors"), (dict, "sharded"), (dict, "pickled")])
def test_what_a_checkpoint_of_llama_may_be(llama, copied, change, form):
    ids = torch.arange(20)[None]
    with torch.no_grad():
        copy = models.load(copied(llama, change, form), allow_pickle=True)
        assert torch.equal(copy(ids), models.load(llama)(ids))


def test_a_base_model_with_a_tied_head_loads(tiny_gpt2, tmp_path):
    from transformers import GPT2LMHeadModel

    path = saved(GPT2LMHeadModel.from_pretrained(tiny_gpt2).transformer, tmp_path / "base")
    assert json.loads((path / "config.json").read_text())["architectures"] == ["GPT2Model"]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(models.load(path)(ids), models.load(tiny_gpt2)(ids))


# --- L2: networks that do not predict the next token ------------------------------------------------------------------


def _others():
    import transformers as t

    base = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = {**base, "intermediate_size": 64, "initializer_range": 0.3}  # large, as after training
    t5 = {"vocab_size": 2048, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    bart = {"vocab_size": 2048, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
    bart |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    gpt2 = {"vocab_size": 2048, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "pad_token_id": 0}
    return {
        "bert": (t.BertForMaskedLM, t.BertConfig(**bert)),
        "bert-base": (t.BertModel, t.BertConfig(**bert)),
        "bert-lm-head": (t.BertLMHeadModel, t.BertConfig(**bert)),
        "roberta": (t.RobertaForMaskedLM, t.RobertaConfig(**bert)),
        "modernbert": (t.ModernBertForMaskedLM, t.ModernBertConfig(**bert, pad_token_id=0)),
        "t5": (t.T5ForConditionalGeneration, t.T5Config(**t5)),
        "t5-encoder": (t.T5EncoderModel, t.T5Config(**t5, is_encoder_decoder=False)),
        "bart": (t.BartForConditionalGeneration, t.BartConfig(**bart)),
        "bart-decoder": (t.BartForCausalLM, t.BartConfig(**bart, is_decoder=True, is_encoder_decoder=False)),
        "classifier": (t.GPT2ForSequenceClassification, t.GPT2Config(**gpt2)),
        "reward": (t.LlamaForSequenceClassification, t.LlamaConfig(**SIZE, num_labels=1)),
        "vision": (t.ViTModel, t.ViTConfig(**{k: v for k, v in bert.items() if k != "vocab_size"}, image_size=16)),
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bert", "is a BertForMaskedLM, which does not predict the next token"),
        ("bert-base", "is an encoder"),
        ("bert-lm-head", "depend on tokens that come later"),
        ("roberta", "is a RobertaForMaskedLM, which does not predict the next token"),
        ("modernbert", "is a ModernBertForMaskedLM, which does not predict the next token"),
        ("t5", "is an encoder-decoder"),
        ("t5-encoder", "is a T5EncoderModel, which does not predict the next token"),
        ("bart", "is an encoder-decoder"),
        ("bart-decoder", ""),
        ("classifier", "is a GPT2ForSequenceClassification, which does not predict the next token"),
        ("reward", "is a LlamaForSequenceClassification, which does not predict the next token"),
        ("vision", ""),
    ],
)
def test_non_decoders_are_refused(name, reason, tmp_path):
    kind, config = _others()[name]
    path = saved(made(kind, config), tmp_path / name)
    for dtype in ("float32", "bfloat16"):
        assert reason in refusal(path, dtype=dtype)


def test_a_network_that_looks_ahead_is_refused_whatever_it_is_called(llama, tmp_path, monkeypatch):
    """By running it, not by its name: here a Llama whose mask lets every position see all others."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.create_causal_mask
    models.load(llama)

    def open_mask(*args, **kwargs):
        mask = plain(*args, **kwargs)
        return torch.zeros(2, 1, 8, 8) if mask is None else torch.zeros_like(mask)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", open_mask)
    assert "depend on tokens that come later" in refusal(llama)


# --- L3 and what is refused unless requested --------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "merges.txt", "config.json"],
)
def test_a_pointer_of_git_lfs_is_recognised(llama, copied, name):
    path = copied(llama)
    (path / name).write_text(POINTER)
    assert f"{name} is a pointer of Git LFS and not the file: run 'git lfs pull'" in refusal(path)


def test_pointers_among_shards_and_pickles_are_recognised(llama, copied, tmp_path):
    path = copied(llama, form="sharded")
    (path / "model-00002-of-00002.safetensors").write_text(POINTER)
    assert "model-00002-of-00002.safetensors is a pointer" in refusal(path)
    (path / "model.safetensors.index.json").unlink()
    (path / "pytorch_model.bin").write_text(POINTER)
    assert "pytorch_model.bin is a pointer" in refusal(path)


def test_a_pointer_that_is_not_needed_does_not_matter(llama, copied):
    path = copied(llama)
    (path / "pytorch_model.bin").write_text(POINTER)
    models.load(path)


def test_pickled_weights_are_refused_unless_allowed(llama, copied):
    path = copied(llama, form="pickled")
    assert "reading a pickle may run code: convert them to safetensors, or allow it with --allow-pickle" in refusal(
        path
    )
    assert interp.origin(models.load(path, allow_pickle=True))["allow_pickle"] is True
    assert "allow_pickle" not in interp.origin(models.load(llama))


def test_weights_of_another_form_are_named(llama, copied):
    path = copied(llama, form="pickled")
    (path / "pytorch_model.bin").rename(path / "consolidated.00.pth")
    assert "has weights that transformers does not read (consolidated.00.pth): convert to safetensors" in refusal(path)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_a_pickle_that_runs_code_is_stopped_even_where_pickles_are_allowed(llama, copied, tmp_path):
    path = copied(llama, form="pickled")
    torch.save({"weight": Payload(str(tmp_path / "ran"))}, path / "pytorch_model.bin")
    assert "does not load as a model" in refusal(path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def with_code(llama, tmp_path):
    """A Llama under a name of its own, with the Python files that build it."""
    path = tmp_path / "with-code"
    shutil.copytree(llama, path)
    (path / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own-llama'\n"
    )
    (path / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((path / "config.json").read_text())
    config |= {
        "model_type": "own-llama",
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_code_of_a_folder_is_refused_unless_allowed(with_code, llama, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert "read them, and allow it to run them with --trust-remote-code" in refusal(with_code)
    assert not (tmp_path / "ran").exists()
    model = models.load(with_code, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert interp.origin(model)["trust_remote_code"] is True
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), models.load(llama)(ids))
        assert torch.allclose(models.plain_network(model)(ids).logits, model(ids), atol=1e-5)


# --- what results say of it -------------------------------------------------------------------------------------------


def test_what_was_allowed_is_recorded_in_the_request(llama, copied, tmp_path):
    path = copied(llama, form="pickled")
    words = ["run", "repeated_tokens", "--model", str(path), "--pool", "0:60", "--batch", "2", "--allow-pickle"]
    request = interp.Request.from_argv(words)
    result = interp.run_request(request, out=tmp_path / "out")
    stored = interp.provenance(results.load(tmp_path / "out"))
    assert "--allow-pickle" in interp.Request.from_json(stored["request"]).to_argv()
    assert interp.Request.from_json(stored["request"]).model.allow_pickle
    assert interp.provenance(result)["model"]["attention"] == stored["model"]["attention"] == "eager"


def test_a_network_that_does_not_run_in_half_precision_is_refused(tmp_path):
    from transformers import CodeGenConfig, CodeGenForCausalLM

    size = {"vocab_size": 2048, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    path = saved(made(CodeGenForCausalLM, CodeGenConfig(**size)), tmp_path / "codegen")
    models.load(path)
    assert "does not run in bfloat16 (" in (said := refusal(path, dtype="bfloat16"))
    assert said.endswith(": use float32")
