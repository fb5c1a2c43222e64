"""What does a run on one token, again and again, say: what comes next, how long is the stream, where is looked?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.hooks import Hook, attention_layers, forget_patterns, name_of, patch, record, run_to_stop, stop
from interp.models import token_texts
from interp.progress import track
from interp.results import label
from interp.tokens import Pool, local_generator

REMOVED = ("massive dimensions", "control dimensions")
REPLACED = ("ordinary first layer", "repeated first layer", "lone first layer")
CHANGES = ("none", *REMOVED, *REPLACED)
SPECIAL = 3.0  # times the norm of other positions, from which a first position is special
_MASSIVE = 0.1  # of the squared norm of a first position, from which a dimension is massive
_TOKENS = 1024  # in one forward pass
_STREAM = 1 << 16  # draws for different purposes are so many streams apart


@dataclass(frozen=True)
class Drawn:
    """The sequences of a run of the experiment: all follow from these, and row i from the seed and i alone."""

    model: TransformerBridge
    ordinary: Pool
    members: int
    length: int
    block: int
    seed: int

    def behind(self, front: int | None, ids: Tensor) -> Tensor:
        """The same ids, on the model's device, after the first token."""
        ids = ids if front is None else torch.nn.functional.pad(ids, (1, 0), value=front)
        return ids.to(self.model.cfg.device)

    def members_of(self, pool: Pool) -> Tensor:
        """[member]: the tokens of a pool that are repeated."""
        return _chosen(pool.ids, self.members, self.seed, 0)

    def repeated(self, tokens: Tensor) -> Tensor:
        """[member position]: each token again and again."""
        return tokens[:, None].repeat(1, self.length)

    def ordinary_rows(self) -> Tensor:
        """[member position]: ordinary tokens, distinct where there are enough."""
        ids = self.ordinary.ids
        return torch.stack([_chosen(ids, self.length, self.seed, _STREAM + i) for i in range(self.members)])

    def others(self, tokens: Tensor) -> Tensor:
        """[member]: an ordinary token for each, that is another."""
        pairs = zip(self.ordinary_rows(), tokens, strict=True)
        return torch.stack([torch.cat([row[row != token], row])[0] for row, token in pairs])

    def blocks(self, pool: Pool) -> Tensor | None:
        """[member position]: blocks of distinct tokens, repeated, with one position more; None of one token."""
        size = min(self.block, len(pool))
        if size < 2:
            return None
        rows = [_chosen(pool.ids, size, self.seed, 2 * _STREAM + i) for i in range(self.members)]
        return torch.stack(rows).repeat(1, 1 + self.length // size)[:, : self.length + 1]


def _chosen(ids: Sequence[int], count: int, seed: int, stream: int) -> Tensor:
    """Distinct ids, or with replacement where there are too few."""
    generator = local_generator(seed, stream)
    if len(ids) < count:
        return torch.tensor(ids)[torch.randint(len(ids), (count,), generator=generator)]
    return torch.tensor(ids)[torch.randperm(len(ids), generator=generator)[:count]]


@dataclass(frozen=True)
class Sink:
    """What is special in a first position, and what ordinary positions have in its place.

    Attributes:
        layer: behind which its norm exceeds that of the others most.
        special: whether it does so three times or more.
        dimensions: those that hold a tenth or more of its squared norm there; none where it is not special.
        usual: [layer feature], the mean of the residual stream over ordinary positions.
    """

    layer: int
    special: bool
    dimensions: list[int]
    usual: np.ndarray

    @staticmethod
    def of(about: xr.Dataset) -> Sink:
        """From what `ordinary_positions` measured."""
        special = about["special"].values
        layer = int(special.argmax())
        square = about["first"].values[layer] ** 2
        found = np.flatnonzero(square >= _MASSIVE * square.sum()) if special[layer] >= SPECIAL else np.array([], int)
        return Sink(layer, bool(special[layer] >= SPECIAL), found.tolist(), about["usual"].values)

    def removal(self, model: TransformerBridge, dimensions: list[int], start: int) -> list[Hook]:
        """Hooks that set dimensions to their means at ordinary positions, after every layer, from a position on."""

        def hook(value: Tensor, hook: Any, usual: Tensor) -> Tensor:
            value = value.clone()
            value[:, start:, dimensions] = usual.to(value)
            return value

        usual = torch.from_numpy(self.usual)[:, dimensions]
        return [(_stream(model, layer), partial(hook, usual=usual[layer])) for layer in range(model.cfg.n_layers)]


def _stream(model: TransformerBridge, layer: int) -> str:
    return name_of(model, layer, "resid_post")


def ordinary_positions(drawn: Drawn, front: int | None) -> xr.Dataset:
    """How special the first position of ordinary sequences is.

    Args:
        drawn: the sequences.
        front: what stands first.

    Returns:
        `special` [layer]: the mean norm of the first position, over the median of later ones (the first quarter left
        out, as it is short of context); `first` and `usual` [layer feature], the means of the two.
    """
    model, ids = drawn.model, drawn.behind(front, drawn.ordinary_rows())
    late = max(1, ids.shape[1] // 4)
    seen: dict[str, list[list[Tensor]]] = {
        what: [[] for _ in range(model.cfg.n_layers)] for what in ("first", "usual", "norm", "norms")
    }

    def see(value: Tensor, hook: Any, layer: int) -> None:
        value = value.float()
        seen["first"][layer].append(value[:, 0].cpu())
        seen["usual"][layer].append(value[:, late:].mean(1).cpu())
        seen["norm"][layer].append(value[:, 0].norm(dim=-1).cpu())
        seen["norms"][layer].append(value[:, late:].norm(dim=-1).flatten().cpu())

    hooks: list[Hook] = [(_stream(model, layer), partial(see, layer=layer)) for layer in range(model.cfg.n_layers)]
    parts = ids.split(max(1, _TOKENS // ids.shape[1]))
    for part in track(parts, "ordinary tokens", total=len(parts)):
        with torch.no_grad():
            run_to_stop(model, part, [*hooks, ("unembed.hook_in", stop)])
    by = {what: torch.stack([torch.cat(of) for of in layers]) for what, layers in seen.items()}
    return xr.Dataset(
        {
            "special": label("special", by["norm"].mean(1) / by["norms"].median(1).values, "layer"),
            "first": label("first", by["first"].mean(1), "layer feature"),
            "usual": label("usual", by["usual"].mean(1), "layer feature"),
        }
    )


def measured(drawn: Drawn, pool: Pool, front: int | None, grid: np.ndarray, sink: Sink) -> xr.Dataset:
    """All measurements of one pool after one front: what `repeated_token` returns, without its summaries."""
    model, start = drawn.model, int(front is not None)
    tokens = drawn.members_of(pool)
    ids = drawn.behind(front, drawn.repeated(tokens))
    at = torch.from_numpy(start + grid - 1)
    asked = tokens[:, None].repeat(1, len(grid))
    data = _seen(model, ids, at, asked, attention=True)
    log_prob = np.full((len(CHANGES), len(tokens), len(grid)), np.nan)
    share = np.full((len(CHANGES), len(tokens)), np.nan)
    log_prob[0] = data["log_prob"]
    if sink.special:
        share[0] = data["norm"][sink.layer, :, -1] / data["first_norm"][sink.layer]
        for i, change in enumerate(CHANGES[1:], start=1):
            hooks = _changes(drawn, change, tokens, front, sink)
            if hooks:
                changed = _seen(model, ids, at, asked, hooks=hooks)
                share[i] = changed["norm"][sink.layer, :, -1] / changed["first_norm"][sink.layer]
                if change in REMOVED:
                    log_prob[i] = changed["log_prob"]
    block_log_prob = np.full((len(tokens), len(grid)), np.nan)
    blocks = drawn.blocks(pool)
    if blocks is not None:
        of_blocks = _seen(model, drawn.behind(front, blocks[:, :-1]), at, blocks[:, torch.from_numpy(grid)])
        block_log_prob = np.where(grid < min(drawn.block, len(pool)), np.nan, of_blocks["log_prob"])
    alone, among = _first_layer_alone(drawn, tokens, front)
    own = data["first_layer"]
    coords = {
        "change": list(CHANGES),
        "member": np.arange(len(tokens)),
        "repeats": grid,
        "token_id": ("member", tokens.numpy()),
        "text": ("member", np.array(token_texts(model, tokens.tolist()), dtype=object)),
    }
    named = {
        "log_prob": (log_prob, "change member repeats"),
        "block_log_prob": (block_log_prob, "member repeats"),
        "share": (share, "change member"),
        "norm": (data["norm"], "layer member repeats"),
        "first_norm": (data["first_norm"], "layer member"),
        "attention_first": (data["attention_first"], "layer member repeats"),
        "attention_self": (data["attention_self"], "layer member repeats"),
        "cosine": (torch.cosine_similarity(own, alone[:, None], dim=-1).numpy(), "member repeats"),
        "other_cosine": (torch.cosine_similarity(among, alone, dim=-1).numpy(), "member"),
    }
    return xr.Dataset({name: label(name, values, dims, coords) for name, (values, dims) in named.items()})


def _changes(drawn: Drawn, change: str, tokens: Tensor, front: int | None, sink: Sink) -> list[Hook]:
    """Hooks of a change at the repeats; none where there is nothing to remove."""
    model, first = drawn.model, 1 + (front is not None)
    if change in REMOVED:
        dimensions = sink.dimensions
        if change == "control dimensions":
            left = [i for i in range(sink.usual.shape[1]) if i not in set(dimensions)]
            count = min(len(dimensions), len(left))
            dimensions = _chosen(left, count, drawn.seed, 3 * _STREAM).tolist() if count else []
        return sink.removal(model, dimensions, first) if dimensions else []
    if model.cfg.n_layers < 2:
        return []  # after the only layer nothing is left that could differ
    name = _stream(model, 0)
    if change == "lone first layer":
        alone = record(model, drawn.behind(None, tokens[:, None]), [name])[name]
        other = {name: alone.repeat(1, first - 1 + drawn.length, 1)}
    else:
        rows = drawn.ordinary_rows() if change == "ordinary first layer" else drawn.repeated(drawn.others(tokens))
        other = record(model, drawn.behind(front, rows), [name])
    return [patch(model, name, other, positions=range(first, first - 1 + drawn.length))]


def _first_layer_alone(drawn: Drawn, tokens: Tensor, front: int | None) -> tuple[Tensor, Tensor]:
    """[member feature] twice: the first layer's output at a lone first token, and at it after ordinary tokens."""
    model, name = drawn.model, _stream(drawn.model, 0)
    alone = record(model, tokens[:, None].to(model.cfg.device), [name])[name][:, -1]
    rows = drawn.ordinary_rows()
    rows[:, -1] = tokens
    among = record(model, drawn.behind(front, rows), [name])[name][:, -1]
    return alone.float().cpu(), among.float().cpu()


def _seen(
    model: TransformerBridge,
    ids: Tensor,
    at: Tensor,
    asked: Tensor,
    *,
    hooks: Sequence[Hook] = (),
    attention: bool = False,
) -> dict[str, Any]:
    """What is read at some positions of a run.

    Args:
        model: any loaded model.
        ids: [row position].
        at: [place], the positions.
        asked: [row place], the tokens whose log-prob is read there, as what comes next.
        hooks: interventions on all rows at once.
        attention: whether attention is looked at.

    Returns:
        `log_prob` [row place], nats; `norm` [layer row place] and `first_norm` [layer row] of the stream after each
        layer; `attention_first` and `attention_self` [layer row place], NaN where there is none; `first_layer`
        [row place feature].
    """
    layers, rows, places = model.cfg.n_layers, len(ids), len(at)
    found: dict[str, Any] = {"first_norm": np.full((layers, rows), np.nan)}
    found["norm"] = np.full((layers, rows, places), np.nan)
    found |= {f"attention_{to}": np.full((layers, rows, places), np.nan) for to in ("first", "self")}
    at = at.to(model.cfg.device)

    def stream(value: Tensor, hook: Any, layer: int) -> None:
        at_places = value[:, at.to(value.device)].float()
        found["norm"][layer] = at_places.norm(dim=-1).cpu()
        found["first_norm"][layer] = value[:, 0].float().norm(dim=-1).cpu()
        if layer == 0:
            found["first_layer"] = at_places.cpu()

    def pattern(value: Tensor, hook: Any, layer: int) -> None:
        of = at.to(value.device)
        found["attention_first"][layer] = value[:, :, of, 0].float().mean(1).cpu()
        found["attention_self"][layer] = value[:, :, of, of].float().mean(1).cpu()

    def forget(value: Any, hook: Any) -> None:
        forget_patterns(model)  # before the next layer makes its own

    def places_alone(value: Tensor, hook: Any) -> Tensor:
        return value[:, at.to(value.device)]  # of other positions, no logits are needed

    added: list[Hook] = [*hooks, *((_stream(model, i), partial(stream, layer=i)) for i in range(layers))]
    if attention:
        for layer in _attending(model):
            added.append((name_of(model, layer, "pattern"), partial(pattern, layer=layer)))
            added.append((f"blocks.{layer}.attn.hook_out", forget))
    try:
        with torch.no_grad():
            fwd_hooks = [*added, ("unembed.hook_in", places_alone)]
            logits = model.run_with_hooks(ids, fwd_hooks=fwd_hooks, return_type="logits", prepend_bos=False)
    finally:
        forget_patterns(model)
    scores = logits.float().log_softmax(-1)
    found["log_prob"] = scores.gather(-1, asked.to(scores.device)[..., None])[..., 0].cpu().numpy()
    return found


def _attending(model: TransformerBridge) -> list[int]:
    try:
        return attention_layers(model)
    except InterpError:
        return []
