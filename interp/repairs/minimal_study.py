"""What does each combination of minimal repairs recover, made only in the heads of the copying circuit?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.hooks import head_name, name_of, record
from interp.progress import track
from interp.repairs.fitted_readout import FittedReadout, ReadoutData
from interp.repairs.lacking import LackingStrength
from interp.repairs.minimal import Cargo, MinimalRepair, attention_masses, mean_strength
from interp.repairs.ordinary_heads import OrdinaryHeads
from interp.repairs.readout import readout_scores
from interp.repairs.shapley_values import subsets
from interp.repairs.sites import FinalResidual, PredictionSites, final_residuals
from interp.repairs.study import QUANTITIES, REPAIRS, Attention, RepairStudy, combination_name, joined, labelled_values
from interp.repairs.suppression import suppressing_writes
from interp.results import label
from interp.tokens import Pool, Repeated

UPSTREAM = ("matching", "content")  # repairs of what happens before a token is read
PARTS = ("matching: induction heads", "matching: previous-token heads")
# what a repair of content is tested on: values that carry nothing about the token
CONTROLS = ("blind", "blind, content repaired")
ROUTE = "paired values"
UNCARRIED = "paired, nothing carried"
# the induction heads carry nothing of the token: what fitted rows gain here is not from reading it
NOTHING = tuple(f"nothing carried{more}" for more in ("", " + readout", " + suppression", " + readout + suppression"))
_HELD_OUT = 1 << 12  # ordinary draws with numbers from here on serve to measure deficits of values
_CONTROL_DRAWS = 2
_CALIBRATED_ON = 64  # sequences of ordinary tokens, at least
_UNMOVED = 0.02  # nats by which a repair may move these: less than half of what health allows
_CALIBRATIONS = 5  # scales to try, at most
_SCALES = (0.5, 1.25)
_STEPS = 250  # of L-BFGS for fitted rows: with 60, the repair of thirty tokens' random rows recovered three quarters

State = tuple[bool, bool]  # whether matching is repaired, and content


@dataclass(frozen=True)
class _Learned:
    """What was learned from other sequences.

    `readouts`, by whether anything upstream is repaired; `against` [d_model], what is written against the pool, by
    state; `by` [component], its logits without repair; `lacking` [value head], the deficit of the values.
    """

    readouts: dict[bool, FittedReadout]
    against: dict[State, Tensor]
    by: Tensor
    lacking: Tensor | None


@dataclass(frozen=True)
class MinimalStudy(RepairStudy):
    """Measures every combination of minimal repairs on a pool.

    Attributes:
        of: what the heads do on ordinary tokens; None where no upstream repair can be made.
        upstream: the repairs of `UPSTREAM` that leave ordinary tokens unchanged.
    """

    of: OrdinaryHeads | None = None
    upstream: tuple[str, ...] = field(default=())

    def measure(self, pool: Pool) -> xr.Dataset:
        """What `RepairStudy.measure` returns, and the attention and values of the heads behind matching and content.

        Returns:
            Also `attention` [role induction_head], to the keys that hold the predicted token; `cargo` [role
            value_head], the mean component of a token's value in its own direction.
        """
        found = super().measure(pool)
        if self.of is None:
            return found
        masses, _ = attention_masses(self.model, self.draw(pool), self.of.induction, ())
        strength, _ = mean_strength(self.model, [self.draw(pool)], self.of)
        coords = {
            "role": found["role"].values,
            "induction_head": [head_name(head) for head in self.of.induction],
            "value_head": [head_name(head) for head in self.of.values],
        }
        pairs = {"attention": (masses.mean(0), self.of.induction_mass), "cargo": (strength, self.of.strength)}
        dims = {"attention": "role induction_head", "cargo": "role value_head"}
        found = found.assign({name: label(name, torch.stack(both), dims[name], coords) for name, both in pairs.items()})
        return found.assign(attention_scale=self.of.scale)

    def deficit(self, pool: Pool) -> xr.Dataset:
        """`none` and `paired` [at], log-probs of a pool's tokens and of the paired ones, without repairs."""
        tokens, u = self.draw(pool), self.unembedding
        pair = self.draw(self.healthy, paired_with=tokens)
        found = {}
        for name, sequences in (("none", tokens), ("paired", pair)):
            sites = PredictionSites.of(sequences)
            alone = {int(t): t.reshape(1) for t in sites.token.unique()}
            scores = readout_scores(final_residuals(self.model, sequences, sites).x, sites.token, alone, u)
            found[name] = label(name, scores[0], "at", {"sequence": ("at", sites.sequence.cpu().numpy())})
        return xr.Dataset(found)

    def ordinary_draw(self, number: int) -> xr.Dataset:
        """`value` [combination at], log-probs of ordinary tokens with each set of upstream repairs."""
        tokens = self._ordinary(number)
        lacking = self._lacking([self._ordinary(_HELD_OUT + number)])
        sets = [s for s in subsets(UPSTREAM) if self.of is not None or not s]
        runs = {combination_name(s): self._repair("matching" in s, "content" in s, lacking=lacking) for s in sets}
        return self._ordinary_values(tokens, runs)

    def ordinary_controls(self) -> xr.Dataset:
        """`value` [combination at], log-probs of ordinary tokens: with parts of repairs, damage, and paired values."""
        found = []
        for number in track(range(_CONTROL_DRAWS), "controls on ordinary tokens", total=_CONTROL_DRAWS):
            tokens = self._ordinary(_HELD_OUT // 2 + number)
            pair = self.draw(self.healthy, paired_with=tokens, stream=number)
            runs = {
                "none": None,
                PARTS[0]: self._repair(True, False, previous=False),
                PARTS[1]: self._repair(False, False, previous=True),
                CONTROLS[0]: self._repair(False, False, cargo="blind"),
                CONTROLS[1]: self._repair(False, False, cargo="blind, repaired"),
                ROUTE: self._interchange(pair),
            }
            found.append(self._ordinary_values(tokens, runs, pair))
            found[-1]["sequence"] = found[-1]["sequence"] + (number << 20)
        return xr.concat(found, "at")

    def calibration(self) -> xr.Dataset:
        """`scale`: the factor on induction heads' mean attention that leaves ordinary tokens unchanged.

        Measured on sequences used for nothing else. Constant mean attention is better than attention that varies around
        it, because tokens fail where attention is low. In deep models that alone moves ordinary tokens by tenths of a
        nat. Found by the secant method; 1 where the mean itself moves them by next to nothing, or by no more than two
        standard errors over sequences.
        """
        if self.of is None:
            return xr.Dataset({"scale": 1.0})
        of, drawn = self.of, [self._ordinary(_HELD_OUT // 4)]
        while sum(len(tokens.ids) for tokens in drawn) < _CALIBRATED_ON:
            drawn.append(self._ordinary(_HELD_OUT // 4 + len(drawn)))

        def moved(scale: float) -> tuple[float, float]:
            """How far ordinary tokens move, and the standard error over sequences."""
            repair = replace(self, of=replace(of, scale=scale))._repair(True, False)
            means = []
            for tokens in drawn:
                value = self._ordinary_values(tokens, {"none": None, "matching": repair})["value"]
                by = value.sel(combination="matching") - value.sel(combination="none")
                means.append(by.groupby("sequence").mean().values)
            of_sequence = np.concatenate(means)
            return float(of_sequence.mean()), float(of_sequence.std(ddof=1)) / math.sqrt(len(of_sequence))

        first, error = moved(1.0)
        tried, scale = {1.0: first}, 0.9 if first > 0 else 1.1
        enough = max(_UNMOVED, 2 * error)
        while abs(first) > enough and min(map(abs, tried.values())) > _UNMOVED and len(tried) < _CALIBRATIONS:
            tried[scale] = moved(scale)[0]
            (a, of_a), (b, of_b) = list(tried.items())[-2:]
            slope = (of_b - of_a) / (b - a)
            scale = round(min(max(b - of_b / slope if slope else b, _SCALES[0]), _SCALES[1]), 4)
            if scale in tried:
                break
        return xr.Dataset({"scale": min(tried, key=lambda s: abs(tried[s]))})

    def _ordinary(self, number: int) -> Repeated:
        return self.draw(self.healthy, stream=number and (1 + 4 * self.fits) * self.pairings + number)

    def _ordinary_values(
        self, tokens: Repeated, runs: Mapping[str, MinimalRepair | None], pair: Repeated | None = None
    ) -> xr.Dataset:
        """`value` [combination at] of ordinary sequences; of the pair's tokens for the route by paired values."""
        sites, rows = PredictionSites.of(tokens), []
        for name, repair in runs.items():
            asked = PredictionSites.of(pair).token if pair is not None and name == ROUTE else sites.token
            alone = {int(t): t.reshape(1) for t in asked.unique()}
            x = final_residuals(self.model, tokens, sites, repair=repair).x
            rows.append(readout_scores(x, asked, alone, self.unembedding)[0])
        coords = {"combination": list(runs), "sequence": ("at", sites.sequence.cpu().numpy())}
        return xr.Dataset({"value": label("value", torch.stack(rows), "combination at", coords)})

    @cached_property
    def _of_values(self) -> LackingStrength | None:
        return None if self.of is None else LackingStrength(self.model, self.of, self.draw, self.healthy, self.seed)

    def _lacking(self, sequences: Sequence[Repeated]) -> Tensor | None:
        """The deficit of the tested tokens' values to those of ordinary tokens [value head]."""
        return None if self._of_values is None else self._of_values.of(sequences)

    def _repair(
        self,
        matching: bool,
        content: bool,
        *,
        lacking: Tensor | None = None,
        previous: bool | None = None,
        cargo: Cargo | None = None,
    ) -> MinimalRepair | None:
        if self.of is None or not (matching or content or previous or cargo):
            return None
        return MinimalRepair(
            self.model,
            self.of,
            induction=matching,
            previous=matching if previous is None else previous,
            cargo=cargo or ("repaired" if content else "own"),
            lacking=lacking,
        )

    def _interchange(self, pair: Repeated, *, matching: bool = False) -> MinimalRepair | None:
        """The induction heads carry, from the correct keys, what they carry in the paired run."""
        if self.of is None:
            return None
        names = {layer: name_of(self.model, layer, "v") for layer, _ in self.of.values}
        seen = record(self.model, pair.ids, names.values())
        other = {layer: seen[name] for layer, name in names.items()}
        return MinimalRepair(
            self.model, self.of, induction=matching, previous=matching, cargo="interchanged", other=other
        )

    def _states(self) -> list[State]:
        """Whether matching and content are repaired, in every way that leaves ordinary tokens unchanged."""
        matching, content = ([False, True] if name in self.upstream else [False] for name in UPSTREAM)
        return list(product(matching, content))

    def _paired(self, tokens: Repeated, first: int) -> Iterator[tuple[Repeated, Attention]]:
        """Sequences of ordinary tokens paired with these; their attention is not used."""
        for k in range(self.pairings):
            yield self.draw(self.healthy, paired_with=tokens, stream=first + k), {}

    def _values(
        self,
        pool: Pool,
        tokens: Repeated,
        pairs: Sequence[tuple[Repeated, Attention]],
        near: Mapping[int, Tensor],
        learned: Any,  # of `_learned`
    ) -> xr.Dataset:
        """`value` [pairing combination quantity at] and `alike` [at]; NaN for repairs that are not made."""
        sites, u = PredictionSites.of(tokens), self.unembedding
        states = self._states()
        runs = {
            state: final_residuals(self.model, tokens, sites, repair=self._repair(*state, lacking=learned.lacking))
            for state in track(states, f"repairs: {pool.name}", total=len(states))
        }
        nothing = torch.full((len(QUANTITIES), len(sites.token)), torch.nan).to(u.rows)
        rows = []
        for chosen in subsets(REPAIRS):
            state = "matching" in chosen, "content" in chosen
            if state not in runs:
                rows.append(nothing)
                continue
            fitted = learned.readouts[any(state)]
            x = self._suppressed(runs[state], state, learned, "suppression" in chosen)
            reader = fitted if "readout" in chosen and fitted.used else None
            rows.append(readout_scores(x, sites.token, near, u, reader))
        for matching, previous in ((True, False), (False, True)):
            repair = self._repair(matching, False, previous=previous)
            if repair is None:
                rows.append(nothing)
                continue
            x = final_residuals(self.model, tokens, sites, repair=repair).x
            rows.append(readout_scores(x, sites.token, near, u))
        rows += self._with_nothing_carried(tokens, sites, near, learned, nothing)
        values = [torch.stack([*rows, *self._of_pair(tokens, sites, pair, near, learned)]) for pair, _ in pairs]
        combinations = [*map(combination_name, subsets(REPAIRS)), *PARTS, *NOTHING]
        combinations += ["paired", "paired, other rows", UNCARRIED, ROUTE]
        return labelled_values(values, combinations, sites, near)

    def _with_nothing_carried(
        self,
        tokens: Repeated,
        sites: PredictionSites,
        near: Mapping[int, Tensor],
        learned: _Learned,
        nothing: Tensor,
    ) -> list[Tensor]:
        """[quantity place] for each of `NOTHING`: the induction heads pay no attention to the correct keys."""
        if self.of is None:
            return [nothing] * len(NOTHING)
        run = final_residuals(self.model, tokens, sites, repair=self._nothing_carried(tokens))
        fitted = next((readout for _, readout in sorted(learned.readouts.items()) if readout.used), None)
        unsuppressed = self._suppressed(run, (False, False), learned, True)
        return [
            readout_scores(x, sites.token, near, self.unembedding, rows)
            for x in (run.x, unsuppressed)
            for rows in (None, fitted)
        ]

    def _of_pair(
        self,
        tokens: Repeated,
        sites: PredictionSites,
        pair: Repeated,
        near: Mapping[int, Tensor],
        learned: _Learned,
    ) -> list[Tensor]:
        """[quantity place] of paired tokens: in their own run, with the pool's rows fitted, uncarried, by the route."""
        u, pair_sites = self.unembedding, PredictionSites.of(pair)
        x = final_residuals(self.model, pair, pair_sites).x
        own = readout_scores(x, pair_sites.token, near, u)
        others = [readout_scores(x, pair_sites.token, near, u, r) for r in learned.readouts.values() if r.used]
        found = [own, min(others, key=lambda scores: float(scores[0].mean()), default=own)]
        repair = self._interchange(pair, matching="matching" in self.upstream)
        if repair is None:
            return [*found, *[torch.full_like(own, torch.nan)] * 2]
        uncarried = final_residuals(self.model, pair, pair_sites, repair=self._nothing_carried(pair))
        found.append(readout_scores(uncarried.x, pair_sites.token, near, u))
        run = final_residuals(self.model, tokens, sites, repair=repair)
        return [*found, readout_scores(run.x, pair_sites.token, near, u)]

    def _suppressed(self, run: FinalResidual, state: State, learned: _Learned, repaired: bool) -> Tensor:
        """x [place d_model] with what is written against the pool there, or without it."""
        u, against = self.unembedding, learned.against[state]
        if repaired:
            return u.shifted(run.x, run.resid, -against)
        # repairing what the heads carry of the token must not repair what they write against the pool
        return u.shifted(run.x, run.resid, learned.against[state[0], False] - against) if state[1] else run.x

    def _learned(self, pool: Pool, sequences: Sequence[Repeated], near: Mapping[int, Tensor]) -> _Learned:
        """What is learned from other sequences: readouts, and what is written against the pool."""
        u, states, lacking = self.unembedding, self._states(), self._lacking(sequences)
        ids = torch.tensor(sorted(near), device=u.rows.device)
        runs: dict[str | State, list[FinalResidual]] = {"paired": [], "nothing carried": [], **{s: [] for s in states}}
        tested, token, pair_token, sequence, offset = [], [], [], [], 0
        pairs = []
        for k, tokens in track(
            enumerate(sequences, start=1), f"learning from other sequences: {pool.name}", total=len(sequences)
        ):
            pair = next(self._paired(tokens, k * self.pairings))[0]
            sites, pair_sites = PredictionSites.of(tokens, every=True), PredictionSites.of(pair, every=True)
            at = tokens.tested.to(ids.device)[sites.sequence, sites.query + 1]
            runs["paired"].append(final_residuals(self.model, pair, pair_sites, writes=at))
            runs["nothing carried"].append(
                final_residuals(self.model, tokens, sites, repair=self._nothing_carried(tokens))
            )
            for state in states:
                repair = self._repair(*state, lacking=lacking)
                runs[state].append(final_residuals(self.model, tokens, sites, repair=repair, writes=at))
            sequence.append(sites.sequence + offset)
            offset += len(tokens.ids)
            tested.append(at)
            token.append(sites.token)
            pair_token.append(pair_sites.token)
            pairs.append(pair)
        ends = {name: joined(several) for name, several in runs.items()}
        paired, is_tested, ordinary = ends["paired"], torch.cat(tested), torch.cat(pair_token)[torch.cat(tested)]
        scale = float(u.scale(paired.resid[is_tested]).mean())
        healthy = readout_scores(paired.x[is_tested], ordinary, self._near(pairs), u)[1]
        against: dict[State, Tensor] = {}
        by: dict[State, Tensor] = {}
        for state in states:
            if not state[1]:
                against[state], by[state] = suppressing_writes(
                    ends[state].writes, paired.writes, ids, self.healthy.ids, scale, u, seed=self.seed
                )
        for state in states:
            if state[1]:  # what is left of it once the content is repaired
                which = (by[state[0], False] != 0)[:, None]
                against[state] = ((ends[state].writes - paired.writes) * which).sum(0)
        readouts: dict[bool, FittedReadout] = {}
        # a row may encode what is carried, not the position: where nothing is carried, its logit is an ordinary one
        there = paired.x[is_tested].mean(0)
        centre = ends["nothing carried"].x[is_tested].mean(0) if self.of else there
        level = float(u.logits(centre[None])[0, list(self.healthy.ids)].mean())
        for upstream in (False, True):
            state = states[-1] if upstream else states[0]
            if upstream and state == states[0]:
                readouts[True] = readouts[False]
                continue
            run = ends[state]
            # suppression is not the rows' fault
            x = torch.where(is_tested[:, None], u.shifted(run.x, run.resid, -against[state]), run.x)
            data = ReadoutData(
                # where ordinary tokens are carried, the pool's rows must not respond
                x=torch.cat([x, paired.x[is_tested]]),
                token=torch.cat([*token, ordinary]),
                sequence=torch.cat([*sequence, torch.cat(sequence)[is_tested]]),
                centre=centre,
                level=level,
                suppression=torch.stack([u.gain * u.centred(against[state[0], False]), there - centre]),
                length=float(u.rows[list(self.healthy.ids)].norm(dim=-1).mean()),
                variance=self._logit_variance(paired.x[is_tested]),
                healthy=float(healthy.mean()),
            )
            readouts[upstream] = FittedReadout.fit(u, ids, near, data, steps=_STEPS, predicted=True)
        return _Learned(readouts, against, by[False, False], lacking)

    def _nothing_carried(self, tokens: Repeated) -> MinimalRepair | None:
        """The induction heads pay no attention to the keys that hold the predicted token."""
        if self.of is None:
            return None
        none = torch.zeros((*tokens.ids.shape, len(self.of.induction)), device=tokens.ids.device)
        return MinimalRepair(self.model, self.of, mass=none)
