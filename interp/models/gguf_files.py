"""How does a GGUF file become a network, and how were its weights quantized?

transformers dequantizes the tensors and undoes llama.cpp's changes to them. Metadata that it ignores is applied here,
and a file with anything left over is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, first_line
from interp.models.checkpoints import check_complete, check_decoder, check_no_pointer, classes_of

if TYPE_CHECKING:
    import torch

# the architectures with a tested round trip; transformers reads more, some of them wrongly
READ = ("llama", "qwen2", "qwen3", "gpt2", "phi3", "starcoder2", "gemma2", "gemma3")
_ROTARY_FACTORS = "rope_freqs.weight"  # divide the rotary frequencies (Llama 3.1 and later)
# a file's key (after the architecture's name) -> the configuration's, which has one of these
_SETTINGS = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
_ROPE = ("rope.freq_base", "rope.dimension_count", "rope.scaling.type")
_NO_NUMBER = (
    "attention.causal",
    "tensor_data_layout",
    "rope.scaling.finetuned",
)  # true of any decoder, or only history


def load_gguf(file: Path, dtype: torch.dtype) -> tuple[Any, Any, dict[str, int]]:
    """Load a GGUF file, dequantized.

    Args:
        file: the file.
        dtype: the type of the weights.

    Returns:
        A plain transformers network in eval mode, its tokenizer (None if the file holds none), and how many tensors are
        stored in which type.

    Raises:
        InterpError: it is not a GGUF file, it does not hold a decoder that can be read, or `gguf` is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InterpError(f"{file} needs the package gguf: pip install 'interp[gguf]'") from error
    check_no_pointer(file)
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InterpError(f"{file} is not a GGUF file: get it again")
    try:
        with _read_once(gguf):
            reader = gguf.GGUFReader(str(file))
            config = _configuration(reader, file)
            network = _network(reader, file, config, dtype)
            return (
                network,
                _tokenizer(reader, file),
                dict(sorted(Counter(t.tensor_type.name for t in reader.tensors).items())),
            )
    except InterpError:
        raise
    except Exception as error:  # whatever a foreign file provokes
        raise InterpError(f"{file} does not load as a model ({first_line(error)}): get it again") from error


@contextmanager
def _read_once(gguf: Any) -> Iterator[None]:
    """Read a file, and build its table of names, only once: transformers repeats this, for seconds each time.

    This also hides its progress bar, which no setting of transformers turns off.
    """
    from transformers import modeling_gguf_pytorch_utils as reading

    plain = gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm
    gguf.GGUFReader, gguf.get_tensor_name_map = map(cache, plain[:2])
    reading.tqdm = partial(reading.tqdm, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm = plain


def _configuration(reader: Any, file: Path) -> Any:
    """The configuration, with the settings that transformers leaves at their defaults taken from the file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    told = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    kind = str(told["general.architecture"])
    if told.get("split.count", 1) > 1:
        raise InterpError(f"{file} is one of several parts: merge them (llama-gguf-split --merge) and name the whole")
    if kind not in READ:
        raise InterpError(f"{file} holds a '{kind}', and a GGUF file can be {', '.join(READ)}: use safetensors")
    config: Any = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    settings = {name.removeprefix(f"{kind}."): value for name, value in told.items() if name.startswith(f"{kind}.")}
    for name, value in settings.items():
        _set(config, name, value, file)
    _set_rope(config, settings, file)
    if kind in ("gemma2", "gemma3"):  # as in llama.cpp; the file does not say: the 27B models differ
        large = config.num_hidden_layers == {"gemma2": 46, "gemma3": 62}[kind]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if large else config.head_dim
    if (config.pad_token_id or 0) >= config.vocab_size:  # a default
        config.pad_token_id = None
    config.architectures = [found.__name__ for found in classes_of(AutoModelForCausalLM, config)]
    check_decoder(config, str(file))
    return config


def _set(config: Any, name: str, value: Any, file: Path) -> None:
    if name in _ROPE or name in _NO_NUMBER:
        return
    known = [attribute for attribute in _SETTINGS.get(name, ()) if hasattr(config, attribute)]
    if not known and name == "attention.key_length" and value * config.num_attention_heads == config.hidden_size:
        return
    if not known and name == "attention.value_length":
        return  # tensors of another shape are refused
    if not known or isinstance(value, list):
        raise InterpError(f"{file} has a setting that transformers does not read ({name} {value}): use safetensors")
    setattr(config, known[0], value)


def _set_rope(config: Any, settings: dict[str, Any], file: Path) -> None:
    """Base and width of the rotary positions; any scaling other than by a tensor of factors is refused."""
    scaling = settings.get("rope.scaling.type", "none")
    if scaling != "none":
        raise InterpError(f"{file} scales its rotary positions ({scaling}), which transformers drops: use safetensors")
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    base, width = settings.get("rope.freq_base"), settings.get("rope.dimension_count")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for kind in [rope] if "rope_type" in rope else [rope["full_attention"]]:
        if base is not None:
            kind["rope_theta"] = base
        if width is not None and width != head:
            kind["partial_rotary_factor"] = width / head


def _network(reader: Any, file: Path, config: Any, dtype: torch.dtype) -> Any:
    """The network with the file's weights, none of them missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded, found = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_complete(found, str(file))
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    apart = {_ROTARY_FACTORS} | ({"output.weight"} if tied else set())
    stored = sum(int(t.n_elements) for t in reader.tensors if t.name not in apart)
    taken = sum(weight.numel() for weight in loaded.parameters())
    if stored != taken:
        raise InterpError(
            f"{file} holds {stored:,} weights, and transformers' {type(loaded).__name__} takes {taken:,} of them: use "
            "safetensors"
        )
    factors = next((t for t in reader.tensors if t.name == _ROTARY_FACTORS), None)
    if factors is not None:
        _scale_rope(loaded, torch.tensor(factors.data), file)
    plain = loaded.config
    # no longer quantized, so it can be saved
    del plain.quantization_config
    loaded.hf_quantizer, loaded.is_quantized, loaded.quantization_method = None, False, None
    return loaded.eval()


def _scale_rope(network: Any, factors: torch.Tensor, file: Path) -> None:
    frequencies = [
        buffer
        for name, buffer in network.named_buffers()
        if name.rpartition(".")[2] in ("inv_freq", "original_inv_freq")
    ]
    if not frequencies or any(buffer.shape != factors.shape for buffer in frequencies):
        raise InterpError(f"{file} scales rotary positions, but its network has none: use safetensors")
    for buffer in frequencies:
        buffer /= factors.to(buffer)


def _tokenizer(reader: Any, file: Path) -> Any:
    """The file's tokenizer; None where it holds none. Raises `InterpError` where it does not load."""
    from transformers import AutoTokenizer

    if "tokenizer.ggml.tokens" not in reader.fields:
        return None
    try:
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # whatever a foreign file provokes
        kind = reader.fields["tokenizer.ggml.model"].contents()
        raise InterpError(
            f"the tokenizer in {file} ('{kind}') does not load ({first_line(error)}): use safetensors"
        ) from error
