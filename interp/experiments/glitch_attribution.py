"""Why does copying fail on these tokens? The deficit against ordinary tokens, split into identity and stages, in nats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import called, on_reference
from interp.hooks import Head, pattern_names, record
from interp.results import Keep, at_once, label
from interp.stages import (
    Places,
    Reader,
    Repairs,
    Unembedding,
    components,
    ends,
    near_duplicates,
    read,
    readdressed,
    retrieval,
    said,
    shapley,
    written_against,
)  # fmt: skip
from interp.statistics import mean_interval
from interp.tokens import Draw, Pool, Repeated
from interp.verdicts import verdict

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

REPAIRS = ("matching", "content", "readout", "suppression")
STAGES = ("identity", *REPAIRS, "unexplained")
QUANTITIES = ("log_prob", "cluster", "log_odds")
ROLES = ("pool", "ordinary")
HEALTHY = 0.05  # nats by which a repair may move ordinary tokens
_OWN = 0.9  # of a pairing's own attention, the rest another's
_HEALTH_PLACES = 1024  # at least so many are asked, of at most so many draws: 0.05 nats are little beside single tokens
_MOST_DRAWS = 16
_FEW = 100  # ordinary tokens that say how near neighbours are


def glitch_attribution(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    pairings: int = 2,
    fits: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Split what a pool's tokens lack of paired ordinary ones (nats, where context can tell them) into causes.

    `deficit` [pool] is log p(c) - log p(t), t a tested token and c the ordinary one in its place in a paired sequence. `share`
    [pool stage] sums to it: `identity`, what log p(t | C) lacks, C being t and its near-duplicates (`stages.near_duplicates`); the
    Shapley values, for log p(C), of four repairs; and what all repairs together leave, `unexplained`. The repairs:

    - `matching`: attention in all heads is that of the paired sequence, with a little of another pairing's: a single one's costs
      ordinary tokens up to 0.04 nats, and the mean of two helps them as much. `value` has it for the called heads only, too.
    - `content`: the paired sequence is run, under the attention of the pool's own run (or with matching, its own), and the end of the
      residual stream is re-addressed from c to t. Where several near-duplicates stand in the sequence, any of their images counts.
    - `readout`: t is read by a row fitted on other sequences (`stages.Reader`), where this repairs at least half of what is
      missing; then content is addressed to that row, too.
    - `suppression`: components that write against the pool beyond chance have the mean write that they have in the paired runs.

    A repair that moves ordinary tokens (studied in the same way; of these nothing is missing, so that no rows are fitted and nothing is
    found against them) by more than 0.05 nats, alone or
    with others, is not used: `used` [pool repair], `health` [pool combination quantity]; with content, which puts other
    ordinary tokens in, the move is from these. A repair that makes things worse is left out: the
    value of a set of repairs is that of its smallest subset which comes within 0.05 nats of the best, as little as repairs do to ordinary tokens. `value` [pool combination quantity] is what was measured: log-prob of the
    token, of its cluster, and log-odds. `alone` [pool repair] is what each repair gains by itself.

    `deficit_low`, `deficit_high`, `share_low`, `share_high` are 95% intervals over sequences and their `pairings`; `fits` times
    as many other sequences fit readers and find what is written against a pool. `largest` [pool stage] is the share of bootstrap
    samples in which a stage is the largest; the attribute `verdict` says it in words. `token_deficit` [pool member] and `token_share` [pool
    member stage] are the same per token (`member_id`). `identity_in` [pool combination] is the identity lost with repairs
    made. In `value`, `paired` is the paired run, and `paired, other rows` the same with the pool's rows fitted. `retrieval` [pool role place depth way] is how often the residual stream tells which token it is, at its source
    and where it is predicted (chance: `chance` [pool role]), of the tokens that the other sequences hold, beside as many ordinary ones. `against` [pool component] are logits written against the pool.

    Raises `InterpError` where the model caps its logits, and for pools too small to pair.
    """
    if pairings < 1 or fits < 1:
        raise InterpError(f"pairings {pairings}, fits {fits}: use whole numbers from 1 up")
    unembedding = Unembedding(model)
    healthy, found = on_reference(model, draw, keep, reference, seed=seed)
    heads = sorted({at for kind in ("induction", "previous") for at in called(found, kind)})
    study = _Study(model, healthy, heads, unembedding, draw, pairings, fits, seed)
    ordinary = keep("ordinary tokens", study.health)
    parts, words = [], []
    for pool in pools:
        of_pool, said_of = _shares(keep(pool.name, partial(study.of, pool)), ordinary["value"])
        parts.append(of_pool)
        words.append(f"{pool.name}: {said_of}")
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    data = xr.concat(parts, names, join="outer", fill_value={"member_id": -1})
    return data.assign_attrs(verdict="\n".join(words), among=healthy.name)


def subsets(of: tuple[str, ...] = REPAIRS) -> Iterator[tuple[str, ...]]:
    """All subsets, the empty one first."""
    for size in range(len(of) + 1):
        yield from combinations(of, size)


def named(repairs: tuple[str, ...]) -> str:
    """The name of a combination, as in the coordinate `combination`."""
    return " + ".join(repairs) or "none"


def _control(pool: Pool, healthy: Pool, seed: int) -> Pool:
    """As many ordinary tokens, so far as there are; of a pool of ordinary ones, half of the others."""
    others = healthy.without(pool.ids) if set(healthy.ids) - set(pool.ids) else healthy
    count = min(len(pool), max(len(others) // 2, min(len(others), 60)))
    few = Pool("few", tuple(pool.ids)[:count])
    return few.control(others, seed=seed) if not set(few.ids) & set(others.ids) else others


class _Study:
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
        others = [self.draw(pool, others=k) for k in range(1, self.fits + 1)]
        mine = self._near([tokens, *others])
        repairs = self._fitted(others, mine)
        control = _control(pool, self.healthy, self.seed)
        told = [retrieval(self.model, others, tokens)]
        told.append(
            retrieval(self.model, [self.draw(control, others=k) for k in range(1, self.fits + 1)], self.draw(control))
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
            tokens = self.draw(self.healthy, others=draw and (1 + self.fits) * self.pairings + draw)
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

    def _fitted(self, sequences: list[Repeated], near: dict[int, Tensor]) -> Repairs:
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
            for name, end in {
                "pair": ordinary, "own": ends(model, tokens, every, writes=tested),
                "carried": ends(model, tokens, every, patterns=attention, writes=tested),
            }.items():  # fmt: skip
                assert end.writes is not None
                for what, value in (("x", end.x), ("resid", end.resid), ("writes", end.writes[None])):
                    runs.setdefault(f"{name} {what}", []).append(value)
            for name, value in {
                "token": every.token, "sequence": every.sequence + offset, "tested": tested,
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
            readers[carried] = Reader(
                u, ids, near, x, data["token"], data["sequence"], self.length, float(data["control"].mean())
            )
        return Repairs(readers, against, by[False])


def _shares(own: xr.Dataset, ordinary: xr.DataArray) -> tuple[xr.Dataset, str]:
    """The result of one pool, and the verdict on it; `ordinary`, what was measured on ordinary tokens."""
    mean = own["value"].mean("pairing")
    moved = ordinary.mean(["pairing", "at"])
    # content puts other tokens in: what it leaves as it is are these
    base = ["paired" if "content" in str(c) else "none" for c in moved["combination"].values]
    health = moved - moved.sel(combination=base).values
    used = _healthy(health.sel(quantity="log_prob"))
    # a repair that makes things worse is left out: the smallest good subset, by the mean over all places
    cluster = mean.sel(quantity="cluster")
    levels = {frozenset(s): float(cluster.sel(combination=named(s)).mean()) for s in subsets(used)}
    best = {}
    for chosen in levels:
        within = sorted((t for t in levels if t <= chosen), key=lambda t: (len(t), -levels[t]))
        most = max(levels[t] for t in within)
        best[chosen] = next(t for t in within if levels[t] >= most - HEALTHY)
    values = {s: cluster.sel(combination=named(_ordered(best[s]))).values for s in levels}  # [at]
    worth = shapley(values, used)
    paired = mean.sel(combination="paired")
    none = mean.sel(combination="none")
    nothing = np.zeros(cluster.sizes["at"])
    identity = _lost(paired) - _lost(none)
    every = {"identity": identity} | {name: worth.get(name, nothing) for name in REPAIRS}
    every["unexplained"] = paired.sel(quantity="cluster").values - values[frozenset(used)]
    shares = np.stack([every[name] for name in STAGES], -1)  # [at stage]
    deficit = (paired - none).sel(quantity="log_prob").values
    of_sequence = _means(np.column_stack([shares, deficit]), own["sequence"].values)
    of_token = _means(np.column_stack([shares, deficit]), own["token"].values)
    middle, low, high = mean_interval(of_sequence)
    alone = [float(cluster.sel(combination=name).mean() - cluster.sel(combination="none").mean()) for name in REPAIRS]
    gains = {s: levels[best[s]] - levels[frozenset()] for s in levels}
    words, largest = verdict(of_sequence[:, :-1], of_sequence[:, -1], gains, STAGES, REPAIRS)
    coords: dict[str, Any] = {
        "stage": list(STAGES), "repair": list(REPAIRS), "combination": list(map(str, own["combination"].values)),
        "quantity": list(QUANTITIES), "role": list(ROLES), "member": np.arange(len(of_token)),
        **{name: own[name].values for name in ("component", "place", "depth", "way")},
    }  # fmt: skip
    weight = np.bincount(np.unique(own["sequence"].values, return_inverse=True)[1])
    if len(set(weight)) > 1:  # sequences with more places count for more in a mean over places, not here
        middle = of_sequence.mean(0)
    in_each = {
        c: _means(_lost(mean.sel(combination=c))[:, None], own["sequence"].values).mean() for c in coords["combination"]
    }
    by_sequence = {  # means of sequences, as the shares are
        c: _means(mean.sel(combination=c).transpose("at", "quantity").values, own["sequence"].values).mean(0)
        for c in coords["combination"]
    }
    data = {
        "deficit": xr.DataArray(middle[-1]), "deficit_low": xr.DataArray(low[-1]), "deficit_high": xr.DataArray(high[-1]),
        "share": label("share", middle[:-1], "stage", coords),
        "share_low": label("share_low", low[:-1], "stage", coords), "share_high": label("share_high", high[:-1], "stage", coords),
        "largest": label("largest", largest, "stage", coords),
        "used": label("used", [name in used for name in REPAIRS], "repair", coords),
        "alone": label("alone", alone, "repair", coords),
        "value": label("value", np.stack(list(by_sequence.values())), "combination quantity", coords),
        "identity_in": label("identity_in", [in_each["paired"] - v for v in in_each.values()], "combination", coords),
        "health": label("health", health.transpose("combination", "quantity").values, "combination quantity", coords),
        "token_share": label("token_share", of_token[:, :-1], "member stage", coords),
        "token_deficit": label("token_deficit", of_token[:, -1], "member", coords),
        "member_id": label("member_id", np.unique(own["token"].values), "member", coords),
        "near_duplicates": xr.DataArray(float(own["alike"].mean())),
        "against": label("against", own["against"].values, "component", coords),
        "retrieval": label("retrieval", own["retrieval"].values, "role place depth way", coords),
        "chance": label("chance", own["chance"].values, "role", coords),
        "fitted": xr.DataArray(bool(own["fitted"])),
    }  # fmt: skip
    return xr.Dataset({name: value.drop_attrs() if name != "share" else value for name, value in data.items()}), words


def _healthy(moved: xr.DataArray) -> tuple[str, ...]:
    """The repairs that leave ordinary tokens as they are, alone and together."""
    used: tuple[str, ...] = REPAIRS
    while True:
        sick = {s: abs(float(moved.sel(combination=named(s)))) for s in subsets(used)}
        sick = {s: by for s, by in sick.items() if by > HEALTHY}
        if not sick:
            return used
        fewest = min(map(len, sick))
        worst = max((s for s in sick if len(s) == fewest), key=lambda s: sick[s])
        # of several that fail only together, the one that fails most often
        drop = max(worst, key=lambda name: (sum(name in s for s in sick), -REPAIRS.index(name)))
        used = tuple(name for name in used if name != drop)


def _ordered(repairs: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in REPAIRS if name in repairs)


def _lost(values: xr.DataArray) -> np.ndarray:
    """[at]: log p(t | C)."""
    return values.sel(quantity="log_prob").values - values.sel(quantity="cluster").values


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means of rows [row ...] over groups, [group ...], groups in sorted order."""
    _, index = np.unique(groups, return_inverse=True)
    total = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(total, index, values)
    return total / np.bincount(index)[:, None]
