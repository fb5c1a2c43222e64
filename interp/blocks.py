"""How are repeated blocks drawn for a model, with its own BOS and pools, on its device?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from interp import tokens
from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.first_token import first_token
from interp.models import token_texts
from interp.pool_names import pools
from interp.tokens import Pool, Repeated, check_context


@takes_what_it_says
def repeated(
    model: TransformerBridge | Pool,
    pool: Any = None,
    *,
    batch: int = 32,
    length: int | None = None,
    copies: int = 2,
    bos: bool | int | str | None = "auto",
    among: Any = None,
    replacement: bool | None = None,
    seed: int = 0,
) -> Repeated:
    """Draw sequences of random blocks, each repeated, behind the model's first token.

    Sequence i depends on the seed and on i alone, so that a larger batch only adds sequences.

    Args:
        model: any loaded model; or a pool, with a `bos` that is an id or None, to draw without a model.
        pool: what the blocks are drawn from, as for `interp.pools`; it must name one pool.
        batch: how many sequences.
        length: tokens in a block; by default 25, or as many as there are to draw from.
        copies: how often a block stands in its sequence.
        bos: what stands first, as for `interp.run`.
        among: a pool: makes mixed blocks, in which all tokens but one come from there.
        replacement: whether a token may occur twice in a block; by default only where the pool is smaller than
            `length`.
        seed: decides the draws.

    Returns:
        The sequences, `ids` [batch position], on the model's device.

    Raises:
        InterpError: the sizes do not make a block, or the context has no room for it.

    Example:
        >>> tokens = interp.repeated(interp.load("organism"), "ordinary", batch=4, length=6)
        >>> tokens.ids.shape, tokens.bos
        (torch.Size([4, 13]), 2047)
    """
    options: dict[str, Any] = {"batch": batch, "length": length, "copies": copies, "replacement": replacement}
    if isinstance(model, Pool):
        if pool is not None or isinstance(bos, str | bool) or not isinstance(among, Pool | None):
            raise InterpError(
                "give a model first: interp.repeated(model, pool); or, for a pool alone, bos as an id or None"
            )
        return tokens.repeated(model, bos=bos, among=among, seed=seed, **options)
    drawn = tokens.repeated(
        _one(pool, model, seed),
        bos=first_token(model, bos).id,
        among=None if among is None else _one(among, model, seed),
        seed=seed,
        **options,
    )
    check_context(drawn, model.cfg.n_ctx)
    unique, inverse = drawn.ids.unique(return_inverse=True)
    texts = np.array(token_texts(model, unique.tolist()), dtype=object)
    return replace(drawn, ids=drawn.ids.to(model.cfg.device), text=texts[inverse.reshape(drawn.ids.shape)])


def _one(given: Any, model: TransformerBridge, seed: int) -> Pool:
    """The one pool that the spec names."""
    found = pools(given, model, seed=seed)
    if len(found) != 1:
        raise InterpError(f"blocks are drawn from one pool, and {len(found)} are named: name one")
    found[0].check(model.original_model.get_input_embeddings().weight.shape[0])
    return found[0]
