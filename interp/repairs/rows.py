"""Which new embedding rows could a pool's tokens get? Random, averaged, rescaled, composed of subwords, or trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.hooks import ids_of, record
from interp.measure import log_probs
from interp.models import entry, published_tokenizer
from interp.progress import track
from interp.tokens import Pool, Repeated, local_generator

ROW_REPAIRS = ("none", "random", "gaussian", "mean", "norm", "subword_mean", "gradient")
_RATE = 0.05  # learning rate of Adam, relative to the standard deviation of a row's entries
_SEQUENCES = 16  # in one step


def repairable_pools(pools: Sequence[Pool], healthy: Pool, repeated: Iterable[int] = ()) -> list[Pool]:
    """The pools that are not part of the ordinary tokens.

    Args:
        pools: any pools.
        healthy: ordinary tokens, from which rows are derived.
        repeated: other tokens that need no repair, because the model repeats them when it is asked to.

    Raises:
        InterpError: there are none, or one leaves too few ordinary tokens to derive rows from.
    """
    sound = {*healthy.ids, *repeated}
    found = [pool for pool in pools if set(pool.ids) - sound]
    if not found:
        raise InterpError(f"every pool is part of the ordinary tokens '{healthy.name}': name one to repair")
    for pool in found:
        if len(set(healthy.ids) - set(pool.ids)) < 2:
            raise InterpError(
                f"'{healthy.name}' has too few tokens outside '{pool.name}' to take rows from: give another reference"
            )
    return found


def new_rows(
    model: TransformerBridge,
    repair: str,
    pool: Pool,
    healthy: Pool,
    draw: Callable[..., Repeated],
    *,
    steps: int = 200,
    seed: int = 0,
) -> dict[str, Tensor]:
    """New embedding rows for a pool's tokens.

    Args:
        model: any loaded model.
        repair: one of `ROW_REPAIRS`: `none` (their own), `random` (isotropic Gaussian, at the mean length of ordinary
            rows), `gaussian` (drawn with the mean and covariance of ordinary rows), `mean` (the mean of ordinary rows,
            the same for all), `norm` (their own at the mean length of ordinary rows), `subword_mean` (the mean of the
            rows of the fewest other tokens that spell the token; `norm` where none do), `gradient` (trained with Adam,
            initialized as `gaussian`).
        pool: the tokens.
        healthy: ordinary tokens; those in the pool are left out.
        draw: draws the sequences that `gradient` trains on, as `draw(pool, stream=1)`, `draw(pool, stream=2)`, ...
        steps: training steps of `gradient`.
        seed: decides `random` and `gaussian` rows.

    Returns:
        [token d_model] in order of id, by side: `input` and `output`, or only `input` with tied embeddings.
    """
    ids = torch.tensor(sorted(set(pool.ids)), device=model.cfg.device)
    good = torch.tensor(sorted(set(healthy.ids) - set(pool.ids)), device=ids.device)
    made = {}
    for k, (side, weight) in enumerate(embedding_matrices(model).items()):
        own, ordinary = weight.detach()[ids].clone(), weight.detach()[good]
        length = ordinary.norm(dim=-1).mean()
        noise = torch.randn(own.shape, generator=local_generator(seed, (1 << 23) + k)).to(own)
        same_length = normalize(own, dim=-1) * length
        match repair:
            case "none":
                made[side] = own
            case "random":
                made[side] = normalize(noise, dim=-1) * length
            case "gaussian" | "gradient":
                centred = (ordinary - ordinary.mean(0)).double()
                spread = torch.linalg.eigh(centred.T @ centred / len(centred))
                root = spread.eigenvectors * spread.eigenvalues.clamp_min(0).sqrt()
                made[side] = ordinary.mean(0) + (noise.double() @ root.T).to(own)
            case "mean":
                made[side] = ordinary.mean(0).expand_as(own).clone()
            case "norm":
                made[side] = same_length
            case "subword_mean":
                made[side] = same_length
                for token, parts in _spelled(model, pool).items():
                    made[side][ids == token] = weight.detach()[parts].mean(0)
    return _trained(model, ids, made, pool, draw, steps) if repair == "gradient" else made


def embedding_matrices(model: TransformerBridge) -> dict[str, Tensor]:
    """The weights [token d_model]: `input` and `output`, or only `input` with tied embeddings."""
    network = model.original_model
    found = {"input": network.get_input_embeddings().weight, "output": network.get_output_embeddings().weight}
    if found["input"].data_ptr() == found["output"].data_ptr():
        del found["output"]
    return found


@contextmanager
def rows_replaced(model: TransformerBridge, ids: Iterable[int], rows: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other rows for some tokens; its own are restored on exit.

    Args:
        model: any loaded model.
        ids: the tokens.
        rows: [token d_model] in order of id, by side (`embedding_matrices`), as `new_rows` gives them.
    """
    at, weights = torch.tensor(sorted(set(ids)), device=model.cfg.device), embedding_matrices(model)
    before = {side: weights[side].data[at].clone() for side in rows}
    try:
        for side in rows:
            weights[side].data[at] = rows[side].to(weights[side])
        yield
    finally:
        for side in rows:
            weights[side].data[at] = before[side]


def _spelled(model: TransformerBridge, pool: Pool) -> dict[int, list[int]]:
    """For each token, the fewest tokens outside the pool that spell its text; left out where none do."""
    tokenizer = published_tokenizer(model)
    if tokenizer is None:
        return {}
    names = [entry(tokenizer, i) or "" for i in range(len(embedding_matrices(model)["input"]))]
    own, found = set(pool.ids), {}
    known = {name: i for i, name in enumerate(names) if name and i not in own}
    for token in pool.ids:
        text = names[token] if token < len(names) else ""
        best: list[list[int] | None] = [[]]  # for each prefix of the text, the fewest tokens that spell it
        for end in range(1, len(text) + 1):
            ways = [
                [*head, known[text[start:end]]]
                for start, head in enumerate(best)
                if head is not None and text[start:end] in known
            ]
            best.append(min(ways, key=len, default=None))
        if best[-1]:
            found[token] = best[-1]
    return found


def _trained(
    model: TransformerBridge,
    ids: Tensor,
    start: dict[str, Tensor],
    pool: Pool,
    draw: Callable[..., Repeated],
    steps: int,
) -> dict[str, Tensor]:
    """Rows trained with Adam so that repeated tokens of the pool are predicted; the rest of the model is frozen."""
    weights, head = embedding_matrices(model), model.original_model.get_output_embeddings()
    where = torch.full((len(head.weight),), -1, device=ids.device)
    where[ids] = torch.arange(len(ids), device=ids.device)
    # at least float32: Adam divides by squares of gradients, which half precision rounds to zero
    kind = torch.promote_types(start["input"].dtype, torch.float32)
    rows = {side: value.to(kind, copy=True).requires_grad_() for side, value in start.items()}
    rate = _RATE * float(start["input"].float().std())
    optimizer = torch.optim.Adam(rows.values(), lr=rate)
    state: dict[str, Tensor] = {}

    def embed(value: Tensor, hook: Any, seen: Tensor) -> Tensor:
        at = where[seen]
        return torch.where((at >= 0)[..., None], scale * rows["input"][at.clamp_min(0)].to(value), value)

    def before(value: Tensor, hook: Any) -> None:
        state["residual"] = value

    def unembed(value: Tensor, hook: Any) -> Tensor:
        output = rows.get("output", rows["input"])
        bias = getattr(head, "bias", None)
        logits = state.pop("residual") @ output.T.to(value) + (0.0 if bias is None else bias[ids])
        return value.index_copy(-1, ids, logits)

    # some models scale their embeddings
    fed = record(model, ids[None, :8], ["hook_embed"])["hook_embed"][0].float()
    own = weights["input"].detach()[ids[:8]].float()
    scale = float((fed * own).sum() / own.square().sum())
    trainable = [parameter for parameter in model.original_model.parameters() if parameter.requires_grad]
    batches: list[Repeated] = []
    try:
        model.original_model.requires_grad_(False)
        with torch.enable_grad():
            for step in track(range(steps), f"rows of {pool.name} by gradient", total=steps):
                batches = batches or list(draw(pool, stream=1 + step).split(_SEQUENCES))
                tokens = batches.pop()
                tokens = replace(tokens, ids=ids_of(model, tokens))
                tested = torch.from_numpy(tokens.inducible_tested).to(ids.device)
                others = torch.from_numpy(tokens.inducible).to(ids.device) & ~tested
                hooks = [("hook_embed", partial(embed, seen=tokens.ids)), ("unembed.hook_in", before)]
                hooks.append(("unembed.hook_out", unembed))
                logits = model.run_with_hooks(tokens.ids, fwd_hooks=hooks, prepend_bos=False, use_cache=False)
                scores = log_probs(logits, tokens.ids)
                loss = -scores[tested].mean() - (scores[others].mean() if bool(others.any()) else 0.0)
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    if not all(bool(value.isfinite().all()) for value in rows.values()):
        dtype = str(start["input"].dtype).removeprefix("torch.")
        raise InterpError(f"training rows of '{pool.name}' overflows in {dtype}: use float32, or another repair")
    return {side: value.detach() for side, value in rows.items()}
