"""How is a repaired model saved? As a Hugging Face directory of the model with new rows for some tokens."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.files import writable
from interp.first_token import first_token
from interp.heads import reference_pool
from interp.models import plain_network, published_tokenizer
from interp.repairs.rows import ROW_REPAIRS, new_rows, repairable_pools, rows_replaced
from interp.tokens import Pool, Repeated, check_context, check_seed, repeated


@torch.no_grad()
def save_repaired(
    model: TransformerBridge,
    pool: Pool,
    folder: str | Path,
    *,
    repair: Literal["none", "random", "gaussian", "mean", "norm", "subword_mean", "gradient"] = "gradient",
    reference: str = "",
    steps: int = 200,
    seed: int = 0,
    batch: int = 64,
    length: int | None = None,
    copies: int = 2,
    among: Pool | None = None,
    replacement: bool | None = None,
    bos: int | str | None = "auto",
) -> Path:
    """Write the model, with a pool's embedding rows rewritten, as a Hugging Face directory.

    The rows are those that the experiment `embedding_repair` measures when it is run with the same options. The folder
    is written atomically; the given model itself is left unchanged.

    Args:
        model: any loaded model with raw weights.
        pool: the tokens whose rows are rewritten.
        folder: where to write; must not exist.
        repair: how the rows are made (`new_rows`).
        reference: the pool of ordinary tokens that rows are derived from; default: the model's ordinary tokens.
        steps: training steps of `gradient`, a positive integer.
        seed: decides random rows and the sequences that `gradient` trains on.
        batch: sequences in one draw.
        length: tokens in a block; None: 25, or as many as there are to draw from.
        copies: how many times a sequence repeats its block.
        among: single tokens of the pool are put among tokens of this one; None: blocks hold only tokens of the pool.
        replacement: whether blocks are drawn with replacement; None: only where the pool is too small to do without.
        bos: the first token, as in `run`; None: none.

    Returns:
        The folder.

    Raises:
        InterpError: an unknown repair, no steps, a folder that exists or cannot be written, a pool of ordinary tokens,
            too few ordinary tokens to derive rows from, or sequences longer than the model's context.
    """
    if repair not in ROW_REPAIRS or steps < 1:
        raise InterpError(
            f"repair '{repair}', steps {steps}: use one of {', '.join(ROW_REPAIRS)}, and a positive number of steps"
        )
    check_seed(seed)
    folder = Path(folder)
    if folder.exists():
        raise InterpError(f"{folder} exists: choose another folder to save to")
    try:
        writable(folder.absolute().parent)
    except InterpError as error:
        raise InterpError(f"{str(error).split(':')[0]}: choose another folder to save to") from error
    healthy = reference_pool(model, reference, seed=seed)
    repairable_pools([pool], healthy)
    front = first_token(model, bos).id

    def draw(pool: Pool, *, stream: int) -> Repeated:
        tokens = repeated(
            pool,
            batch=batch,
            length=length,
            copies=copies,
            bos=front,
            among=among,
            replacement=replacement,
            seed=seed + stream,
        )
        check_context(tokens, model.cfg.n_ctx)
        return replace(tokens, ids=tokens.ids.to(model.cfg.device))

    rows = new_rows(model, repair, pool, healthy, draw, steps=steps, seed=seed)
    part = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with rows_replaced(model, pool.ids, rows):
            network: Any = plain_network(model)
            network.save_pretrained(part)
        tokenizer = published_tokenizer(model)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
