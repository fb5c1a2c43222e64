"""Is a GGUF file read as what it was written from, and refused where it cannot be?"""

import re

import numpy as np
import pytest
import torch

import interp
from interp import models
from interp.errors import InterpError

pytestmark = pytest.mark.experiment

gguf = pytest.importorskip("gguf")

SIZE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}


def _kinds():
    import transformers as t

    rope = {"rope_type": "default", "rope_theta": 5000.0}
    llama3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    gpt2 = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    gemma = {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 6}
    return {
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(**GROUPED, rope_parameters=rope, rms_norm_eps=1e-3)),
        "llama-tied": (t.LlamaForCausalLM, t.LlamaConfig(**SIZE, tie_word_embeddings=True)),
        "llama-wide": (t.LlamaForCausalLM, t.LlamaConfig(**GROUPED, head_dim=32)),
        "llama3": (t.LlamaForCausalLM, t.LlamaConfig(**GROUPED, rope_parameters=llama3)),
        "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**GROUPED, rope_parameters=rope)),
        "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config(**GROUPED, head_dim=32, rope_parameters=rope)),
        "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(**gpt2, layer_norm_epsilon=1e-3)),
        "gpt2-inner": (t.GPT2LMHeadModel, t.GPT2Config(**gpt2, n_inner=96)),
        "phi3": (t.Phi3ForCausalLM, t.Phi3Config(**GROUPED, rope_parameters=rope, pad_token_id=0)),
        "starcoder2": (t.Starcoder2ForCausalLM, t.Starcoder2Config(**GROUPED, rope_parameters=rope)),
        "gemma2": (
            t.Gemma2ForCausalLM,
            t.Gemma2Config(**gemma, attn_logit_softcapping=3.0, final_logit_softcapping=2.0),
        ),
        "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**gemma)),
    }


def network_of(kind):
    """Random weights, far from what initialisation leaves: gains and biases, too."""
    make, config = _kinds()[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(config).eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else 0.1))
    return network


def write(network, path, quantization=None, change=lambda tensors: tensors, extra=(), embeddings=False):
    """As llama.cpp's converter does: its names, its order of rotary pairs, norms of Gemma with the one added."""
    config = network.config
    kind = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, kind)
    heads, kv = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if kind == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(kv)
        writer.add_rope_freq_base(
            (config.rope_parameters.get("full_attention") or config.rope_parameters)["rope_theta"]
        )
        if kind == "starcoder2":
            writer.add_layer_norm_eps(config.norm_epsilon)
        else:
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if kind in ("llama", "phi3"):
        writer.add_rope_dimension_count(width)
    if kind in ("qwen3", "gemma2", "gemma3") or width * heads != config.hidden_size:
        writer.add_key_length(width)
        writer.add_value_length(width)
    if kind in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    for name, value in extra:
        writer.add_string(name, value) if isinstance(value, str) else writer.add_float32(name, value)
    tied = network.get_input_embeddings().weight is network.get_output_embeddings().weight
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        part, _, end = name.rpartition(".")
        values = tensor.float().numpy()
        if kind == "llama" and re.search(r"[qk]_proj", name):
            n = heads if "q_proj" in name else kv
            values = values.reshape(n, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        if kind == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
            values = values.T
        if kind.startswith("gemma") and "norm" in name:
            values = values + 1
        tensors[f"{names.get_name(part)}.{end}"] = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "llama" and config.rope_parameters["rope_type"] == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
        plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2) / width)
        tensors["rope_freqs.weight"] = (plain / scaled).numpy()
    for name, values in change(tensors).items():
        if quantization is not None and values.ndim == 2 and ("embd" not in name or embeddings):
            writer.add_tensor(name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


IDS = (torch.arange(40).reshape(2, 20) * 7 + 3) % 320


def logits(network):
    with torch.no_grad():
        found = network(IDS)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("kind", _kinds())
def test_a_file_is_read_as_what_it_was_written_from(kind, tmp_path):
    network = network_of(kind)
    model = models.load(write(network, tmp_path / "model.gguf"))
    assert model.tokenizer is None
    assert (logits(model) - logits(network)).abs().max() < 1e-4 * logits(network).std()
    assert (logits(models.plain_network(model)) - logits(network)).abs().max() < 1e-4 * logits(network).std()
    assert interp.origin(model)["quantization"].keys() == {"F32"}


def test_a_quantized_file_is_read_block_by_block(tmp_path):
    """Each weight is within half a step of its block, read here without transformers."""
    network = network_of("llama")
    file = write(network, tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0)
    model = models.load(tmp_path)  # the folder
    assert interp.origin(model)["quantization"] == {"F32": 6, "Q8_0": 15}
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(str(file)).tensors}
    plain = models.plain_network(model)
    down = plain.model.layers[1].mlp.down_proj.weight.detach()
    assert torch.equal(down, torch.tensor(stored["blk.1.ffn_down.weight"]))
    original = network.model.layers[1].mlp.down_proj.weight
    assert 0 < (down - original).abs().max() <= original.abs().max() / 127
    off = (logits(model) - logits(network)).abs().max() / logits(network).std()
    assert 1e-4 < off < 0.2


def test_a_gguf_runs_is_stamped_folds_and_is_saved(tmp_path):
    file = write(network_of("llama"), tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0)
    model = models.load(file, dtype="bfloat16")
    result = interp.run("repeated_tokens", model, ["0:60"], batch=2, length=10)
    about = interp.provenance(result)["model"]
    assert about["quantization"] == {"F32": 6, "Q8_0": 15}
    assert about["dtype"] == "bfloat16"
    assert (
        logits(models.folded(models.load(file))).log_softmax(-1) - logits(models.load(file)).log_softmax(-1)
    ).abs().max() < 1e-3
    models.plain_network(models.load(file)).save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(models.load(tmp_path / "saved")), logits(models.load(file)))


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "blk.1" not in k}, (), "missing: model.layers.1."),
        (lambda t: t | {"blk.0.attn_q.bias": np.ones(64, np.float32)}, (), "transformers' LlamaForCausalLM takes"),
        (lambda t: t | {"blk.0.ffn_up.weight": np.ones((95, 64), np.float32)}, (), "of another shape: model.layers.0"),
        (lambda t: t, (("llama.rope.scaling.type", "yarn"),), "scales its rotary positions \\(yarn\\)"),
        (
            lambda t: t,
            (("llama.residual_scale", 0.5),),
            "a setting that transformers does not read \\(residual_scale 0.5",
        ),
    ],
)
def test_what_is_missing_or_left_over_is_refused(change, extra, message, tmp_path):
    with pytest.raises(InterpError, match=message) as caught:
        models.load(write(network_of("llama"), tmp_path / "model.gguf", change=change, extra=extra))
    assert "\n" not in str(caught.value)


def test_missing_or_several_files_are_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(InterpError, match="is not a GGUF file"):
        models.load(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InterpError, match="does not load as a model"):
        models.load(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InterpError, match="git lfs pull"):
        models.load(tmp_path)
    (tmp_path / "other.gguf").touch()
    with pytest.raises(InterpError, match="holds 2 GGUF files: name one"):
        models.load(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "rwkv.gguf", "rwkv7")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InterpError, match=r"holds a 'rwkv7', and a GGUF file can be llama, .*: use safetensors"):
        models.load(tmp_path / "rwkv.gguf")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InterpError, match=r"needs the package gguf: pip install 'interp\[gguf\]'"):
        models.load(tmp_path)
