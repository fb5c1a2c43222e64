"""Which heads of the copying circuit fail on these tokens, and what do the attention and cargo of each account for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.heads import classify_on_reference, heads_of_kind
from interp.hooks import Head, head_name, heads_of, kv_head
from interp.identities import require
from interp.progress import track
from interp.repairs.head_changes import ChangedRuns, HeadChange, what_heads_do
from interp.repairs.health import limit_of
from interp.repairs.lacking import LackingStrength
from interp.repairs.ordinary_heads import OrdinaryHeads, ordinary_heads, without_values
from interp.repairs.sites import PredictionSites
from interp.repairs.unembedding import Unembedding, near_duplicates, others_of
from interp.results import Keep, at_once, label
from interp.statistics import mean_interval
from interp.tokens import Draw, Pool, Repeated, local_generator

DIRECTIONS = ("repair", "damage")
ESTIMATES = ("alone", "last", "integrated")
PARTS = ("attention", "cargo")
GROUPS = ("classified", "control")
ROLES = ("pool", "ordinary")
FITS = ("correlation", "largest difference", "compared")
KINDS = ("induction", "previous")
HALF = 0.5  # of what a part of a head is for ordinary tokens, below which it fails
TOLERANCE = 0.05  # share of the whole change by which integrated gradients may miss it, where that exceeds `limit_of`
_SLIGHT = 0.1  # nats below which a part alone is not named
_TOLD = 0.1  # share of the variance of held-out tokens' values that a map of their rows must explain
BUDGETS = {
    "quick": {"batch": 8, "length": 10, "exact": 6, "steps": 28},
    "thorough": {"batch": 256, "exact": 32, "steps": 256},
}


def glitch_heads(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    exact: int = 8,
    steps: int = 64,
    fits: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Attribute a pool's deficit against paired ordinary tokens, in nats of log p(C), to the parts of single heads.

    C is a token and its near-duplicates. The parts of a head are its attention to the right keys and its cargo, what it
    carries in the token's direction. `repair` makes a part normal in the pool's runs, `damage` the pool's in ordinary
    runs.

    Args:
        model: any loaded model that neither caps nor scales its logits.
        pools: the tokens that are asked about.
        draw: draws sequences.
        keep: stores finished parts.
        reference: the pool of ordinary tokens to compare with (default: the model's).
        exact: how many parts of each group, those with the largest integrated gradients, are changed in runs of their
            own; 0 or a positive integer.
        steps: about how many gradients are integrated at most, per group and direction; 4 or more.
        fits: how many times as many other sequences measure what the pool's cargo lacks, a positive integer.
        seed: decides which heads are controls.

    Returns:
        `effect` [pool direction estimate part circuit_head batch], nats; positive: the repair gains, the damage costs;
        by `alone` (this part only), `last` (after all others) or `integrated` (shares of the whole). `fails` [pool part
        circuit_head], 1 where a part is less than half of ordinary (95%). docs/causes.md lists the rest.

    Raises:
        InterpError: there are no induction heads, the model caps its logits, or pools or numbers are too small.

    Source:
        Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks, arXiv 1703.01365.

    Example:
        >>> few = dict(batch=4, length=6, fits=1, exact=2, steps=4)
        >>> result = interp.run("glitch_heads", "wired", "1:33", reference="33:65", **few)
        >>> result["circuit_head"].values[result["head_group"].values == "classified"].tolist()
        ['L1H0', 'L0H0']
    """
    if exact < 0 or steps < 4 or fits < 1:
        raise InterpError(f"exact {exact}, steps {steps}, fits {fits}: use 0 or more, 4 or more, and 1 or more")
    require(model, "patterns", "heads", "residual", "readout")
    unembedding = Unembedding(model)
    healthy, found = classify_on_reference(model, draw, keep, reference, seed=seed)
    for pool in pools:  # what cannot be paired is refused before anything is measured
        draw(healthy, paired_with=draw(pool))
    called = {kind: sorted(heads_of_kind(found, kind)) for kind in KINDS}
    absent = without_values(model, called["induction"])
    if absent:
        raise InterpError(f"{absent}: no deficit can be attributed to heads; use glitch_attribution")
    controls = control_heads(model, called, seed=seed)
    both = {kind: [*called[kind], *controls[kind]] for kind in KINDS}
    make = partial(ordinary_heads, model, both["induction"], both["previous"], draw, healthy)
    seen = keep("heads on ordinary tokens", make)
    of = OrdinaryHeads.of(model, seen)
    count = {kind: len(called[kind]) for kind in KINDS}
    told = torch.from_numpy(seen["told"].values) >= _TOLD
    of_values = LackingStrength(model, of, draw, healthy, seed)
    study = _Study(model, healthy, unembedding, draw, of, told, count, of_values)
    parts = [keep(pool.name, partial(study.measure, pool, exact, steps, fits)) for pool in pools]
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    data = xr.concat([part.drop_attrs() for part in parts], names)
    kinds = [kind for kind in KINDS for _ in both[kind]]
    groups = [GROUPS[i >= count[kind]] for kind in KINDS for i in range(len(both[kind]))]
    data = data.assign_coords(kind=("circuit_head", kinds), head_group=("circuit_head", groups))
    sentences = [f"{pool.name}: {_sentence(data.sel(pool=pool.name))}" for pool in pools]
    return data.assign_attrs(verdict="\n".join(sentences), among=healthy.name)


def control_heads(
    model: TransformerBridge, called: Mapping[str, Sequence[Head]], *, seed: int = 0
) -> dict[str, list[Head]]:
    """For each kind the same number of unclassified heads, of the same layers as far as possible.

    Args:
        model: any loaded model.
        called: heads (layer, head), by kind.
        seed: decides which.

    Returns:
        Heads by kind, sorted, each at most once; fewer than are classified where these layers have no more.
    """
    taken = {head for heads in called.values() for head in heads}
    layers = {layer for layer, _ in taken}
    free = [head for head in heads_of(model) if head not in taken and head[0] in layers]
    order = torch.randperm(len(free), generator=local_generator(seed, 1 << 24)).tolist()
    free = [free[i] for i in order]
    found: dict[str, list[Head]] = {kind: [] for kind in called}
    for same_layer in (True, False):  # other layers fill up what a layer lacks
        for kind, heads in called.items():
            for layer, _ in heads[len(found[kind]) :] if not same_layer else heads:
                at = next((head for head in free if head[0] == layer or not same_layer), None)
                if at is not None:
                    free.remove(at)
                    found[kind].append(at)
    return {kind: sorted(heads) for kind, heads in found.items()}


@dataclass(frozen=True)
class _Study:
    """Measures what parts of heads account for on a pool.

    `of`: what classified heads and, after them, controls do on ordinary tokens, `count` of each kind being classified;
    `told` [value head], whether their values identify the token; `of_values` measures what pools lack there.
    """

    model: TransformerBridge
    healthy: Pool
    unembedding: Unembedding
    draw: Draw
    of: OrdinaryHeads
    told: Tensor
    count: Mapping[str, int]
    of_values: LackingStrength

    @property
    def groups(self) -> Tensor:
        """[group part], bool: which parts belong to each group, of those that can be changed."""
        of, called = self.of, []
        for kind, heads in (("induction", of.induction), ("previous", of.previous), ("induction", of.induction)):
            called += [i < self.count[kind] for i in range(len(heads))]
        testable = torch.ones(len(called), dtype=torch.bool)
        testable[len(of.induction) + len(of.previous) :] = self.told[self._shared()]
        is_called = torch.tensor(called)
        return (torch.stack([is_called, ~is_called]) & testable).to(of.strength.device)

    def _shared(self) -> list[int]:
        """The number of the key-value head that each induction head reads."""
        return [self.of.values.index((layer, kv_head(self.model, head))) for layer, head in self.of.induction]

    def measure(self, pool: Pool, exact: int, steps: int, fits: int) -> xr.Dataset:
        """The result for one pool."""
        tokens = self.draw(pool)
        pair = self.draw(self.healthy, paired_with=tokens)
        others = [self.draw(pool, stream=k + 1) for k in range(fits)]
        lacking = self.of_values.of(others)
        done = [what_heads_do(self.model, sequences, self.of) for sequences in (tokens, pair)]
        share = torch.nan_to_num(done[0][0].nanmean(0) / done[1][0].nanmean(0), nan=1.0, posinf=1.0)
        ordinary = torch.cat([self.of.induction_mass, self.of.previous_mass])
        zero = torch.zeros_like(ordinary)
        near = self._near([pair]) | self._near([tokens])
        runs = {
            "repair": self._runs(tokens, ordinary, zero, lacking, near),
            "damage": self._runs(pair, zero, share, -lacking, near),
        }
        levels = torch.stack([run.level() for run in runs.values()])
        allowed = limit_of(float((levels[1] - levels[0]).nanmean()))
        shared = [
            self._integrated(run, levels[k], steps, allowed, f"gradients of {direction}: {pool.name}")
            for k, (direction, run) in enumerate(runs.items())
        ]
        # the same in both directions: those that account for most in either
        largest = torch.stack([abs(integrated.nanmean(0)) for integrated, _ in shared]).amax(0)
        chosen = [self._largest(largest, group, exact) for group in self.groups]
        found = [
            self._attributed(run, levels[k], *shared[k], chosen, allowed, f"{direction}, part by part: {pool.name}")
            for k, (direction, run) in enumerate(runs.items())
        ]
        for name in ("effect", "whole", "integral"):  # for damage, the loss counts
            found[1][name] = -found[1][name]
        attention = self._runs(pair, ordinary, zero, torch.zeros_like(lacking), near)
        moved = attention.level(self.groups[0].to(ordinary)) - levels[1]
        return self._labelled(found, done, levels, moved)

    def _runs(
        self, tokens: Repeated, level: Tensor, factor: Tensor, added: Tensor, near: Mapping[int, Tensor]
    ) -> ChangedRuns:
        return ChangedRuns(tokens, HeadChange(self.model, self.of, level, factor, added), near, self.unembedding)

    def _near(self, sequences: Sequence[Repeated]) -> dict[int, Tensor]:
        """The near-duplicates of the tested tokens of sequences."""
        ids = sorted({int(t) for part in sequences for t in PredictionSites.of(part).token.unique()})
        return near_duplicates(self.model, ids, others_of(self.healthy.ids, ids), self.unembedding)

    def _integrated(
        self, runs: ChangedRuns, none: Tensor, steps: int, allowed: float, what: str
    ) -> tuple[Tensor, Tensor]:
        """What parts add to the log-prob by integrated gradients, [batch part], and all of each group [group batch]."""
        integrated = none.new_zeros((len(none), self.groups.shape[1]))
        whole = none.new_full((len(GROUPS), len(none)), torch.nan)
        for g, among in track(enumerate(self.groups), what, total=len(GROUPS)):
            if among.any():
                whole[g] = runs.level(among.to(none)) - none
                most = max(allowed, TOLERANCE * abs(float(whole[g].nanmean())))
                integrated = integrated + runs.integrated(among, most=steps, allowed=most)
        return integrated, whole

    def _largest(self, values: Tensor, group: Tensor, most: int) -> list[int]:
        """The numbers of the parts of a group with the largest values [part]."""
        order = values.where(group, -torch.ones_like(values)).argsort(descending=True)
        return order[: min(most, int(group.sum()))].tolist()

    def _attributed(
        self,
        runs: ChangedRuns,
        none: Tensor,
        integrated: Tensor,
        whole: Tensor,
        chosen: Sequence[Sequence[int]],
        allowed: float,
        what: str,
    ) -> dict[str, Tensor]:
        """What parts add to the log-prob: `effect` [estimate part batch], `whole`, `integral`, `agreement`.

        Args:
            runs: what is changed.
            none: [batch], log-probs without a change.
            integrated: the first value of `_integrated`.
            whole: its second value.
            chosen: of each group, the parts that get runs of their own.
            allowed: nats by which integrated gradients may miss the whole change.
            what: named beside the progress bar.
        """
        groups = self.groups
        effect = none.new_full((len(ESTIMATES), groups.shape[1], len(none)), torch.nan)
        integral = none.new_full((len(GROUPS),), torch.nan)
        agreement = none.new_full((len(GROUPS), len(FITS)), torch.nan)
        parts = [(g, i) for g, numbers in enumerate(chosen) for i in numbers]
        for g, i in track(parts, what, total=len(parts)):
            every = groups[g].to(none)
            one = torch.zeros_like(every)
            one[i] = 1
            effect[0, i] = runs.level(one) - none
            effect[1, i] = none + whole[g] - runs.level(every - one)
        for g, among in enumerate(groups):
            if not among.any():
                continue
            integral[g] = integrated[~none.isnan()][:, among].sum(1).mean()
            change = float(whole[g].nanmean())
            if abs(float(integral[g]) - change) <= max(allowed, TOLERANCE * abs(change)):
                effect[2, among] = integrated[:, among].T
                agreement[g] = _agreement(effect[:, chosen[g]].nanmean(-1)).to(agreement)
        return {"effect": effect, "whole": whole, "integral": integral, "agreement": agreement}

    def _labelled(
        self,
        found: Sequence[Mapping[str, Tensor]],
        done: Sequence[tuple[Tensor, Tensor]],
        levels: Tensor,
        moved: Tensor,
    ) -> xr.Dataset:
        heads, count = [*self.of.induction, *self.of.previous], len(self.of.induction)
        coords: dict[str, Any] = {
            "direction": list(DIRECTIONS),
            "estimate": list(ESTIMATES),
            "part": list(PARTS),
            "group": list(GROUPS),
            "role": list(ROLES),
            "fit": list(FITS),
            "circuit_head": [head_name(head) for head in heads],
            "batch": np.arange(levels.shape[-1]),
        }

        def by_head(values: Tensor) -> Tensor:
            """[... part of a head, head, batch] of [... part, batch]."""
            attention, cargo = values[..., : len(heads), :], torch.full_like(values[..., : len(heads), :], torch.nan)
            cargo[..., :count, :] = values[..., len(heads) :, :]
            return torch.stack([attention, cargo], -3)

        does = torch.stack([by_head(torch.cat([mass, cargo[:, self._shared()]], 1).T) for mass, cargo in done])
        effect = by_head(torch.stack([part["effect"] for part in found]))
        does[:, 1, :count][:, ~self.told[self._shared()].to(does.device)] = torch.nan
        own = levels[1] - levels[0]
        whole = mean_interval(own.cpu().numpy())
        data = {
            "effect": label("effect", effect, "direction estimate part circuit_head batch", coords),
            "does": label("does", does, "role part circuit_head batch", coords),
            "fails": label("fails", _fails(does.cpu().numpy()), "part circuit_head", coords),
            "level": label("level", levels, "role batch", coords),
            "moved": label("moved", moved, "batch", coords),
            **{
                name: label(name, torch.stack([part[name] for part in found]), dims, coords)
                for name, dims in (
                    ("whole", "direction group batch"),
                    ("integral", "direction group"),
                    ("agreement", "direction group fit"),
                )
            },
            **{
                name: xr.DataArray(float(value))
                for name, value in zip(("deficit", "deficit_low", "deficit_high"), whole, strict=True)
            },
        }
        return xr.Dataset(data)


def _agreement(effect: Tensor) -> Tensor:
    """Of means [estimate part]: correlation and largest difference of exact and integrated, and how many parts."""
    exact, integrated = effect[:2].mean(0), effect[2]
    if not len(exact):
        return torch.tensor([torch.nan, torch.nan, 0.0])
    spread = len(exact) > 2 and float(exact.std()) > 0 and float(integrated.std()) > 0
    correlation = float(torch.corrcoef(torch.stack([exact, integrated]))[0, 1]) if spread else torch.nan
    return torch.tensor([correlation, float((exact - integrated).abs().max()), float(len(exact))])


def _fails(does: np.ndarray) -> np.ndarray:
    """[part head] of [role part head batch]: 1 below half of what is done for ordinary tokens, 0 above, NaN unknown."""
    pool, ordinary = np.moveaxis(does, -1, 1)  # [batch part head]
    above = pool - HALF * ordinary
    mean, low, high = mean_interval(above)
    if len(above) > 1:  # constant values have no interval: their ends are the value itself
        constant = np.ptp(above, 0) < 1e-6
        low, high = np.where(constant, mean, low), np.where(constant, mean, high)
    return np.where(high < 0, 1.0, np.where(low > 0, 0.0, np.nan))


def _sentence(at: xr.Dataset) -> str:
    """Which parts of classified heads fail on a pool, and which of them alone cost ordinary tokens something."""
    at = at.sel(circuit_head=at["head_group"] == "classified").transpose(..., "batch")
    does, effect = at["does"].mean("batch"), at["effect"]
    failing, costly, unknown, asked = [], [], 0, 0
    for part in PARTS:
        for head in map(str, at["circuit_head"].values):
            where = {"part": part, "circuit_head": head}
            pool, ordinary = (float(does.sel({**where, "role": role})) for role in ROLES)
            if not np.isfinite([pool, ordinary]).all():
                continue
            asked += 1
            fails = float(at["fails"].sel(where))
            unknown += not np.isfinite(fails)
            alone = effect.sel({**where, "estimate": "alone"})
            cost, low, _ = mean_interval(alone.sel(direction="damage").values)
            if fails == 1:
                failing.append((cost, f"{head} ({part} {pool:.2g} of {ordinary:.2g})"))
            if low > _SLIGHT:
                gain = float(alone.sel(direction="repair").mean())
                gained = f" (its repair gains {gain:.2f})" if np.isfinite(gain) else ""
                costly.append((cost, f"{head} {part} {cost:.2f}{gained}"))
    said = "no part of a classified head does significantly less than half of what it does for ordinary tokens"
    if failing:
        said = f"{len(failing)} of {asked} parts of classified heads do significantly less than half of what they do "
        said += f"for ordinary tokens: {_first(failing)}"
    said += f"; {unknown} of {asked} are undecided" if unknown else ""
    if not costly:
        return f"{said}; damage to no single part costs ordinary tokens significantly more than {_SLIGHT} nats"
    deficit = float(at["deficit"])
    return (
        f"{said}; nats that damage to a single part costs ordinary tokens, while the pool lacks {deficit:.2f}: "
        f"{_first(costly)}"
    )


def _first(found: list[tuple[float, str]], most: int = 6) -> str:
    """Those that cost most, in words."""
    found = sorted(found, key=lambda one: -np.nan_to_num(one[0]))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(said for _, said in found[:most]) + more
