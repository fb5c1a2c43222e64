"""What do the heads of the copying circuit do on ordinary tokens? These are the values that minimal repairs restore."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from interp.circuits import taken_in, value_weights
from interp.errors import InterpError
from interp.hooks import Head, kv_head, name_of, record
from interp.progress import track
from interp.repairs.minimal import attention_masses
from interp.repairs.unembedding import normalized_inputs
from interp.tokens import Draw, Pool

_STREAM = 1 << 20  # of the draws made here, which are used nowhere else
_SAMPLES = 12  # tokens per dimension of the residual stream that a value map is fitted to
_LEAST_SAMPLES = 4096
_MASS_PLACES = 512  # at least, for mean attention
_FOLDS = 5
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # relative to the mean variance of rows; the best on held-out tokens is used


@dataclass(frozen=True)
class OrdinaryHeads:
    """For each head its mean attention, the strength of what it carries, and the directions of tokens in its values.

    Attributes:
        induction: the heads (layer, head) that are classified as induction heads.
        previous: those classified as previous-token heads.
        induction_mass: [head], the induction heads' mean attention, where an inducible token is predicted, to the keys
            that hold it.
        previous_mass: [head], the previous-token heads' mean attention, at a token's earlier occurrences, to the token
            before.
        values: the key-value heads (layer, head) that the induction heads read.
        centre: [value head d_head], their mean value.
        inputs: [token d_model], input rows at length 1, minus the mean of ordinary tokens.
        maps: [value head d_model d_head], linear maps from input rows to values, fitted to ordinary tokens.
        strength: [value head], the mean component of an ordinary token's value in its own direction, by maps that were
            fitted to other tokens, because a pool's tokens are not among the fitted ones either.
        scale: the factor on the mean attention of induction heads with which ordinary tokens stay unchanged.
    """

    induction: tuple[Head, ...]
    previous: tuple[Head, ...]
    induction_mass: Tensor
    previous_mass: Tensor
    values: tuple[Head, ...]
    centre: Tensor
    inputs: Tensor
    maps: Tensor
    strength: Tensor
    scale: float = 1.0

    @classmethod
    def of(cls, model: TransformerBridge, found: xr.Dataset) -> Self:
        """From the result of `ordinary_heads`."""
        device = model.original_model.get_input_embeddings().weight.device

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.asarray(found[name].values, dtype=np.float32)).to(device)

        def heads(name: str) -> tuple[Head, ...]:
            return tuple((int(layer), int(head)) for layer, head in found[name].values)

        inputs = normalized_inputs(model) - tensor("row_centre")
        masses = tensor("induction_mass"), tensor("previous_mass")
        return cls(
            heads("induction"),
            heads("previous"),
            *masses,
            heads("value"),
            tensor("value_centre"),
            inputs,
            tensor("value_map"),
            tensor("strength"),
        )

    @property
    def repaired_mass(self) -> Tensor:
        """[head]: the attention to the correct keys that repaired induction heads pay."""
        return self.scale * self.induction_mass

    def towards(self, ids: Tensor, v: int) -> Tensor:
        """[... d_head]: the unit vectors that encode tokens [...] in the values of a key-value head."""
        return normalize(self.inputs[ids] @ self.maps[v], dim=-1)


def ordinary_heads(
    model: TransformerBridge, induction: Sequence[Head], previous: Sequence[Head], draw: Draw, healthy: Pool
) -> xr.Dataset:
    """Measure the attention and the values of heads on ordinary tokens, in sequences that are used for nothing else.

    Args:
        model: any loaded model.
        induction: heads (layer, head) classified as induction heads, at least one.
        previous: heads classified as previous-token heads.
        draw: draws sequences.
        healthy: ordinary tokens.

    Returns:
        `induction_mass` [induction_head], `previous_mass` [previous_head], mean attention; `value_map` [value_head
        d_model d_head], from an input row at length 1, less `row_centre` [d_model], to a value less `value_centre`
        [value_head d_head]; `strength` [value_head], the mean component of a value in its own token's direction;
        `told` [value_head], the share of the variance of values that the map explains. The last two are measured on
        tokens that the map was not fitted to.

    Raises:
        InterpError: the values of the heads are not accessible.
    """
    ids, values, shared = _values(model, induction, draw, healthy)
    inputs = normalized_inputs(model)
    centre = inputs[ids].mean(0)
    rows = inputs[ids] - centre
    mean = values.mean(1, keepdim=True)
    maps, told, along = _value_maps(rows, ids, values - mean, _weights(model, shared))
    masses = _masses(model, induction, previous, draw, healthy)
    pairs = {"induction": induction, "previous": previous, "value": shared}
    measured = {
        "induction_mass": ("induction_head", masses[0]),
        "previous_mass": ("previous_head", masses[1]),
        "row_centre": ("d_model", centre),
        "value_map": (("value_head", "d_model", "d_head"), maps),
        "value_centre": (("value_head", "d_head"), mean[:, 0]),
        "strength": ("value_head", along.mean(1)),
        "told": ("value_head", told),
    }
    data = {name: (dims, array.detach().cpu().numpy()) for name, (dims, array) in measured.items()}
    where = {
        name: ((f"{name}_head", "layer_and_head"), np.array(heads, dtype=int).reshape(-1, 2))
        for name, heads in pairs.items()
    }
    return xr.Dataset({**data, **where})


def _masses(
    model: TransformerBridge, induction: Sequence[Head], previous: Sequence[Head], draw: Draw, healthy: Pool
) -> tuple[Tensor, Tensor]:
    """Mean attention of the induction heads and of the previous-token heads, [head] each."""
    found: list[tuple[Tensor, Tensor]] = []
    while sum(len(mass) for mass, _ in found) < _MASS_PLACES and len(found) < 64:
        tokens = draw(healthy, stream=_STREAM + len(found))
        found.append(attention_masses(model, tokens, induction, previous))
    first, second = (torch.cat(masses).mean(0) for masses in zip(*found, strict=True))
    return first, second


def _values(
    model: TransformerBridge, induction: Sequence[Head], draw: Draw, healthy: Pool
) -> tuple[Tensor, Tensor, list[Head]]:
    """Ordinary tokens [sample] of first copies, and their values [value head sample d_head]."""
    shared = sorted({(layer, kv_head(model, head)) for layer, head in induction})
    names = {layer: name_of(model, layer, "v") for layer, _ in shared}
    wanted = max(_LEAST_SAMPLES, _SAMPLES * int(model.cfg.d_model))
    some = draw(healthy, stream=_STREAM)
    start, per_draw = int(some.bos is not None), len(some.ids) * some.length
    ids, values = [], []
    together = max(1, 1024 // per_draw)  # draws in one pass
    streams = range(0, -(-wanted // per_draw), together)
    for first in track(streams, "what heads carry from ordinary tokens", total=len(streams)):
        drawn = [draw(healthy, stream=_STREAM + first + k).ids[:, : start + some.length] for k in range(together)]
        fed = torch.cat(drawn)
        seen = record(model, fed, names.values())
        ids.append(fed[:, start:].flatten())
        of_pass = [seen[names[layer]] for layer, _ in shared]
        if any(value.ndim != 4 for value in of_pass):
            raise InterpError("the values of this model's heads cannot be separated: use repairs='transplant'")
        values.append(
            torch.stack([v[:, start:, h].flatten(0, 1).float() for v, (_, h) in zip(of_pass, shared, strict=True)])
        )
    return torch.cat(ids), torch.cat(values, 1), shared


def _weights(model: TransformerBridge, shared: Sequence[Head]) -> Tensor:
    """[value head d_model d_head]: the heads' own maps from a row to a value; zero where no single matrix does this."""
    width, size = int(model.cfg.d_model), int(model.cfg.d_head)
    device = model.original_model.get_input_embeddings().weight.device
    try:
        weights = value_weights(model)
    except InterpError:
        return torch.zeros((len(shared), width, size), device=device)
    readers = {(layer, kv_head(model, h)): h for layer, _ in shared for h in reversed(range(model.cfg.n_heads))}
    rows = torch.eye(width, device=device)
    return torch.stack([taken_in(model, la, rows).float() @ weights[la][readers[la, h]] for la, h in shared]).detach()


def _value_maps(rows: Tensor, ids: Tensor, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps from rows to values, what they explain, and components of values along directions from other tokens' maps.

    Ridge regressions of what the heads' own weights leave unexplained, so that these decide where no row was seen.

    Returns:
        [value head d_model d_head], [value head] and [value head sample].
    """
    fold = ids.unique(return_inverse=True)[1] % _FOLDS  # by token, so that no token is in both fit and test

    def fitted(at: Tensor, ridge: float) -> Tensor:
        own = torch.einsum("sd,vdh->vsh", rows[at], weights)
        scale = (own * values[:, at]).sum((1, 2)) / own.square().sum((1, 2)).clamp_min(1e-12)
        start = scale[:, None, None] * weights
        left = values[:, at] - torch.einsum("sd,vdh->vsh", rows[at], start)
        gram = rows[at].T @ rows[at]
        gram = gram + ridge * gram.trace() / len(gram) * torch.eye(len(gram)).to(gram)
        return start + torch.linalg.solve(gram, torch.einsum("sd,vsh->vdh", rows[at], left))

    held = fold == 0
    total = values[:, held].square().sum((1, 2))
    explained = []
    for ridge in _RIDGES:
        left = values[:, held] - torch.einsum("sd,vdh->vsh", rows[held], fitted(~held, ridge))
        explained.append(1 - left.square().sum((1, 2)) / total)
    scores = torch.stack(explained)  # [ridge value head]
    best = scores.argmax(0)

    def chosen(at: Tensor) -> Tensor:
        maps = {int(i): fitted(at, _RIDGES[int(i)]) for i in best.unique()}
        return torch.stack([maps[int(i)][v] for v, i in enumerate(best)])

    along = torch.empty_like(values[..., 0])
    for k in range(_FOLDS):
        at = fold == k
        directions = normalize(torch.einsum("sd,vdh->vsh", rows[at], chosen(~at)), dim=-1)
        along[:, at] = (values[:, at] * directions).sum(-1)
    return chosen(torch.ones_like(held)), scores.max(0).values, along


def without_values(model: TransformerBridge, induction: Sequence[Head]) -> str:
    """Why the attention and the values of these heads cannot be set on this model; "" where they can."""
    if not induction:
        return "no head is classified as an induction head"
    try:
        for layer, _ in induction:
            name_of(model, layer, "v")
    except InterpError:
        return "the values of its heads cannot be read"
    return ""
