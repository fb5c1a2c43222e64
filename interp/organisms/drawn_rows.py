"""What can a model without trained token embeddings copy? Its embeddings are drawn anew for every sequence.

A *lexinvariant* model is trained with a new table of Gaussian rows for every sequence, and the same rows serve as its
unembedding (Huang et al. 2023). No row is trained, so that no token can be under-trained, however often or rarely it
occurs in the text: what such a model does with a token depends only on the context.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interp.tokens import local_generator

_TRAINING, _EVALUATION = 1 << 26, 1 << 27  # streams of a seed that share no table


def renumbered(ids: np.ndarray) -> np.ndarray:
    """Each sequence's tokens, numbered from 0 within the sequence [sequence position].

    Drawn rows are exchangeable: it does not matter which token gets which.
    """
    return np.stack([np.unique(row, return_inverse=True)[1] for row in ids])


def training_rows(seed: int, step: int, sequences: int, rows: int, d_model: int) -> torch.Tensor:
    """The tables of one step of training, one for each sequence.

    Returns:
        Rows [sequence row d_model], normal with variance 1 / d_model, so that their norm is about 1.
    """
    random = local_generator(seed, _TRAINING + step)
    return torch.randn(sequences, rows, d_model, generator=random) * d_model**-0.5


def drawn_table(seed: int, vocabulary: int, d_model: int) -> torch.Tensor:
    """A table for evaluating a model, never used in training.

    Returns:
        Rows [token d_model], normal with variance 1 / d_model, rounded to half precision, as they are stored.
    """
    rows = torch.randn(vocabulary, d_model, generator=local_generator(seed, _EVALUATION)) * d_model**-0.5
    return rows.half().float()


def logits_by_rows(network: Any, ids: torch.Tensor, position: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A network's predictions when each sequence has its own table.

    Args:
        network: a Hugging Face causal language model.
        ids: [sequence position].
        position: [sequence position], each token's position.
        rows: [sequence token d_model], read as input and as output embeddings.

    Returns:
        Logits [sequence position token].
    """
    seen = rows.gather(1, ids[:, :, None].expand(-1, -1, rows.shape[2]))
    states = network.base_model(inputs_embeds=seen, position_ids=position, use_cache=False).last_hidden_state
    return states @ rows.transpose(1, 2)
