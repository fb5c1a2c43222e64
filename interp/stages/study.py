"""The runs behind `glitch_attribution`: a pool's sequences and paired ordinary ones, under every combination of repairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.hooks import Head, pattern_names, record
from interp.results import label
from interp.stages.knowledge import retrieval
from interp.stages.places import Places, components, ends
from interp.stages.reader import Reader
from interp.stages.reading import read, said
from interp.stages.suppression import written_against
from interp.stages.unembedding import Unembedding, near_duplicates, readdressed
from interp.tokens import Draw, Pool, Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

REPAIRS = ("matching", "content", "readout", "suppression")
QUANTITIES = ("log_prob", "cluster", "log_odds")
ROLES = ("pool", "ordinary")
_OWN = 0.9  # of a pairing's own attention, the rest another's
_HEALTH_PLACES = 2048  # at least so many are asked, of at most so many draws: 0.05 nats are little beside single tokens
_MOST_DRAWS = 32
_PLACES = 16  # at which each token should be seen by what is fitted to it, on average
_MORE = 4  # times as many draws are the most that this may take
_FEW = 100  # ordinary tokens that say how near neighbours are


def subsets(of: tuple[str, ...] = REPAIRS) -> Iterator[tuple[str, ...]]:
    """All subsets, the empty one first."""
    for size in range(len(of) + 1):
        yield from combinations(of, size)


def named(repairs: tuple[str, ...]) -> str:
    """The name of a combination, as in the coordinate `combination`."""
    return " + ".join(repairs) or "none"


@dataclass
class Repairs:
    """What was learned from other sequences, by whether attention is repaired: readers, and streams written against the pool."""

    readers: dict[bool, Reader]
    against: dict[bool, Tensor]
    by: Tensor


class Study:
    """What is the same for every pool, and the runs on one."""

    def __init__(
        self, model: TransformerBridge, healthy: Pool, heads: list[Head], unembedding: Unembedding, draw: Draw,
        pairings: int, fits: int, seed: int,
    ):  # fmt: skip
        self.model, self.healthy, self.heads, self.unembedding = model, healthy, heads, unembedding
        self.draw, self.pairings, self.fits, self.seed = draw, pairings, fits, seed
        self.length = float(unembedding.rows[list(healthy.ids)].norm(dim=-1).mean())

    def of(self, pool: Pool) -> xr.Dataset:
        """All combinations of repairs at every place: `value` [pairing combination quantity at], and what else is known of a pool."""
        tokens = self.draw(pool)
        at = Places.of(tokens)
        others = self._others(pool)
        mine = self._near([tokens, *others])
        repairs = self._fitted(pool, others, mine)
        control = _control(pool, self.healthy, self.seed)
        told = [retrieval(self.model, others, tokens)]
        told.append(
            retrieval(self.model, [self.draw(control, others=k + 1) for k in range(len(others))], self.draw(control))
        )
        data = self._values(pool, tokens, at, mine, repairs, 0)
        coords = {
            "component": components(self.model), "role": list(ROLES), "place": ["source", "prediction"],
            "depth": ["embedding", *(f"layer {i}" for i in range(self.model.cfg.n_layers))], "way": ["nearest mean", "fitted"],
        }  # fmt: skip
        return data.assign(
            against=label("against", repairs.by, "component", coords),
            retrieval=label("retrieval", np.stack([t.cpu().numpy() for t, _ in told]), "role place depth way", coords),
            chance=label("chance", [1 / count for _, count in told], "role", coords),
            fitted=xr.DataArray(repairs.readers[True].used or repairs.readers[False].used),
        )

    def health(self) -> xr.Dataset:
        """The same of ordinary tokens, of which nothing is missing, so that nothing is fitted: many, one draw at a time."""
        found, places, width = [], 0, len(self.unembedding.mean)
        for draw in range(_MOST_DRAWS):
            tokens = self.draw(self.healthy, others=draw and (1 + _MORE * self.fits) * self.pairings + draw)
            at = Places.of(tokens)
            none = self.unembedding.rows.new_zeros(width)
            readers = {matching: Reader(self.unembedding, at.token.unique()) for matching in (False, True)}
            alone = {int(t): t.reshape(1) for t in at.token.unique()}
            repairs = Repairs(readers, {False: none, True: none}, none[:0])
            found.append(self._values(self.healthy, tokens, at, alone, repairs, draw * self.pairings))
            places += len(at.token)
            if places >= _HEALTH_PLACES:
                break
        return xr.concat(found, "at")

    def _others(self, pool: Pool) -> list[Repeated]:
        """Other sequences to learn from: `fits` draws, and more while they test each token too seldom."""
        found: list[Repeated] = []
        while len(found) < _MORE * self.fits:
            found.append(self.draw(pool, others=len(found) + 1))
            tested = np.concatenate([part.ids.cpu().numpy()[part.inducible_tested] for part in found])
            if len(found) >= self.fits and len(tested) >= _PLACES * len(np.unique(tested)):
                break
        return found

    def _near(self, sequences: list[Repeated]) -> dict[int, Tensor]:
        """The near-duplicates of all tested tokens of these."""
        ids = sorted({int(t) for part in sequences for t in part.ids[part.tested.to(part.ids.device)].unique()})
        apart = set(self.healthy.ids) - set(ids)
        return near_duplicates(
            self.model, ids, sorted(apart) if len(apart) > _FEW else self.healthy.ids, self.unembedding
        )

    def _values(
        self, pool: Pool, tokens: Repeated, at: Places, mine: dict[int, Tensor], repairs: Repairs, first: int
    ) -> xr.Dataset:  # fmt: skip
        import torch

        own = self._own_attention(pool, tokens)
        pairs = list(self._paired(tokens, first))
        if repairs.by.numel():
            near = self._near([pair for pair, _ in pairs]) | mine
        else:  # health is read off log-probs: clusters are not asked for
            near = mine | {
                t: torch.tensor([t], device=at.token.device) for pair, _ in pairs for t in pair.ids.unique().tolist()
            }
        rows = [
            self._combined(tokens, pair, {False: own, True: attention}, at, near, repairs) for pair, attention in pairs
        ]
        coords = {
            "pairing": np.arange(self.pairings), "combination": [*map(named, subsets()), "matching in called heads", "paired", "paired, other rows"],
            "quantity": list(QUANTITIES), "sequence": ("at", at.sequence.cpu().numpy()), "token": ("at", at.token.cpu().numpy()),
        }  # fmt: skip
        return xr.Dataset(
            {
                "value": label("value", torch.stack(rows), "pairing combination quantity at", coords),
                "alike": label("alike", [len(mine[int(t)]) for t in at.token], "at", coords),
            }
        )

    def _paired(self, tokens: Repeated, first: int) -> Iterator[tuple[Repeated, dict[str, Tensor]]]:
        """Sequences of ordinary tokens paired with these, each with its attention, mixed with that of another pairing."""
        count = max(2, self.pairings)
        pairs = [self.draw(self.healthy, like=tokens, others=first + k) for k in range(count)]
        seen = [
            record(self.model, pair.ids, pattern_names(self.model)) for pair in pairs[: min(count, self.pairings + 1)]
        ]
        for k in range(self.pairings):
            one, other = seen[k], seen[(k + 1) % len(seen)]
            yield pairs[k], {name: _OWN * one[name] + (1 - _OWN) * other[name] for name in one}

    def _own_attention(self, pool: Pool, tokens: Repeated) -> dict[str, Tensor]:
        """The pool's own attention, mixed like that of `_paired` with another sequence's of the same structure."""
        own = record(self.model, tokens.ids, pattern_names(self.model))
        if tokens.replacement:  # repeats within a block are a structure of its own
            return own
        whole = bool(tokens.tested[:, int(tokens.bos is not None) :].all())
        if whole:  # such blocks share their structure with every other one of the pool
            twin = tokens.ids.roll(1, 0)
        else:
            try:
                twin = self.draw(pool, like=tokens, others=1).ids
            except InterpError:  # a pool of one token has no twin
                return own
        other = record(self.model, twin, pattern_names(self.model))
        return {name: _OWN * own[name] + (1 - _OWN) * other[name] for name in own}

    def _combined(
        self, tokens: Repeated, pair: Repeated, attention: dict[bool, dict[str, Tensor]], at: Places, near: dict[int, Tensor],
        repairs: Repairs,
    ) -> Tensor:  # fmt: skip
        """[combination quantity place] for one pairing."""
        import torch

        u, model = self.unembedding, self.model
        other = Places.of(pair)
        own = ends(model, tokens, at)
        ordinary = ends(model, pair, other)
        runs = {  # by content and matching, repaired or not
            (False, False): own,
            (False, True): ends(model, tokens, at, patterns=attention[True]),
            (True, False): ends(model, pair, other, patterns=attention[False]),
            (True, True): ordinary,
        }
        source = {m: said(runs[True, m].x, at, tokens, pair, near, u) for m in (False, True)}
        out = []
        for chosen in subsets():
            matching, content, suppression = (name in chosen for name in ("matching", "content", "suppression"))
            run, reader = runs[content, matching], repairs.readers[content or matching]
            fitted = "readout" in chosen and reader.used
            x, own_logit = run.x, None
            if content:
                address = reader.rows_of(at.token, u)
                x = readdressed(x, u.rows[source[matching]] - u.mean, address - u.mean, u)
                if not suppression:
                    x = u.shifted(x, run.resid, repairs.against[matching])
                if fitted:
                    own_logit = (x * address).sum(-1) + u.bias[at.token]
            elif suppression:
                x = u.shifted(x, run.resid, -repairs.against[matching])
            out.append(read(x, at.token, near, u, reader if fitted and not content else None, own_logit))
        some = ends(model, tokens, at, patterns=attention[True], heads=self.heads) if self.heads else own
        out.append(read(some.x, at.token, near, u))
        out.append(read(ordinary.x, other.token, near, u))
        out.append(
            read(ordinary.x, other.token, near, u, repairs.readers[True] if repairs.readers[True].used else None)
        )
        return torch.stack([torch.stack(quantities) for quantities in out])

    def _fitted(self, pool: Pool, sequences: list[Repeated], near: dict[int, Tensor]) -> Repairs:
        """What is learned from other sequences: readers, and what is written against the pool."""
        import torch

        u, model = self.unembedding, self.model
        ids = torch.tensor(sorted(near), device=u.rows.device)
        runs: dict[str, list[Tensor]] = {}
        paired = [next(self._paired(tokens, k * self.pairings)) for k, tokens in enumerate(sequences, start=1)]
        alike = self._near([pair for pair, _ in paired])
        offset = 0
        for tokens, (pair, attention) in zip(sequences, paired, strict=True):
            every = Places.of(tokens, every=True)
            tested = torch.from_numpy(tokens.inducible_tested).to(every.token.device)[every.sequence, every.query + 1]
            there = Places(every.sequence, every.query, pair.ids[every.sequence, every.query + 1])
            ordinary = ends(model, pair, there, writes=tested)
            other = ends(model, pair, there, patterns=self._own_attention(pool, tokens))
            for name, end in {
                "pair": ordinary, "own": ends(model, tokens, every, writes=tested),
                "carried": ends(model, tokens, every, patterns=attention, writes=tested),
            }.items():  # fmt: skip
                assert end.writes is not None
                for what, value in (("x", end.x), ("resid", end.resid), ("writes", end.writes[None])):
                    runs.setdefault(f"{name} {what}", []).append(value)
            for name, value in {
                "token": every.token, "c": there.token, "own without": other.x, "carried without": ordinary.x, "sequence": every.sequence + offset, "tested": tested,
                "control": read(ordinary.x[tested], there.token[tested], alike, u)[1],
            }.items():  # fmt: skip
                runs.setdefault(name, []).append(value)
            offset += len(tokens.ids)
        data = {name: torch.cat(values) for name, values in runs.items()}
        tested, ordinary_writes = data["tested"], data["pair writes"].mean(0)
        scale = float(u.scale(data["pair resid"][tested]).mean())
        against, by, readers = {}, {}, {}
        for carried, name in ((False, "own"), (True, "carried")):
            guilty, by[carried] = written_against(
                data[f"{name} writes"].mean(0), ordinary_writes, ids, self.healthy.ids, scale, u, seed=self.seed
            )
            against[carried] = guilty
            x, resid = data[f"{name} x"], data[f"{name} resid"]
            x = torch.where(
                tested[:, None], u.shifted(x, resid, -guilty), x
            )  # what is suppressed is no fault of the rows
            centre, level = self._without(data[f"{name} without"][tested], data["c"][tested])
            readers[carried] = Reader(
                u, ids, near, x, data["token"], data["sequence"], without=(centre, level), against=u.gain * u.centred(guilty),
                length=self.length, spread=self._logit_variance(data["pair x"][tested]), healthy=float(data["control"].mean()),
            )  # fmt: skip
        return Repairs(readers, against, by[False])

    def _logit_variance(self, x: Tensor) -> float:
        """That of an ordinary token's logit over places."""
        rows = self.unembedding.rows[list(self.healthy.ids)] - self.unembedding.mean
        around = x - x.mean(0)
        return float(((rows @ (around.T @ around / len(x))) * rows).sum(1).mean())

    def _without(self, x: Tensor, token: Tensor) -> tuple[Tensor, float]:
        """The mean x [d_model] of places that say another token, and the mean logit there of ordinary ones that are not it."""
        u, ids = self.unembedding, list(self.healthy.ids)
        centre = x.mean(0)
        logits = centre @ u.rows[ids].T + u.bias[ids]
        said = ((x * u.rows[token]).sum(-1) + u.bias[token]).mean()
        return centre, float((logits.sum() - said) / (len(ids) - 1))


def _control(pool: Pool, healthy: Pool, seed: int) -> Pool:
    """As many ordinary tokens, so far as there are; of a pool of ordinary ones, half of the others."""
    others = healthy.without(pool.ids) if set(healthy.ids) - set(pool.ids) else healthy
    count = min(len(pool), max(len(others) // 2, min(len(others), 60)))
    few = Pool("few", tuple(pool.ids)[:count])
    return few.control(others, seed=seed) if not set(few.ids) & set(others.ids) else others
