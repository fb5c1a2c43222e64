"""Which ids does a text become, cut into windows that a model can take?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.first_token import first_token
from interp.models import needed_tokenizer, tokenizer_state
from interp.organisms.corpus import corpus

_REMEMBERED = 4  # texts by tokenizer: tokenizing takes seconds, and experiments use the same text
_known: dict[tuple[str, str], np.ndarray] = {}


@takes_what_it_says
def text_windows(model: TransformerBridge, file: str, width: int, most: int) -> torch.Tensor:
    """Windows of a text, evenly spaced, each after the model's first token (`first_token`), if any.

    Args:
        model: a model with a tokenizer.
        file: a UTF-8 file or, for "", the part of the Python standard library that no bundled model was trained on.
        width: tokens in a window, not counting BOS.
        most: the largest number of windows, 1 or more.

    Returns:
        [batch position] ids.

    Raises:
        InterpError: the file cannot be read, there is no tokenizer, the model has no rows for its tokens, or the text
            is shorter than one window.
    """
    tokenizer = needed_tokenizer(model, "a text")
    try:
        text = Path(file).read_text(encoding="utf-8") if file else _heldout()
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"cannot read {file} ({error}): give a UTF-8 text file") from error
    ids = _ids(model, tokenizer, text)
    rows = model.original_model.get_input_embeddings().weight.shape[0]
    if ids.max(initial=0) >= rows:
        raise InterpError(
            f"the text holds token {ids.max()}, and this model embeds {rows} tokens: its tokenizer is another model's"
        )
    count = len(ids) // width
    if not count:
        raise InterpError(
            f"{file or 'the text'} has {len(ids)} tokens, fewer than one window of {width}: give a longer text"
        )
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    windows = torch.from_numpy(ids[: count * width].reshape(count, width)[chosen]).to(model.cfg.device)
    bos = first_token(model).id
    return windows if bos is None else torch.nn.functional.pad(windows, (1, 0), value=bos)


@cache
def _heldout() -> str:
    return "\n".join(corpus().heldout)


def _ids(model: TransformerBridge, tokenizer: Any, text: str) -> np.ndarray:
    """[token], int64: the ids of a text by the model's tokenizer."""
    key = tokenizer_state(model), text
    if key in _known:
        return _known[key]
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    # without a backend, the state is only the class name
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        while len(_known) >= _REMEMBERED:
            del _known[next(iter(_known))]
        _known[key] = ids
    return ids
