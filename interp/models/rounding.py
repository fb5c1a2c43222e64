"""How coarsely are the embedding rows of a model stored? The size of the rounding error in the stored rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.models.identity import LOADED, location, weights_state
from interp.models.package_index import PUBLIC, fetched_file

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

# GGUF's types of 32 numbers with one step: (bytes before the step, bytes of a block)
_STEPS = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
_EMBEDDING = "token_embd.weight"
_UNIFORM = 12**-0.5  # root mean square of an error that is uniform over one step


def row_rounding(model: TransformerBridge) -> tuple[np.ndarray, str]:
    """The root mean square rounding error of each row of the stored input embedding: a step divided by sqrt(12).

    For a GGUF file with one step per block of 32 numbers it is read from the file. For other files it follows from the
    coarsest of bfloat16, float16 and float32 that represents all of the weights exactly.

    Args:
        model: any loaded model.

    Returns:
        [token], in units of the embedding, and what the rows are stored as; NaN, and the reason, if it is not known.
    """
    weight = model.original_model.get_input_embeddings().weight.detach()
    if weights_state(model) != LOADED.get(model):
        return np.full(len(weight), np.nan), "the weights were changed since they were loaded"
    place = location(model) or ""
    file = fetched_file(place) if place in PUBLIC else Path(place)
    if file is not None and file.suffix == ".gguf" and file.is_file():
        return _of_blocks(file, len(weight))
    kind = _coarsest(weight)
    # numbers between two powers of two are one step apart
    steps = 2.0 ** (np.frexp(weight.float().cpu().numpy())[1] - 1) * _spacing(kind)
    return np.sqrt((steps**2).mean(1)) * _UNIFORM, kind


def _of_blocks(file: Path, rows: int) -> tuple[np.ndarray, str]:
    import gguf

    tensor: Any = next((t for t in gguf.GGUFReader(str(file)).tensors if t.name == _EMBEDDING), None)
    kind = "unknown" if tensor is None else str(tensor.tensor_type.name)
    if tensor is None or (kind not in _STEPS and kind not in ("F32", "F16", "BF16")):
        return np.full(rows, np.nan), f"{kind}, whose steps are not read"
    if kind in _STEPS:
        blocks = np.asarray(tensor.data).reshape(rows, -1, _STEPS[kind])[..., :2]
        steps = np.ascontiguousarray(blocks).view(np.float16)[..., 0].astype(np.float64)
        return np.sqrt((steps**2).mean(1)) * _UNIFORM, f"{kind}, one step size per 32 numbers"
    values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(rows, -1)
    name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    steps = 2.0 ** (np.frexp(values)[1] - 1) * _spacing(name)
    return np.sqrt((steps**2).mean(1)) * _UNIFORM, name


def _coarsest(weight: torch.Tensor) -> str:
    import torch

    for kind in (torch.bfloat16, torch.float16):
        if all(bool((part.to(kind).to(part.dtype) == part).all()) for part in weight.split(4096)):
            return str(kind).removeprefix("torch.")
    return "float32"


def _spacing(kind: str) -> float:
    """The distance between neighbouring numbers from 1 to 2."""
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}[kind]
