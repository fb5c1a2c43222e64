"""Can the rows of tokens that are not copied be rewritten so that they are, and what does it do to ordinary text?"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.files import writable
from interp.heads import reference_pool
from interp.measure import log_probs, ranks
from interp.models import plain_network
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.texts import text_windows
from interp.tokens import Draw, Pool, Repeated, local_generator

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

REPAIRS = ("none", "random", "fresh", "mean", "norm", "parts", "gradient")
_RATE = 0.05  # of the spread of an ordinary row's entries, for each step of Adam
_AT_ONCE = 16  # sequences in one step


def embedding_repair(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    steps: int = 200,
    windows: int = 20,
    text: str = "",
    save: str = "",
    repair: str = "gradient",
    seed: int = 0,
) -> xr.Dataset:
    """Rewrite the embedding rows of a pool's tokens, input and output; copying recovered, and damage done to ordinary text.

    `log_prob` and `correct` [pool repair batch]: mean log-prob (nats) and share of arg-maxima of the tested inducible tokens, on
    sequences that no repair has seen; `paired` [pool batch]: the log-prob of ordinary tokens in their place. `recovered`
    [pool repair bound] is the part of the gap between the two that a repair closes (1: all of it; below 0: worse than before),
    with its 95% interval over sequences; NaN where no gap is sure. `damage` [pool repair window]: KL divergence (nats per token) of the model's
    predictions on a text from what they were, on at most `windows` windows of 100 tokens (fewer where the context is shorter) of the file `text`, or of the part of the Python
    standard library that no bundled model was trained on. Where the text holds the tokens themselves, changes there are counted, too.

    The repairs: `none` (control: nothing is done); `random` (control: Gaussian rows, even in all directions, at the mean length of
    ordinary rows); `fresh` (distinct rows drawn with the mean and covariance of ordinary rows); `mean` (the mean of ordinary
    rows, the same for all); `norm` (the token's own rows at that length); `parts` (the mean of the rows of the fewest other tokens
    that spell its text; `norm` where none do); `gradient` (Adam on these rows only, from `fresh`, for `steps` steps on other repeated
    blocks: the mean log-prob of tested tokens and, in mixed blocks, of the others). With tied embeddings, input and output rows are one.

    `save` is a folder to which the model is written as repaired by `repair`, for the first pool, as a Hugging Face directory. Pools of
    ordinary tokens only are left out. Raises `InterpError` for an unknown repair, where only such pools are left, and for a `save` that exists.
    """
    import torch

    if repair not in REPAIRS or steps < 1 or windows < 1:
        raise InterpError(
            f"repair '{repair}', steps {steps}, windows {windows}: use one of {', '.join(REPAIRS)}, and whole numbers from 1 up"
        )
    if save and Path(save).exists():
        raise InterpError(f"{save} exists: choose another folder to save to")
    if save:
        _check_parent(Path(save))
    healthy = reference_pool(model, reference, seed=seed)
    broken = [pool for pool in pools if set(pool.ids) - set(healthy.ids)]
    if not broken:
        raise InterpError(f"every pool is part of the ordinary tokens '{healthy.name}': name one to repair")
    for pool in broken:
        if len(set(healthy.ids) - set(pool.ids)) < 2:
            raise InterpError(
                f"'{healthy.name}' has no tokens that '{pool.name}' lacks, to take rows from: give another reference"
            )
    width = min(100, (getattr(model.cfg, "n_ctx", None) or 101) - 1)
    rows = text_windows(model, text, width, windows)
    parts = []
    for pool in broken:
        parts.append(_repaired(model, pool, healthy, draw, rows, keep, steps, seed))
    names = xr.DataArray([pool.name for pool in broken], dims="pool", name="pool")
    if save:
        ids = torch.tensor(sorted(broken[0].ids), device=model.cfg.device)
        with torch.no_grad():
            _write(model, ids, _new_rows(model, repair, broken[0], healthy, draw, steps, seed), Path(save))
    return xr.concat([p.drop_attrs() for p in parts], names).assign_attrs(among=healthy.name)


embedding_repair.gradients = True  # type: ignore[attr-defined]


def _repaired(
    model: TransformerBridge, pool: Pool, healthy: Pool, draw: Draw, rows: Tensor, keep: Keep, steps: int, seed: int
) -> xr.Dataset:
    import torch

    from interp.statistics import mean_interval

    ids = torch.tensor(sorted(set(pool.ids)), device=model.cfg.device)
    tokens = draw(pool)
    pair = draw(healthy.without(pool.ids), like=tokens)

    def score(name: str) -> xr.Dataset:
        with torch.no_grad():
            made = _new_rows(model, name, pool, healthy, draw, steps, seed)
            with replaced(model, ids, made):
                log_prob, right = _copied(model, tokens)
            damage = _damage(model, ids, made, rows)
        coords = {"batch": np.arange(len(log_prob)), "window": np.arange(len(damage))}
        return xr.Dataset(
            {
                "log_prob": label("log_prob", log_prob, "batch", coords),
                "correct": label("correct", right, "batch", coords),
                "damage": label("damage", damage, "window", coords),
            }
        )

    with torch.no_grad():
        paired, _ = _copied(model, pair)
    found = [keep(f"{name}, {pool.name}", partial(score, name)) for name in track(REPAIRS, f"repairs of {pool.name}")]
    data = xr.concat(found, xr.DataArray(list(REPAIRS), dims="repair", name="repair"))
    gap = paired - data["log_prob"].sel(repair="none").values
    gained = data["log_prob"].values - data["log_prob"].sel(repair="none").values
    # a part of a gap that is surely there: its mean is given, and the interval is of what is gained of it
    bounds = mean_interval(gained.T) / (gap.mean() if mean_interval(gap)[1] > 0 else np.nan)
    data["recovered"] = label(
        "recovered", bounds.T, "repair bound", {"repair": list(REPAIRS), "bound": ["mean", "low", "high"]}
    )
    data["paired"] = label("paired", paired, "batch", {"batch": np.arange(len(paired))})
    return data


def _new_rows(
    model: TransformerBridge, method: str, pool: Pool, healthy: Pool, draw: Draw, steps: int, seed: int
) -> dict[str, Tensor]:
    """Rows [token d_model] of the pool's tokens in order of id, for the sides `input` and `output`."""
    import torch

    ids = torch.tensor(sorted(set(pool.ids)), device=model.cfg.device)
    good = torch.tensor([i for i in sorted(set(healthy.ids)) if i not in set(pool.ids)], device=ids.device)
    made = {}
    spelled = _spelled(model, pool, set(ids.tolist())) if method == "parts" else {}
    for k, (side, weight) in enumerate(_sides(model).items()):
        own, ordinary = weight.detach()[ids].clone(), weight.detach()[good]
        length = ordinary.norm(dim=-1).mean()
        random = local_generator(seed, (1 << 23) + k)
        noise = torch.randn(own.shape, generator=random).to(own)
        same_length = torch.nn.functional.normalize(own, dim=-1) * length
        if method == "none":
            made[side] = own
        elif method == "random":
            made[side] = torch.nn.functional.normalize(noise, dim=-1) * length
        elif method in ("fresh", "gradient"):
            centred = (ordinary - ordinary.mean(0)).double()
            spread = torch.linalg.eigh(centred.T @ centred / len(centred))
            root = spread.eigenvectors * spread.eigenvalues.clamp_min(0).sqrt()
            made[side] = ordinary.mean(0) + (noise.double() @ root.T).to(own)
        elif method == "mean":
            made[side] = ordinary.mean(0).expand_as(own).clone()
        elif method == "norm":
            made[side] = same_length
        else:
            made[side] = torch.stack(
                [
                    weight.detach()[spelled[t]].mean(0) if t in spelled else same_length[i]
                    for i, t in enumerate(ids.tolist())
                ]
            )
    return _trained(model, ids, made, pool, draw, steps) if method == "gradient" else made


def _sides(model: TransformerBridge) -> dict[str, Any]:
    """The embedding matrices: `input` and `output`, or the one that serves as both."""
    network = model.original_model
    found = {"input": network.get_input_embeddings().weight, "output": network.get_output_embeddings().weight}
    if found["input"].data_ptr() == found["output"].data_ptr():
        del found["output"]
    return found


@contextmanager
def replaced(model: TransformerBridge, ids: Tensor, rows: dict[str, Tensor]) -> Iterator[None]:
    """The model with other rows for some tokens; its own come back at the end."""
    sides = _sides(model)
    before = {side: weight.data[ids].clone() for side, weight in sides.items()}
    try:
        for side, weight in sides.items():
            weight.data[ids] = rows[side].to(weight)
        yield
    finally:
        for side, weight in sides.items():
            weight.data[ids] = before[side]


def _spelled(model: TransformerBridge, pool: Pool, without: set[int]) -> dict[int, list[int]]:
    """For each token, the fewest other tokens whose texts join to its text; tokens that none do are left out."""
    size = len(_sides(model)["input"])
    if model.tokenizer is None:
        return {}
    names = [str(name) for name in model.tokenizer.convert_ids_to_tokens(list(range(min(size, len(model.tokenizer)))))]
    known = {name: i for i, name in enumerate(names) if name and i not in without}
    found = {}
    for token in pool.ids:
        text = names[token] if token < len(names) else ""
        best: list[list[int] | None] = [[]] + [None] * len(text)
        for end in range(1, len(text) + 1):
            for start in range(end):
                head, part = best[start], known.get(text[start:end])
                if (
                    head is not None
                    and part is not None
                    and (best[end] is None or len(head) + 1 < len(best[end] or []))
                ):
                    best[end] = [*head, part]
        if text and best[-1]:
            found[token] = best[-1]
    return found


def _trained(
    model: TransformerBridge, ids: Tensor, start: dict[str, Tensor], pool: Pool, draw: Draw, steps: int
) -> dict[str, Tensor]:
    """Rows moved by Adam, so that repeated tokens of the pool are predicted; nothing else of the model changes."""
    import torch

    network = model.original_model
    size = network.get_output_embeddings().weight.shape[0]
    where = torch.full((size,), -1, device=ids.device)
    where[ids] = torch.arange(len(ids), device=ids.device)
    rows = {side: value.detach().clone().requires_grad_(True) for side, value in start.items()}
    rate = _RATE * float(start["input"].std())
    optimizer = torch.optim.Adam(rows.values(), lr=rate)

    def embed(value: Tensor, hook: Any, seen: Tensor) -> Tensor:
        at = where[seen]
        return torch.where((at >= 0)[..., None], scale * rows["input"][at.clamp_min(0)].to(value), value)

    state: dict[str, Tensor] = {}
    # some models scale what they embed
    look: list[Any] = [("hook_embed", lambda value, hook: state.update(fed=value.detach()))]
    model.run_with_hooks(ids[None, :8], fwd_hooks=look, prepend_bos=False, return_type=None, use_cache=False)
    fed, own = state.pop("fed")[0].float(), network.get_input_embeddings().weight.detach()[ids[:8]].float()
    scale = float((fed * own).sum() / own.square().sum())

    def before(value: Tensor, hook: Any) -> None:
        state["residual"] = value

    def unembed(value: Tensor, hook: Any) -> Tensor:
        output = rows.get("output", rows["input"])
        bias = getattr(network.get_output_embeddings(), "bias", None)
        logits = state.pop("residual") @ output.T.to(value) + (0.0 if bias is None else bias[ids])
        return value.index_copy(-1, ids, logits)

    frozen = [p for p in model.original_model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            batches: list[Repeated] = []
            for step in track(range(steps), f"rows of {pool.name} by gradient", total=steps):
                if not batches:
                    batches = list(draw(pool, others=1 + step).split(_AT_ONCE))
                tokens = batches.pop()
                tested = torch.from_numpy(tokens.inducible_tested).to(ids.device)
                others = torch.from_numpy(tokens.inducible).to(ids.device) & ~tested
                hooks = [
                    ("hook_embed", partial(embed, seen=tokens.ids)), ("unembed.hook_in", before), ("unembed.hook_out", unembed),
                ]  # fmt: skip
                logits = model.run_with_hooks(tokens.ids, fwd_hooks=hooks, prepend_bos=False, use_cache=False)
                scores = log_probs(logits, tokens.ids)
                loss = -scores[tested].mean() - (scores[others].mean() if bool(others.any()) else 0.0)
                for group in optimizer.param_groups:
                    group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {side: value.detach() for side, value in rows.items()}


def _copied(model: TransformerBridge, tokens: Repeated) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-prob and share of arg-maxima of the tested inducible tokens, each [batch]."""
    import torch

    log_prob: list[Tensor] = []
    right: list[Tensor] = []
    for part in tokens.split(tokens.rows_per_pass()):
        read = torch.from_numpy(part.inducible_tested).to(part.ids.device)
        if not bool(read.any(1).all()):
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        logits = model(part.ids, prepend_bos=False)
        for found, values in ((log_prob, log_probs(logits, part.ids)), (right, (ranks(logits, part.ids) == 0).float())):
            found.append((values.nan_to_num() * read).sum(1) / read.sum(1))
    return torch.cat(log_prob).cpu().numpy(), torch.cat(right).cpu().numpy()


def _damage(model: TransformerBridge, ids: Tensor, rows: dict[str, Tensor], windows: Tensor) -> np.ndarray:
    """[window]: mean KL divergence of the repaired model's predictions from the model's own, nats per token."""
    import torch

    found: list[Tensor] = []
    for part in windows.split(max(1, (1 << 25) // (windows.shape[1] * len(_sides(model)["input"])))):
        own = model(part, prepend_bos=False).float().log_softmax(-1)
        with replaced(model, ids, rows):
            new = model(part, prepend_bos=False).float().log_softmax(-1)
        found.append((own.exp() * (own - new)).sum(-1).mean(-1))
    return torch.cat(found).cpu().numpy()


def _check_parent(folder: Path) -> None:
    try:
        writable(folder.absolute().parent)
    except InterpError as error:
        raise InterpError(f"{str(error).split(':')[0]}: choose another folder to save to") from error


def _write(model: TransformerBridge, ids: Tensor, rows: dict[str, Tensor], folder: Path) -> None:
    """The repaired model as a Hugging Face directory, whole or not at all."""
    part = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with replaced(model, ids, rows):
            network: Any = plain_network(model)
            network.save_pretrained(part)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
