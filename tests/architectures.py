"""Tiny random models of many architectures, for tests: large weights, and gains and biases that are not their defaults.

Default initialisation hides faults: attention is uniform, gains are one and biases are zero, so that code that forgets
them looks right by chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 320, 512, 32, 2, 4
_LLAMA: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT}
_NEOX = {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "head_dim")}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8}
_LATENT = {
    **_LLAMA,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT.pop("head_dim")
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}

# name -> (model_type, options of its configuration)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "gpt2-scaled": ("gpt2", {**_GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {**_NEOX, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "openai-gpt": ("openai-gpt", _GPT2),
    "opt": ("opt", {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
    "opt-behind": ("opt", {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "mpt": ("mpt", {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT}),
    "falcon": ("falcon", {**_NEOX, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-multiquery": ("falcon", {**_NEOX, "multi_query": True}),
    "falcon-alibi": ("falcon", {**_NEOX, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "xglm": ("xglm", {"d_model": WIDTH, "num_layers": LAYERS, "attention_heads": HEADS, "ffn_dim": 48}),
    "phi": ("phi", _LLAMA),
    "phi3": ("phi3", {**_GROUPED, "pad_token_id": 0}),
    "phimoe": ("phimoe", {**_GROUPED, "num_local_experts": 4}),
    "llama": ("llama", _LLAMA),
    "llama-grouped-tied": ("llama", {**_GROUPED, "tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": None}),
    "mistral-window": ("mistral", {**_GROUPED, "sliding_window": 8}),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 4}),
    "ministral3": ("ministral3", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2_moe": ("qwen2_moe", {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3": ("qwen3", _GROUPED),
    "qwen3_moe": ("qwen3_moe", {**_GROUPED, **_EXPERTS}),
    "qwen3_next": ("qwen3_next", {**_GROUPED, **_EXPERTS, **_LINEAR, "layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 24}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3_text": ("gemma3_text", {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo": ("olmo", {**_GROUPED, "clip_qkv": 8.0}),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}),
    "olmoe": ("olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("granite", {**_GROUPED, "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2}),
    "granitemoe": ("granitemoe", {**_GROUPED, "num_local_experts": 4, "logits_scaling": 4.0}),
    "granitemoehybrid": ("granitemoehybrid", {**_GROUPED, "num_local_experts": 4, "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "shared_intermediate_size": 24}),
    "cohere": ("cohere", {**_GROUPED, "logit_scale": 0.5}),
    "cohere-norm": ("cohere", {**_GROUPED, "use_qk_norm": True}),
    "cohere2": ("cohere2", {**_GROUPED, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "starcoder2": ("starcoder2", {**_GROUPED, "sliding_window": None}),
    "stablelm": ("stablelm", {**_GROUPED, "partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**_LLAMA, "use_parallel_residual": True, "qk_layernorm": True}),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    "seed_oss": ("seed_oss", _GROUPED),
    "arcee": ("arcee", _GROUPED),
    "apertus": ("apertus", _GROUPED),
    "nemotron": ("nemotron", _GROUPED),
    "glm": ("glm", _GROUPED),
    "glm4": ("glm4", _GROUPED),
    "exaone4": ("exaone4", {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}),
    "ernie4_5": ("ernie4_5", _GROUPED),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _GROUPED),
    "nanochat": ("nanochat", _LLAMA),
    "vaultgemma": ("vaultgemma", _GROUPED),
    "modernbert-decoder": ("modernbert-decoder", {**_NEOX, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}),
    "gpt_oss": ("gpt_oss", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}),
    "deepseek_v2": ("deepseek_v2", _LATENT),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "mamba": ("mamba", _MAMBA),
    "mamba2": ("mamba2", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2}),
    "falcon_mamba": ("falcon_mamba", _MAMBA),
    "jamba": ("jamba", {**_GROUPED, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4}),
    "bamba": ("bamba", {**_GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}),
    "falcon_h1": ("falcon_h1", {**_GROUPED, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
    "nemotron_h": ("nemotron_h", {**_GROUPED, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2}),
    "recurrent_gemma": ("recurrent_gemma", {**_GROUPED, "block_types": ["recurrent", "attention"], "attention_window_size": 32, "lru_width": WIDTH}),
    "lfm2": ("lfm2", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    "rwkv": ("rwkv", {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "context_length": CONTEXT}),
}  # fmt: skip


def random_model(name: str, seed: int = 0) -> torch.nn.Module:
    """A network of that architecture with random weights."""
    kind, options = ARCHITECTURES[name]
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, **{"vocab_size": VOCABULARY, **special, **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for weight in network.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(
                    weight, std=2.0 / weight.shape[-1] ** 0.5 if weight.shape[0] != VOCABULARY else 1.0
                )
            else:  # gains, biases and decay rates of recurrences
                weight.data += 0.3 * torch.randn_like(weight)
    return network


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with as many entries as the models have rows, no BOS and no EOS."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([(Path(__file__).parent / "conftest.py").read_text()], trainer)
    assert made.get_vocab_size() == VOCABULARY
    return PreTrainedTokenizerFast(tokenizer_object=made)


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Write such a model as a Hugging Face directory."""
    random_model(name, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
