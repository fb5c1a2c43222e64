"""Which activations of the residual stream are far larger than the others, and what are dimensions set to instead?"""

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

from interp.hooks import Hook, name_of, run_to_stop, stop
from interp.measure import log_probs
from interp.progress import track
from interp.results import label
from interp.tokens import local_generator

RULES = ("published", "scale-free")
LEAST, TIMES = 100.0, 1000.0  # the published rule: above this, and so many times the median of the hidden state
NTH = 8  # activations of a state that are kept, the largest first
_TOKENS = 1024  # in one forward pass
_STREAM = 1 << 20  # of the draws of rotations


@dataclass(frozen=True)
class Windows:
    """Sequences of one kind: their ids, and which tokens are read, by the token predicted; each [batch position]."""

    name: str
    ids: Tensor
    read: Tensor

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """The ids and what is read, those of one forward pass after another."""
        size = max(1, _TOKENS // self.ids.shape[1])
        return list(zip(self.ids.split(size), self.read.split(size), strict=True))


def rotations(width: int, count: int, seed: int) -> list[Tensor]:
    """Random rotations [feature feature], uniform over all (Haar): the orthogonal factor of Gaussian matrices.

    Source: F. Mezzadri, "How to generate random matrices from the classical compact groups" (2007).
    """
    found = []
    for i in range(count):
        q, r = torch.linalg.qr(torch.randn(width, width, generator=local_generator(seed, _STREAM + i)))
        found.append(q * r.diagonal().sign())
    return found


def largest_ratio(states: Tensor) -> Tensor:
    """The largest magnitude of a state over the median of its own, at its largest over states [state feature]."""
    size = states.abs()
    return (size.amax(-1) / size.median(-1).values.clamp_min(1e-30)).amax()


def magnitudes(model: TransformerBridge, windows: Windows, turns: Sequence[Tensor]) -> xr.Dataset:
    """The largest activations after every layer, their dimensions, and medians.

    Args:
        model: any loaded model.
        windows: what is run.
        turns: rotations [feature feature]; none where no null is needed.

    Returns:
        `magnitude` and `dimension` [layer batch position nth], the largest first; `state_median` [layer batch
        position], of one position; `median` [layer batch], of all positions of a sequence; `rotated` [rotation], the
        `largest_ratio` of all states of all layers, rotated.
    """
    layers = range(model.cfg.n_layers)
    seen: dict[str, list[list[Tensor]]] = {
        what: [[] for _ in layers] for what in ("magnitude", "dimension", "state_median", "median")
    }
    rotated = torch.zeros(len(turns))
    turns = [turn.to(model.cfg.device) for turn in turns]

    def see(value: Tensor, hook: Any, layer: int) -> None:
        value = value.float()
        size = value.abs()
        top = size.topk(min(NTH, size.shape[-1]), dim=-1)
        seen["magnitude"][layer].append(top.values.cpu())
        seen["dimension"][layer].append(top.indices.cpu())
        seen["state_median"][layer].append(size.median(-1).values.cpu())
        seen["median"][layer].append(size.flatten(1).median(-1).values.cpu())
        for i, turn in enumerate(turns):
            rotated[i] = max(rotated[i], largest_ratio(value.flatten(0, 1) @ turn.to(value.device)).cpu())

    hooks: list[Hook] = [(name_of(model, layer, "resid_post"), partial(see, layer=layer)) for layer in layers]
    parts = windows.parts()
    for ids, _ in track(parts, f"activations on {windows.name}", total=len(parts)):
        with torch.no_grad():
            run_to_stop(model, ids, [*hooks, ("unembed.hook_in", stop)])
    by = {what: torch.stack([torch.cat(of) for of in values]) for what, values in seen.items()}
    dims = {"magnitude": "layer batch position nth", "dimension": "layer batch position nth"}
    dims |= {"state_median": "layer batch position", "median": "layer batch"}
    coords = {"batch": np.arange(len(windows.ids)), "position": np.arange(windows.ids.shape[1])}
    named = {what: label(what, values, dims[what], coords) for what, values in by.items()}
    return xr.Dataset({**named, "rotated": label("rotated", rotated, "rotation")})


def called(found: xr.Dataset, rule: str, threshold: float) -> np.ndarray:
    """[layer batch position nth], bool: which of the largest activations are massive by a rule.

    Args:
        found: what `magnitudes` returns.
        rule: "published", or "scale-free".
        threshold: of the scale-free rule, times the median of the activation's own state.
    """
    size = found["magnitude"].values
    if rule == "published":
        return (size > LEAST) & (size > TIMES * found["median"].values[..., None, None])
    return size > threshold * found["state_median"].values[..., None]


@dataclass(frozen=True)
class Chosen:
    """What is changed: some dimensions, after every layer from one on; and by which rule activations are massive."""

    rule: str
    threshold: float
    layer: int
    dimensions: list[int]

    @staticmethod
    def of(groups: Sequence[xr.Dataset], threshold: float, most: int) -> Chosen | None:
        """By the published rule where it finds any, else by the scale-free one; None where neither finds any."""
        for rule in RULES:
            masks = [called(group, rule, threshold) for group in groups]
            if any(mask.any() for mask in masks):
                sizes: dict[int, float] = {}
                for group, mask in zip(groups, masks, strict=True):
                    times = group["magnitude"].values / group["state_median"].values[..., None]
                    for dimension in np.unique(group["dimension"].values[mask]):
                        at = mask & (group["dimension"].values == dimension)
                        sizes[int(dimension)] = max(sizes.get(int(dimension), 0.0), float(times[at].max()))
                layer = min(int(np.flatnonzero(mask.any((1, 2, 3)))[0]) for mask in masks if mask.any())
                return Chosen(rule, threshold, layer, sorted(sizes, key=lambda d: -sizes[d])[:most])
        return None

    def sinks(self, found: xr.Dataset) -> Tensor:
        """[batch position], bool: where a chosen dimension is massive, after any layer."""
        mask = called(found, self.rule, self.threshold) & np.isin(found["dimension"].values, self.dimensions)
        return torch.from_numpy(mask.any((0, 3)))

    def control(self, width: int, draw: int, seed: int) -> list[int]:
        """The same number of other dimensions, drawn at random."""
        left = [i for i in range(width) if i not in set(self.dimensions)]
        order = torch.randperm(len(left), generator=local_generator(seed, 2 * _STREAM + draw)).tolist()
        return [left[i] for i in order[: len(self.dimensions)]]


def usual_values(model: TransformerBridge, windows: Windows, sinks: Tensor) -> Tensor:
    """[layer place feature]: the mean state after each layer, at sinks and at the other positions; NaN for none."""
    layers = range(model.cfg.n_layers)
    width = int(model.cfg.d_model)
    sums, counts = torch.zeros(len(layers), 2, width, dtype=torch.float64), torch.zeros(2)
    at: list[Tensor] = []

    def see(value: Tensor, hook: Any, layer: int) -> None:
        for i, mask in enumerate((at[0], ~at[0])):
            sums[layer, i] += value[mask.to(value.device)].double().sum(0).cpu()

    hooks: list[Hook] = [(name_of(model, layer, "resid_post"), partial(see, layer=layer)) for layer in layers]
    parts = windows.parts()
    for (ids, _), mask in zip(parts, sinks.split(len(parts[0][0])), strict=True):
        at[:] = [mask]
        counts += torch.tensor([int(mask.sum()), int((~mask).sum())])
        with torch.no_grad():
            run_to_stop(model, ids, [*hooks, ("unembed.hook_in", stop)])
    return (sums / counts[:, None]).float()


def scores(
    model: TransformerBridge,
    windows: Windows,
    dimensions: Sequence[int] = (),
    layer: int = 0,
    where: Tensor | None = None,
    values: Tensor | None = None,
) -> np.ndarray:
    """[batch]: the mean log-prob (nats) of what is read of each sequence, dimensions being set to something else.

    Args:
        model: any loaded model.
        windows: what is run, and read.
        dimensions: which are set; none: the unchanged run.
        layer: the first layer after which they are set.
        where: [batch position], bool: at which positions.
        values: [layer batch position dimension], or what broadcasts to it; None: zero.
    """
    found, start = [], 0
    for ids, read in windows.parts():
        rows = slice(start, start + len(ids))
        start += len(ids)
        hooks: list[Hook] = []
        if len(dimensions) and where is not None:
            setting = partial(_set, dimensions=list(dimensions), where=where[rows])
            for i in range(layer, model.cfg.n_layers):
                put = None if values is None else values[i, rows]
                hooks.append((name_of(model, i, "resid_post"), partial(setting, put=put)))
        with torch.no_grad():
            logits = model.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits", prepend_bos=False)
            by_token = log_probs(logits, ids)
        read = read.to(by_token.device)
        found.append((by_token.nan_to_num() * read).sum(1).cpu() / read.sum(1).cpu())
    return torch.cat(found).numpy()


def _set(value: Tensor, hook: Any, dimensions: list[int], where: Tensor, put: Tensor | None) -> Tensor:
    value = value.clone()
    part = value[..., dimensions]
    new = torch.zeros_like(part) if put is None else put.to(part)
    value[..., dimensions] = torch.where(where.to(value.device)[..., None], new, part)
    return value
