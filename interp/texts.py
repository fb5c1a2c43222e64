"""Which ids is a text, cut into windows that a model can be fed?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InterpError
from interp.organisms.corpus import corpus
from interp.vocabulary import own_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


def text_windows(model: TransformerBridge, file: str, width: int, most: int) -> Tensor:
    """[batch position] ids: at most `most` (1 or more) windows of `width` tokens, evenly spaced over the text, behind BOS where there is one.

    The text is a UTF-8 file or, for "", the part of the Python standard library that no bundled model was trained on.
    Raises `InterpError` where the file cannot be read, there is no tokenizer, or the text is shorter than one window.
    """
    import torch

    if model.tokenizer is None:
        raise InterpError("this model has no tokenizer to read a text with: add its tokenizer files to the folder")
    try:
        text = Path(file).read_text(encoding="utf-8") if file else "\n".join(corpus().heldout)
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"cannot read {file} ({error}): give a UTF-8 text file") from error
    ids = own_tokenizer(model)(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(ids) // width
    if not count:
        raise InterpError(
            f"{file or 'the text'} has {len(ids)} tokens, fewer than one window of {width}: give a longer text"
        )
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    rows = torch.tensor([ids[i * width : (i + 1) * width] for i in chosen], device=model.cfg.device)
    bos = getattr(model.tokenizer, "bos_token_id", None)
    return rows if bos is None else torch.nn.functional.pad(rows, (1, 0), value=bos)
