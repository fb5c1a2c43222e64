"""What does each combination of repairs recover? A pool's sequences and paired ordinary ones, under all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.hooks import Head, pattern_names, record
from interp.repairs.fitted_readout import FittedReadout, ReadoutData
from interp.repairs.probes import probe_accuracy
from interp.repairs.readout import best_source_token, readout_scores
from interp.repairs.shapley_values import subsets
from interp.repairs.sites import FinalResidual, PredictionSites, component_names, final_residuals
from interp.repairs.suppression import suppressing_writes
from interp.repairs.unembedding import Unembedding, near_duplicates, others_of, swap_token_directions
from interp.results import label
from interp.tokens import Draw, Pool, Repeated

REPAIRS = ("matching", "content", "readout", "suppression")
QUANTITIES = ("log_prob", "cluster", "log_odds")
ROLES = ("pool", "ordinary")
_OWN_SHARE = 0.9  # share of a pairing's own attention, the rest is another's
_HEALTH_PLACES = 2048  # places at which ordinary tokens are read, at least: 0.05 nats are small beside single tokens
_HEALTH_DRAWS = 32  # draws for these, at most
_PLACES = 16  # places per token, on average, that readouts should be fitted to
_MORE_DRAWS = 4  # draws for these, at most this many times the number asked for

Attention = Mapping[str, Tensor]


def combination_name(repairs: tuple[str, ...]) -> str:
    """The name of a combination of repairs, as in the coordinate `combination`."""
    return " + ".join(repairs) or "none"


@dataclass(frozen=True)
class _Learned:
    """What was learned from other sequences, by whether attention is repaired.

    `readouts`; `against` [d_model], what is written against the pool; `by` [component], its logits without repair.
    """

    readouts: dict[bool, FittedReadout]
    against: dict[bool, Tensor]
    by: Tensor


@dataclass(frozen=True)
class RepairStudy:
    """Measures every combination of repairs on a pool.

    Attributes:
        model: any loaded model.
        healthy: ordinary tokens that a pool's tokens are paired with.
        heads: the heads (layer, head) of the copying circuit.
        unembedding: the model's.
        draw: draws sequences.
        pairings: how many times sequences are paired.
        fits: the smallest number of other draws that readouts are fitted on.
        seed: decides all random draws other than sequences.
    """

    model: TransformerBridge
    healthy: Pool
    heads: Sequence[Head]
    unembedding: Unembedding
    draw: Draw
    pairings: int
    fits: int
    seed: int

    def measure(self, pool: Pool) -> xr.Dataset:
        """All combinations of repairs at every place, and what else is measured on a pool.

        Returns:
            `value` [pairing combination quantity at], nats; `alike` [at], sizes of clusters of near-duplicates;
            `against` [component], logits written against the pool; `retrieval` [role place depth way] and `chance`
            [role], accuracy of probes; `fitted`, whether fitted rows are used to read the pool; `readable`, whether any
            rows can read it (with everything upstream repaired), without which nothing is known about its own rows.
        """
        tokens, others = self.draw(pool), self._other_draws(pool)
        near = self._near([tokens, *others])
        learned = self._learned(pool, others, near)
        control = _control(pool, self.healthy, self.seed)
        controls = [self.draw(control, stream=k + 1) for k in range(len(others))]
        probes = [
            probe_accuracy(self.model, others, tokens),
            probe_accuracy(self.model, controls, self.draw(control)),
        ]
        pairs = list(self._paired(tokens, 0))
        near = self._near([pair for pair, _ in pairs]) | near
        coords = {
            "component": component_names(self.model),
            "role": list(ROLES),
            "place": ["source", "prediction"],
            "depth": ["embedding", *(f"layer {i}" for i in range(self.model.cfg.n_layers))],
            "way": ["nearest mean", "fitted"],
        }
        accuracy = torch.stack([found for found, _ in probes])
        return self._values(pool, tokens, pairs, near, learned).assign(
            against=label("against", learned.by, "component", coords),
            retrieval=label("retrieval", accuracy, "role place depth way", coords),
            chance=label("chance", [1 / among for _, among in probes], "role", coords),
            fitted=xr.DataArray(any(readout.used for readout in learned.readouts.values())),
            readable=xr.DataArray(learned.readouts[True].testable),
        )

    def measure_ordinary(self) -> xr.Dataset:
        """`value` and `alike` of many ordinary tokens, which have no deficit, so that nothing is fitted."""
        found, places = [], 0
        none = torch.zeros_like(self.unembedding.mean)
        ids = torch.arange(len(self.unembedding.rows), device=none.device)
        own = FittedReadout.own(self.unembedding, ids[:0])
        learned = _Learned({False: own, True: own}, {False: none, True: none}, none[:0])
        alone = dict(enumerate(ids[:, None]))  # health is judged by log-probs: clusters are not needed
        for draw in range(_HEALTH_DRAWS):
            tokens = self.draw(self.healthy, stream=draw and (1 + _MORE_DRAWS * self.fits) * self.pairings + draw)
            pairs = list(self._paired(tokens, draw * self.pairings))
            found.append(self._values(self.healthy, tokens, pairs, alone, learned))
            places += found[-1].sizes["at"]
            if places >= _HEALTH_PLACES:
                break
        return xr.concat(found, "at")

    def _other_draws(self, pool: Pool) -> list[Repeated]:
        """Other sequences to learn from: `fits` draws, and more while they test each token too rarely."""
        found: list[Repeated] = []
        while len(found) < _MORE_DRAWS * self.fits:
            found.append(self.draw(pool, stream=len(found) + 1))
            tested = np.concatenate([part.ids.cpu().numpy()[part.inducible_tested] for part in found])
            if len(found) >= self.fits and len(tested) >= _PLACES * len(np.unique(tested)):
                break
        return found

    def _near(self, sequences: Sequence[Repeated]) -> dict[int, Tensor]:
        """The near-duplicates of all tested tokens in these sequences."""
        ids = sorted({int(t) for part in sequences for t in part.ids[part.tested.to(part.ids.device)].unique()})
        return near_duplicates(self.model, ids, others_of(self.healthy.ids, ids), self.unembedding)

    def _paired(self, tokens: Repeated, first: int) -> Iterator[tuple[Repeated, Attention]]:
        """Sequences of ordinary tokens paired with these, each with its attention, mixed with another pairing's."""
        count = max(2, self.pairings)
        pairs = [self.draw(self.healthy, paired_with=tokens, stream=first + k) for k in range(count)]
        seen = [self._attention(pair.ids) for pair in pairs[: min(count, self.pairings + 1)]]
        for k in range(self.pairings):
            yield pairs[k], _mixed(seen[k], seen[(k + 1) % len(seen)])

    def _attention(self, ids: Tensor) -> Attention:
        return record(self.model, ids, pattern_names(self.model))

    def _own_attention(self, pool: Pool, tokens: Repeated) -> Attention:
        """The pool's own attention, mixed as in `_paired` with that of another sequence of the same structure."""
        own = self._attention(tokens.ids)
        if tokens.replacement:  # repeats within a block make a sequence's structure unique
            return own
        if bool(tokens.tested[:, int(tokens.bos is not None) :].all()):
            # whole blocks have the same structure as every other block of the pool
            return _mixed(own, self._attention(tokens.ids.roll(1, 0)))
        try:
            return _mixed(own, self._attention(self.draw(pool, paired_with=tokens, stream=1).ids))
        except InterpError:  # a pool of one token has no twin
            return own

    def _values(
        self,
        pool: Pool,
        tokens: Repeated,
        pairs: Sequence[tuple[Repeated, Attention]],
        near: Mapping[int, Tensor],
        learned: Any,  # of `_learned`
    ) -> xr.Dataset:
        """`value` [pairing combination quantity at] and `alike` [at]."""
        own, sites = self._own_attention(pool, tokens), PredictionSites.of(tokens)
        values = [self._combined(tokens, pair, own, attention, sites, near, learned) for pair, attention in pairs]
        combinations = [combination_name(chosen) for chosen in subsets(REPAIRS)]
        return labelled_values(
            values, [*combinations, "matching in classified heads", "paired", "paired, other rows"], sites, near
        )

    def _combined(
        self,
        tokens: Repeated,
        pair: Repeated,
        own_attention: Attention,
        paired_attention: Attention,
        sites: PredictionSites,
        near: Mapping[int, Tensor],
        learned: _Learned,
    ) -> Tensor:
        """[combination quantity place] for one pairing."""
        u, model = self.unembedding, self.model
        pair_sites = PredictionSites.of(pair)
        runs = {  # by content and matching, repaired or not
            (False, False): final_residuals(model, tokens, sites),
            (False, True): final_residuals(model, tokens, sites, patterns=paired_attention),
            (True, False): final_residuals(model, pair, pair_sites, patterns=own_attention),
            (True, True): final_residuals(model, pair, pair_sites),
        }
        source = {m: best_source_token(runs[True, m].x, sites, tokens, pair, near, u) for m in (False, True)}
        found = []
        for chosen in subsets(REPAIRS):
            matching, content, readout, suppression = (name in chosen for name in REPAIRS)
            run, fitted, own_logit = runs[content, matching], learned.readouts[content or matching], None
            x, reader = run.x, fitted if readout and fitted.used else None
            if content:
                address = fitted.rows_of(sites.token, u)
                x = swap_token_directions(x, u.rows[source[matching]] - u.mean, address - u.mean, u)
            if content != suppression:  # only the pool's own run has something written against the pool
                x = u.shifted(x, run.resid, learned.against[matching] if content else -learned.against[matching])
            if content and reader is not None:
                own_logit, reader = (x * address).sum(-1) + u.bias[sites.token], None
            found.append(readout_scores(x, sites.token, near, u, reader, own_logit))
        in_heads = runs[False, False]
        if self.heads:
            in_heads = final_residuals(model, tokens, sites, patterns=paired_attention, heads=self.heads)
        ordinary, fitted = runs[True, True].x, learned.readouts[True]
        found += [
            readout_scores(in_heads.x, sites.token, near, u),
            readout_scores(ordinary, pair_sites.token, near, u),
            readout_scores(ordinary, pair_sites.token, near, u, fitted if fitted.used else None),
        ]
        return torch.stack(found)

    def _learned(self, pool: Pool, sequences: Sequence[Repeated], near: Mapping[int, Tensor]) -> Any:
        """What is learned from other sequences: readouts, and what is written against the pool."""
        u, model = self.unembedding, self.model
        ids = torch.tensor(sorted(near), device=u.rows.device)
        runs: dict[str, list[FinalResidual]] = {"paired": [], "paired, own attention": [], "own": [], "carried": []}
        tested, token, pair_token, sequence, offset = [], [], [], [], 0
        pairs = [next(self._paired(tokens, k * self.pairings)) for k, tokens in enumerate(sequences, start=1)]
        for tokens, (pair, attention) in zip(sequences, pairs, strict=True):
            sites, pair_sites = PredictionSites.of(tokens, every=True), PredictionSites.of(pair, every=True)
            at = tokens.tested.to(ids.device)[sites.sequence, sites.query + 1]
            runs["paired"].append(final_residuals(model, pair, pair_sites, writes=at))
            own_attention = self._own_attention(pool, tokens)
            runs["paired, own attention"].append(final_residuals(model, pair, pair_sites, patterns=own_attention))
            runs["own"].append(final_residuals(model, tokens, sites, writes=at))
            runs["carried"].append(final_residuals(model, tokens, sites, patterns=attention, writes=at))
            sequence.append(sites.sequence + offset)
            offset += len(tokens.ids)
            tested.append(at)
            token.append(sites.token)
            pair_token.append(pair_sites.token)
        ends = {name: joined(several) for name, several in runs.items()}
        paired, is_tested, ordinary = ends["paired"], torch.cat(tested), torch.cat(pair_token)[torch.cat(tested)]
        scale = float(u.scale(paired.resid[is_tested]).mean())
        healthy = readout_scores(paired.x[is_tested], ordinary, self._near([pair for pair, _ in pairs]), u)[1]
        against, by, readouts = {}, {}, {}
        for matching, run, without in ((False, "own", "paired, own attention"), (True, "carried", "paired")):
            x, resid, writes = ends[run].x, ends[run].resid, ends[run].writes
            against[matching], by[matching] = suppressing_writes(
                writes, paired.writes, ids, self.healthy.ids, scale, u, seed=self.seed
            )
            centre, level = self._without(ends[without].x[is_tested], ordinary)
            data = ReadoutData(
                # suppression is not the rows' fault
                x=torch.where(is_tested[:, None], u.shifted(x, resid, -against[matching]), x),
                token=torch.cat(token),
                sequence=torch.cat(sequence),
                centre=centre,
                level=level,
                suppression=u.gain * u.centred(against[matching]),
                length=float(u.rows[list(self.healthy.ids)].norm(dim=-1).mean()),
                variance=self._logit_variance(paired.x[is_tested]),
                healthy=float(healthy.mean()),
            )
            readouts[matching] = FittedReadout.fit(u, ids, near, data)
        return _Learned(readouts, against, by[False])

    def _logit_variance(self, x: Tensor) -> float:
        """The mean variance of an ordinary token's logit over places."""
        rows = self.unembedding.rows[list(self.healthy.ids)] - self.unembedding.mean
        around = x - x.mean(0)
        return float(((rows @ (around.T @ around / len(x))) * rows).sum(1).mean())

    def _without(self, x: Tensor, token: Tensor) -> tuple[Tensor, float]:
        """The mean x [d_model] of places that encode another token, and other ordinary tokens' mean logit there."""
        u, ids = self.unembedding, list(self.healthy.ids)
        centre = x.mean(0)
        logits = centre @ u.rows[ids].T + u.bias[ids]
        return centre, float((logits.sum() - u.logits_at(x, token).mean()) / (len(ids) - 1))


def _mixed(own: Attention, other: Attention) -> Attention:
    return {name: _OWN_SHARE * own[name] + (1 - _OWN_SHARE) * other[name] for name in own}


def labelled_values(
    values: Sequence[Tensor], combinations: Sequence[str], sites: PredictionSites, near: Mapping[int, Tensor]
) -> xr.Dataset:
    """`value` [pairing combination quantity at] from the values of each pairing, and `alike` [at], cluster sizes."""
    coords = {
        "pairing": np.arange(len(values)),
        "combination": list(combinations),
        "quantity": list(QUANTITIES),
        "sequence": ("at", sites.sequence.cpu().numpy()),
        "token": ("at", sites.token.cpu().numpy()),
    }
    return xr.Dataset(
        {
            "value": label("value", torch.stack(list(values)), "pairing combination quantity at", coords),
            "alike": label("alike", [len(near[t]) for t in sites.token.tolist()], "at", coords),
        }
    )


def joined(runs: Sequence[FinalResidual]) -> FinalResidual:
    """The final residuals of several runs, concatenated, with the mean of their writes."""
    x, resid = torch.cat([run.x for run in runs]), torch.cat([run.resid for run in runs])
    return FinalResidual(x, resid, torch.stack([run.writes for run in runs]).mean(0))


def _control(pool: Pool, healthy: Pool, seed: int) -> Pool:
    """Size-matched ordinary tokens, or as many as there are; for a pool of ordinary ones, half of the others."""
    others = healthy.without(pool.ids) if set(healthy.ids) - set(pool.ids) else healthy
    count = min(len(pool), max(len(others) // 2, min(len(others), 60)))
    few = Pool("few", tuple(pool.ids)[:count])
    return few.control(others, seed=seed) if not set(few.ids) & set(others.ids) else others
