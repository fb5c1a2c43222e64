"""What does each head's attention to the correct key, or what it carries, gain or cost? Each changed to its own degree.

A *part* of a head is one number: the attention mass that it pays to the correct keys, or how much it carries from these
of their own tokens. Every part has a gate: at 0 the part is as in the run, at 1 it is changed, in between it is
interpolated linearly. So parts can be changed one at a time, all but one, or all at once, and have gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.hooks import Hook, Stop, kv_head, name_of, record, run_to_stop
from interp.repairs.minimal import attention_masses, right_keys, with_mass
from interp.repairs.ordinary_heads import OrdinaryHeads
from interp.repairs.readout import readout_scores
from interp.repairs.sites import PredictionSites, final_residuals, head_rows
from interp.repairs.unembedding import Unembedding
from interp.tokens import Repeated

_NODES, _WEIGHTS = (tuple(map(float, ends)) for ends in np.polynomial.legendre.leggauss(4))


@dataclass(frozen=True)
class HeadChange:
    """What the parts of some heads are changed to.

    The parts, in this order: the attention of each induction head to the keys that hold the predicted token; the
    attention of each previous-token head, at these keys, to the token before; what each induction head carries from
    them.

    Attributes:
        model: any loaded model.
        heads: what these heads do on ordinary tokens.
        level: [attention part], with `factor`:
        factor: [attention part]: an attention mass m becomes level + factor * m.
        added: [value head], what is added to a token's value in the token's own direction.
    """

    model: TransformerBridge
    heads: OrdinaryHeads
    level: Tensor
    factor: Tensor
    added: Tensor

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return 2 * len(self.heads.induction) + len(self.heads.previous)

    def hooks(self, part: Repeated, gates: Tensor) -> list[Hook]:
        """The hooks for some sequences.

        Args:
            part: the sequences of a pass.
            gates: [sequence part], 0 (as it is) to 1 (changed).
        """
        layers = sorted({layer for layer, _ in (*self.heads.induction, *self.heads.previous)})
        sites = PredictionSites.of(part)
        right = right_keys(part, sites.query)
        return [hook for layer in layers for hook in self._of_layer(layer, part, gates, sites, right)]

    def _of_layer(self, layer: int, part: Repeated, gates: Tensor, sites: PredictionSites, right: Tensor) -> list[Hook]:
        of = self.heads
        here = [i for i, (la, _) in enumerate(of.induction) if la == layer]
        earlier = [i for i, (la, _) in enumerate(of.previous) if la == layer]
        place, key = right.nonzero(as_tuple=True)
        seen: dict[str, Tensor] = {}

        # functions rather than partials: TransformerLens formats a hook's repr, with all of its arguments
        def attend(pattern: Tensor, hook: Any) -> Tensor:
            pattern = pattern.clone()
            if earlier:
                before = torch.arange(pattern.shape[-1], device=key.device) == key[:, None] - 1
                at = head_rows(sites.sequence[place], [of.previous[i][1] for i in earlier], key)
                numbers = [len(of.induction) + i for i in earlier]
                pattern[at] = self._attended(pattern[at], before, numbers, gates[sites.sequence[place]])
            if here:
                at = head_rows(sites.sequence, [of.induction[i][1] for i in here], sites.query)
                pattern[at] = self._attended(pattern[at], right, here, gates[sites.sequence])
                seen["weights"] = pattern[at].float() * right[:, None]
            return pattern

        def carry(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            first = len(of.induction) + len(of.previous)
            for k, i in enumerate(here):
                head = of.induction[i][1]
                v = of.values.index((layer, kv_head(self.model, head)))
                change = self.added[v] * of.towards(part.ids, v)[sites.sequence]  # [place key d_head]
                gained = torch.einsum("pk,pkd->pd", seen["weights"][:, k], change)
                z[sites.sequence, sites.query, head] += (gates[sites.sequence, first + i, None] * gained).to(z)
            return z

        hooks: list[Hook] = [(name_of(self.model, layer, "pattern"), attend)]
        return [*hooks, (name_of(self.model, layer, "z"), carry)] if here else hooks

    def _attended(self, rows: Tensor, right: Tensor, numbers: Sequence[int], gates: Tensor) -> Tensor:
        """Attention rows [place head key] of the parts with these numbers, changed by gates [place part]."""
        numbers, whole = list(numbers), rows.float()  # in half precision the gradient of a share overflows
        own = (whole * right[:, None]).sum(-1)
        wanted = self.level[numbers] + self.factor[numbers] * own
        mass = (own + gates[:, numbers] * (wanted - own)).clamp_min(0)
        return with_mass(whole, right, mass).to(rows)


@dataclass(frozen=True)
class ChangedRuns:
    """Sequences, and how likely their tested tokens are when parts of heads are changed.

    Attributes:
        tokens: the sequences.
        change: what parts are changed to.
        near: for each tested token its near-duplicates and itself: the log-prob is that of any of them.
        unembedding: the model's.
    """

    tokens: Repeated
    change: HeadChange
    near: Mapping[int, Tensor]
    unembedding: Unembedding

    def level(self, gates: Tensor | None = None) -> Tensor:
        """[sequence]: mean log-prob, nats, with the same gates [part] in all sequences; NaN where nothing is tested."""
        sites = PredictionSites.of(self.tokens)

        def repair(part: Repeated, rows: slice) -> list[Hook]:
            return [] if gates is None else self.change.hooks(part, gates.expand(len(part.ids), -1))

        x = final_residuals(self.change.model, self.tokens, sites, repair=repair).x
        scores = readout_scores(x, sites.token, self.near, self.unembedding)[1]
        return means(scores, sites.sequence, len(self.tokens.ids))

    def gradients(self, gates: Tensor) -> Tensor:
        """[sequence part]: the gradient of each sequence's mean log-prob by each of its gates, at gates [part]."""
        found = []
        for part in self.tokens.split(self.tokens.rows_per_pass()):
            if not part.inducible_tested.any():
                found.append(gates.new_full((len(part.ids), len(gates)), torch.nan))
                continue
            sites, seen = PredictionSites.of(part), dict[str, Tensor]()
            with torch.enable_grad():
                leaf = gates.detach().repeat(len(part.ids), 1).requires_grad_()

                def keep(value: Tensor, hook: Any, seen: dict[str, Tensor] = seen) -> None:
                    seen["x"] = value
                    raise Stop

                run_to_stop(self.change.model, part.ids, [*self.change.hooks(part, leaf), ("unembed.hook_in", keep)])
                x = seen["x"][sites.sequence, sites.query].float()
                scores = readout_scores(x, sites.token, self.near, self.unembedding)[1]
                # sequences are independent: the gradient of the sum holds each one's own
                total = means(scores, sites.sequence, len(part.ids)).nansum()
                gradient = torch.autograd.grad(total, leaf)[0]
            tested = torch.from_numpy(part.inducible_tested.any(1)).to(gradient.device)
            found.append(gradient.where(tested[:, None], gradient.new_tensor(torch.nan)))
        return torch.cat(found)

    def integrated(self, among: Tensor, *, most: int, allowed: float) -> Tensor:
        """[sequence part]: the change that each part accounts for when those in `among` [part] are changed together.

        The gradient is integrated along the straight path from all gates at 0 to those of `among` at 1, by the
        four-node Gauss-Legendre rule. The contributions should sum to the whole change: the piece of the path with the
        largest error is halved until the total error is no larger than allowed.

        Args:
            among: [part], bool.
            most: about the largest number of gradients to take.
            allowed: the largest total error, nats.

        Source: M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks" (2017).
        """
        gates = among.to(self.change.level)
        levels = {end: self.level(end * gates) for end in (0.0, 1.0)}
        pieces = [self._piece(gates, 0.0, 1.0, levels)]
        taken = len(_NODES)
        while sum(piece.missed for piece in pieces) > allowed and taken + 2 * len(_NODES) <= most:
            worst = max(pieces, key=lambda piece: piece.missed)
            pieces.remove(worst)
            middle = (worst.start + worst.end) / 2
            levels[middle] = self.level(middle * gates)
            pieces += [self._piece(gates, *ends, levels) for ends in ((worst.start, middle), (middle, worst.end))]
            taken += 2 * len(_NODES)
        return torch.stack([piece.integral for piece in pieces]).sum(0)

    def _piece(self, gates: Tensor, start: float, end: float, levels: Mapping[float, Tensor]) -> _Piece:
        """The integral over one piece of the path; `levels` holds the log-probs at both of its ends."""
        wide = end - start
        parts = [
            weight * wide / 2 * self.gradients((start + wide * (node + 1) / 2) * gates)
            for node, weight in zip(_NODES, _WEIGHTS, strict=True)
        ]
        integral = torch.stack(parts).sum(0) * gates
        missed = integral.sum(1) - (levels[end] - levels[start])
        return _Piece(start, end, integral, float(missed.abs().nanmean()))


@dataclass(frozen=True)
class _Piece:
    """A piece of a path: its ends, the integral [sequence part], and the mean absolute error of the parts' sum."""

    start: float
    end: float
    integral: Tensor
    missed: float


def what_heads_do(model: TransformerBridge, tokens: Repeated, heads: OrdinaryHeads) -> tuple[Tensor, Tensor]:
    """What the parts of heads are, sequence by sequence, in an unmodified run.

    Args:
        model: any loaded model.
        tokens: repeated sequences.
        heads: the heads, and the directions in which they carry tokens.

    Returns:
        Attention to the correct keys [sequence attention part], in the order of `HeadChange`, and the mean component of
        the tested tokens' values in their own directions [sequence value head]; NaN where nothing is tested.
    """
    sites, count = PredictionSites.of(tokens), len(tokens.ids)
    induction, previous = attention_masses(model, tokens, heads.induction, heads.previous)
    place = right_keys(tokens, sites.query).nonzero(as_tuple=True)[0]
    masses = [means(induction, sites.sequence, count), means(previous, sites.sequence[place], count)]
    return torch.cat(masses, 1), _strengths(model, tokens, heads)


def _strengths(model: TransformerBridge, tokens: Repeated, heads: OrdinaryHeads) -> Tensor:
    """[sequence value head]: `minimal.mean_strength` of each sequence."""
    names = {layer: name_of(model, layer, "v") for layer, _ in heads.values}
    start = int(tokens.bos is not None)
    first, found = slice(start, start + tokens.length), []
    for part in tokens.split(tokens.rows_per_pass()):
        ids, tested = part.ids[:, : first.stop], part.tested[:, first].to(part.ids.device)
        seen = record(model, ids, names.values())
        rows = []
        for v, (layer, shared) in enumerate(heads.values):
            value = seen[names[layer]][:, first, shared].float() - heads.centre[v]
            along = (value * heads.towards(ids[:, first], v)).sum(-1)
            rows.append((along * tested).sum(1) / tested.sum(1))
        found.append(torch.stack(rows, -1))
    return torch.cat(found)


def means(values: Tensor, sequence: Tensor, count: int) -> Tensor:
    """[sequence ...]: means of values [place ...] over the places of each of `count` sequences; NaN without places."""
    total = values.new_zeros((count, *values.shape[1:])).index_add(0, sequence, values)
    places = sequence.bincount(minlength=count).to(values)
    return total / places.reshape(-1, *[1] * (values.ndim - 1))
