"""Why does copying fail on these tokens? The deficit against ordinary tokens, split into identity and stages, in nats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.heads import called, on_reference
from interp.progress import track
from interp.results import Keep, at_once
from interp.stages import Places, Reader, Unembedding, components, ends, near_duplicates, read, readdressed, said, shapley
from interp.statistics import mean_interval
from interp.tokens import Draw, Pool, Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

REPAIRS = ("matching", "content", "readout", "suppression")
STAGES = ("identity", *REPAIRS, "unexplained")
HEALTHY = 0.05  # nats that a repair may move ordinary tokens by
_CERTAIN = 3.0  # standard errors by which a component must write against a pool
QUANTITIES = ("log_prob", "cluster", "log_odds")


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
    """TODO"""
    import torch

    if pairings < 1 or fits < 1:
        raise InterpError(f"pairings {pairings}, fits {fits}: use whole numbers from 1 up")
    healthy, found = on_reference(model, draw, keep, reference, seed=seed)
    heads = sorted({at for kind in ("induction", "previous") for at in called(found, kind)})
    unembedding = Unembedding(model)
    parts = []
    for pool in pools:
        study = _Study(model, healthy, heads, unembedding, draw, pairings, fits, seed)
        of_pool = keep(pool.name, lambda pool=pool, study=study: study.of(pool, "glitch"))
        parts.append(of_pool)
    return xr.concat(parts, "pool")


class _Study:
    def __init__(self, model, healthy, heads, unembedding, draw, pairings, fits, seed):
        self.model, self.healthy, self.heads, self.unembedding = model, healthy, heads, unembedding
        self.draw, self.pairings, self.fits, self.seed = draw, pairings, fits, seed
        rows = unembedding.rows[list(healthy.ids)] - unembedding.mean
        self.length = float(rows.norm(dim=-1).mean())

    def values(self, pool: Pool, what: str) -> xr.Dataset:
        import torch

        u, model = self.unembedding, self.model
        tokens = self.draw(pool)
        at = Places.of(tokens)
        rows = []
        self.near = near_duplicates(model, pool.ids, self.healthy.ids, u)
        readers, against = self._fitted(pool, what)
        self.readers, self.against = readers, against
        self.removed = {False: 0.0, True: 0.0}
        for pairing in range(self.pairings):
            pair = self.draw(self.healthy, like=tokens, others=pairing)
            other = Places.of(pair)
            near = self.near | near_duplicates(model, sorted(set(other.token.tolist())), self.healthy.ids, u)
            own = ends(model, tokens, at, u, keep_patterns=True, writes=True)
            ordinary = ends(model, pair, other, u, keep_patterns=True, writes=True)
            carried = ends(model, tokens, at, u, patterns=ordinary.patterns, writes=True)
            removed = {m: ((run.writes - ordinary.writes) * against[m]).sum(1) for m, run in ((False, own), (True, carried))}
            x = {
                (False, False): own.x,
                (False, True): carried.x,
                (True, False): ends(model, pair, other, u, patterns=own.patterns).x,
                (True, True): ordinary.x,
            }
            some = ends(model, tokens, at, u, patterns=ordinary.patterns, heads=self.heads).x if self.heads else own.x
            source = {m: said(x[True, m], at, tokens, pair, near, u) for m in (False, True)}
            out = []
            unit = u.towards(at.token)
            for chosen in subsets():
                matching, content = "matching" in chosen, "content" in chosen
                end, logit = x[content, matching], None
                reader = readers[content or matching]
                e = removed[matching]
                fitted = "readout" in chosen and reader.used
                if content:
                    address = reader.rows[torch.searchsorted(reader.ids, at.token)] if reader.used else u.rows[at.token]
                    end = readdressed(end, u.rows[source[matching]] - u.mean, address - u.mean, u)
                    if "suppression" not in chosen:
                        end = end + e[:, None] * unit
                    if fitted:
                        logit = (end * address).sum(-1) + u.bias[at.token]
                elif "suppression" in chosen:
                    end = end - e[:, None] * unit
                out.append(torch.stack(read(end, at.token, near, u, reader if fitted and not content else None, logit)))
            out.append(torch.stack(read(some, at.token, near, u)))
            out.append(torch.stack(read(ordinary.x, other.token, near, u)))
            rows.append(torch.stack(out).cpu().numpy())
        names = [" + ".join(s) or "none" for s in subsets()] + ["matching in called heads", "control"]
        return xr.Dataset(
            {"value": (("pairing", "combination", "quantity", "place"), np.stack(rows))},
            coords={"combination": names, "quantity": list(QUANTITIES), "sequence": ("place", at.sequence.cpu().numpy()),
                    "token_id": ("place", at.token.cpu().numpy()), "alike": ("place", [len(near[int(t)]) for t in at.token])},
        )

    def _fitted(self, pool: Pool, what: str):
        import torch

        u, model = self.unembedding, self.model
        ids = torch.tensor(sorted(set(pool.ids)), device=u.rows.device)
        seen = {False: [], True: []}
        writes = {"own": [], "carried": [], "pair": [], "null": []}
        places, sequences, tested, control = [], [], [], []
        offset = 0
        generator = np.random.default_rng(self.seed)
        for k in range(1, self.fits + 1):
            tokens = self.draw(pool, others=k)
            pair = self.draw(self.healthy, like=tokens, others=k)
            every = Places.of(tokens, every=True)
            is_tested = torch.from_numpy(tokens.inducible_tested).to(every.token.device)[every.sequence, every.query + 1]
            pair_at = Places(every.sequence, every.query, pair.ids[every.sequence, every.query + 1])
            ordinary = ends(model, pair, pair_at, u, keep_patterns=True, writes=True)
            own = ends(model, tokens, every, u, writes=True)
            carried = ends(model, tokens, every, u, patterns=ordinary.patterns, writes=True)
            stray = torch.from_numpy(generator.choice(np.array(self.healthy.ids), len(every.token))).to(every.token)
            null = ends(model, pair, Places(every.sequence, every.query, stray), u, writes=True)
            seen[False].append(own.x), seen[True].append(carried.x)
            for name, run in (("own", own), ("carried", carried), ("pair", ordinary), ("null", null)):
                writes[name].append(run.writes[is_tested])
            near = near_duplicates(model, sorted(set(pair_at.token[is_tested].tolist())), self.healthy.ids, u)
            control.append(read(ordinary.x[is_tested], pair_at.token[is_tested], near, u)[1])
            places.append(every.token); sequences.append(every.sequence + offset); tested.append(is_tested)
            offset += len(tokens.ids)
        target, sequence, tested = torch.cat(places), torch.cat(sequences), torch.cat(tested)
        w = {name: torch.cat(v) for name, v in writes.items()}
        null = w["null"].mean(0) - _CERTAIN * w["null"].std(0) / len(ids) ** 0.5
        against, readers = {}, {}
        healthy = float(torch.cat(control).mean())
        for carried, name in ((False, "own"), (True, "carried")):
            mean, ordinary = w[name].mean(0), w["pair"].mean(0)
            # writes against these tokens: below 0, below what is written for the control, and beyond what chance rows get
            against[carried] = (mean < 0) & (mean < ordinary) & (mean < null)
            e = ((w[name] - w["pair"]) * against[carried]).sum(1)
            x = torch.cat(seen[carried])
            x[tested] -= e[:, None] * u.towards(target[tested])
            readers[carried] = Reader(u, ids, self.near, x, target, sequence, self.length, healthy)
        return readers, against

    def of(self, pool, what):
        return self.values(pool, what)


def subsets() -> Iterator[tuple[str, ...]]:
    """All subsets of the repairs, the empty one first."""
    for size in range(len(REPAIRS) + 1):
        yield from combinations(REPAIRS, size)
