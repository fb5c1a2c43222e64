"""What is the smallest repair of a run? The attention of some heads to the correct key, or what they carry from it.

Everything acts in the classified heads, and only where a tested token that the context determines is predicted. Heads
that are not classified keep their attention and their values, so that a repair's gain is a lower bound of the stage's
deficit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.hooks import Head, Hook, kv_head, name_of, record, run_to_stop, stop
from interp.repairs.sites import PredictionSites, head_rows
from interp.tokens import Repeated

if TYPE_CHECKING:
    from interp.repairs.ordinary_heads import OrdinaryHeads

_NONE = 1e-6  # attention too small to rescale
Cargo = Literal["own", "repaired", "blind", "blind, repaired", "interchanged"]


def right_keys(tokens: Repeated, query: Tensor) -> Tensor:
    """[place key]: the keys that hold the token predicted at each query, in earlier copies.

    Args:
        tokens: repeated sequences without repeats within a block.
        query: [place], positions at which inducible tokens are predicted.
    """
    key = torch.arange(tokens.ids.shape[1], device=query.device)
    back = query[:, None] + 1 - key
    return (back > 0) & (back % tokens.length == 0) & (key >= int(tokens.bos is not None))


def with_mass(rows: Tensor, right: Tensor, mass: Tensor) -> Tensor:
    """Attention rows with a given mass on the correct keys, the rest scaled so that each row keeps its sum.

    Args:
        rows: [place head key].
        right: [place key], the correct keys of each place; at least one each.
        mass: [head] or [place head], the attention on all correct keys together; capped at the row's sum.

    Returns:
        [place head key]. Among the correct keys attention is shared in the old proportions, or evenly if they had none.
        The rest likewise: if the correct keys had all of it, what is taken from them goes evenly to the earlier keys.
    """
    on = right[:, None].to(rows)
    had, total = (rows * on).sum(-1, keepdim=True), rows.sum(-1, keepdim=True)
    mass = torch.minimum(mass.to(rows)[..., None].expand_as(total), total)
    last = (right * torch.arange(right.shape[1], device=right.device)).amax(-1)
    seen = (rows > 0) | (torch.arange(rows.shape[-1], device=rows.device) <= last[:, None, None])
    off = (1 - on) * seen.to(rows)
    even_on, even_off = on / on.sum(-1, keepdim=True), off / off.sum(-1, keepdim=True).clamp_min(1)
    share_on = torch.where(had > _NONE, rows * on / had.clamp_min(_NONE), even_on)
    rest = total - had
    share_off = torch.where(rest > _NONE, rows * (1 - on) / rest.clamp_min(_NONE), even_off)
    return mass * share_on + (total - mass) * share_off


@dataclass(frozen=True)
class _Places:
    """Where the sequences of a pass, which are `rows` of all sequences, are repaired.

    `sites`, where tested tokens are predicted; `right` [place key], the keys that hold these; `before_sequence` and
    `before_query` [place and key], the same keys as queries.
    """

    ids: Tensor
    rows: slice
    sites: PredictionSites
    right: Tensor
    before_sequence: Tensor
    before_query: Tensor

    @classmethod
    def of(cls, part: Repeated, rows: slice) -> Self:
        sites = PredictionSites.of(part)
        right = right_keys(part, sites.query)
        place, key = right.nonzero(as_tuple=True)
        return cls(part.ids, rows, sites, right, sites.sequence[place], key)


@dataclass(frozen=True)
class MinimalRepair:
    """What is repaired in a run; calling it on the sequences of a pass gives the hooks.

    Attributes:
        model: any loaded model.
        heads: what these heads do on ordinary tokens.
        induction: whether the induction heads pay their mean attention, times `heads.scale`, to the correct keys.
        previous: whether the previous-token heads pay theirs, at the correct keys, to the token before.
        cargo: what the induction heads carry from the correct keys: their own values, repaired ones (with the deficit
            added in the token's own direction), the mean over all tokens (blind), that mean repaired, or another
            run's.
        lacking: [value head], the mean deficit of the pool's values, in their tokens' own directions, to those of
            ordinary tokens; default: the whole component, as for blind values.
        mass: [sequence query head], attention of the induction heads to use instead of their mean.
        other: by layer, values [sequence position value head d_head] of another run to interchange.
    """

    model: TransformerBridge
    heads: OrdinaryHeads
    induction: bool = False
    previous: bool = False
    cargo: Cargo = "own"
    lacking: Tensor | None = None
    mass: Tensor | None = None
    other: Mapping[int, Tensor] | None = None

    def __call__(self, part: Repeated, rows: slice) -> list[Hook]:
        """The hooks for the sequences of a pass, which are `rows` of all sequences."""
        of, places = self.heads, _Places.of(part, rows)
        hooks: list[Hook] = []
        for layer in sorted({layer for layer, _ in (*of.induction, *of.previous)}):
            here = [i for i, (la, _) in enumerate(of.induction) if la == layer]
            earlier = [i for i, (la, _) in enumerate(of.previous) if la == layer] if self.previous else []
            if here or earlier:
                hooks += self._of_layer(layer, here, earlier, places)
        return hooks

    def _of_layer(self, layer: int, here: list[int], earlier: list[int], places: _Places) -> list[Hook]:
        """The hooks of one layer, which has the induction heads `here` and the previous-token heads `earlier`."""
        seen: dict[str, Tensor] = {}

        # functions rather than partials: TransformerLens formats a hook's repr, with all of its arguments
        def see(value: Tensor, hook: Any) -> None:
            seen["value"] = value

        def attend(pattern: Tensor, hook: Any) -> Tensor:
            pattern = pattern.clone()
            self._look_back(pattern, earlier, places)
            seen["weights"] = self._attend(pattern, here, places)
            return pattern

        def carry(z: Tensor, hook: Any) -> Tensor:
            return self._carry(z.clone(), layer, here, places, seen)

        hooks: list[Hook] = [(name_of(self.model, layer, "pattern"), attend)]
        if here and self.cargo != "own":
            hooks = [(name_of(self.model, layer, "v"), see), *hooks, (name_of(self.model, layer, "z"), carry)]
        return hooks

    def _look_back(self, pattern: Tensor, earlier: list[int], places: _Places) -> None:
        """At a token's earlier occurrences, previous-token heads pay their mean attention to the token before it."""
        if earlier:
            at = head_rows(places.before_sequence, [self.heads.previous[i][1] for i in earlier], places.before_query)
            key = torch.arange(pattern.shape[-1], device=pattern.device)
            right = key == places.before_query[:, None] - 1
            pattern[at] = with_mass(pattern[at], right, self.heads.previous_mass[earlier])

    def _attend(self, pattern: Tensor, here: list[int], places: _Places) -> Tensor:
        """The attention [place head key] of induction heads on the correct keys, repaired if that is asked for."""
        sites, of = places.sites, self.heads
        at = head_rows(sites.sequence, [of.induction[i][1] for i in here], sites.query)
        if here and self.mass is not None:
            given = self.mass[places.rows][sites.sequence, sites.query][:, here]
            pattern[at] = with_mass(pattern[at], places.right, given)
        elif here and self.induction:
            pattern[at] = with_mass(pattern[at], places.right, of.repaired_mass[here])
        return pattern[at] * places.right[:, None].to(pattern)

    def _carry(self, z: Tensor, layer: int, here: list[int], places: _Places, seen: dict[str, Tensor]) -> Tensor:
        """The outputs z of a layer's heads [sequence position head d_head], with the carried values changed."""
        of, sites = self.heads, places.sites
        for k, i in enumerate(here):
            head = of.induction[i][1]
            shared = kv_head(self.model, head)
            value = seen["value"][:, :, shared].float()  # [sequence position d_head]
            change = self._changed(value, places, of.values.index((layer, shared))) - value
            weights = seen["weights"][:, k].float()  # [place key]
            z[sites.sequence, sites.query, head] += torch.einsum("pk,pkd->pd", weights, change[sites.sequence]).to(z)
        return z

    def _changed(self, value: Tensor, places: _Places, v: int) -> Tensor:
        """Values [sequence position d_head] of one key-value head, as `cargo` specifies."""
        of = self.heads
        if self.cargo == "interchanged" and self.other is not None:
            layer, shared = of.values[v]
            return self.other[layer][places.rows][:, :, shared].float()
        if self.cargo.startswith("blind"):
            value = of.centre[v].expand_as(value)
        if not self.cargo.endswith("repaired"):
            return value
        lacking = of.strength[v] if self.lacking is None else self.lacking[v]
        return value + lacking * of.towards(places.ids, v)


def attention_masses(
    model: TransformerBridge, tokens: Repeated, induction: Sequence[Head], previous: Sequence[Head]
) -> tuple[Tensor, Tensor]:
    """How much attention do heads pay to the correct key, in an unmodified run?

    Args:
        model: any loaded model.
        tokens: repeated sequences.
        induction: heads (layer, head), measured where tested tokens are predicted, to the keys that hold these.
        previous: heads, measured at these keys, to the token before.

    Returns:
        [place head] for the induction heads, in the order of `PredictionSites`, and [place and key, head] for the
        others.
    """
    layers = sorted({layer for layer, _ in (*induction, *previous)})
    parts: list[tuple[Tensor, Tensor]] = []
    for part in tokens.split(tokens.rows_per_pass()):
        places, found = _Places.of(part, slice(0, len(part.ids))), dict[str, Tensor]()
        hooks = [_looking(model, layer, induction, previous, places, found) for layer in layers]
        if layers and layers[-1] + 1 < model.cfg.n_layers:
            hooks.append((name_of(model, layers[-1] + 1, "resid_pre"), stop))
        with torch.no_grad():
            run_to_stop(model, part.ids, hooks)
        empty = [torch.zeros((len(at), 0), device=at.device) for at in (places.sites.query, places.before_query)]
        of_induction = [found[f"induction {head}"] for head in induction]
        of_previous = [found[f"previous {head}"] for head in previous]
        parts.append(
            (
                torch.stack(of_induction, -1) if induction else empty[0],
                torch.stack(of_previous, -1) if previous else empty[1],
            )
        )
    first, second = (torch.cat(masses) for masses in zip(*parts, strict=True))
    return first, second


def _looking(
    model: TransformerBridge,
    layer: int,
    induction: Sequence[Head],
    previous: Sequence[Head],
    places: _Places,
    found: dict[str, Tensor],
) -> Hook:
    """The hook that records the attention of a layer's heads."""

    def look(pattern: Tensor, hook: Any) -> None:
        sites = places.sites
        for head in [head for head in induction if head[0] == layer]:
            rows = pattern[sites.sequence, head[1], sites.query].float()
            found[f"induction {head}"] = (rows * places.right).sum(-1)
        at, query = places.before_sequence, places.before_query
        for head in [head for head in previous if head[0] == layer]:
            found[f"previous {head}"] = pattern[at, head[1], query, query - 1].float()

    return name_of(model, layer, "pattern"), look


def mean_strength(model: TransformerBridge, sequences: Sequence[Repeated], heads: OrdinaryHeads) -> tuple[Tensor, int]:
    """The mean component of tested tokens' values in their own direction, at their first occurrence.

    Returns:
        [value head], and the number of distinct tokens.
    """
    names = {layer: name_of(model, layer, "v") for layer, _ in heads.values}
    found, which = [], set()
    for tokens in sequences:
        start = int(tokens.bos is not None)
        first = slice(start, start + tokens.length)
        for part in tokens.split(tokens.rows_per_pass()):
            ids, tested = part.ids[:, : start + tokens.length], part.tested[:, first].to(part.ids.device)
            seen = record(model, ids, names.values())
            rows = []
            for v, (layer, shared) in enumerate(heads.values):
                value = seen[names[layer]][:, first, shared].float() - heads.centre[v]
                rows.append((value * heads.towards(ids[:, first], v)).sum(-1)[tested])
            found.append(torch.stack(rows))
            which |= set(ids[:, first][tested].tolist())
    return torch.cat(found, 1).mean(1), len(which)
