"""Rows fitted to read a pool's tokens where their own do not, and the test by which these are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.stages.unembedding import CELLS, Unembedding

if TYPE_CHECKING:
    from torch import Tensor

_VARIANCES = (10.0, 1.0, 0.1)  # prior variances of a change's logits, in those of ordinary tokens
_WORTH = 0.05  # nats that a reader must gain on held-out sequences
_STEPS = 60  # of L-BFGS


class Reader:
    """Rows to read a pool's tokens with, fitted to other sequences; their own rows unless others are surely better.

    Candidates are the tokens' own rows at the mean length of the ordinary rows, and the same with changes fitted by maximum
    likelihood under Gaussian priors of several widths: one change that all tokens share and one of each; the length stays. What is
    made likely is that the token or one of its near-duplicates comes. Constants are not fitted: where the same attention
    carries another token's content, each token has the mean logit of ordinary tokens, so that a row may say what is there, and
    not that something is missing. What is written against them is read as their own rows read it, for it is no fault of theirs.

    The best on held-out halves of the sequences is taken where it gains at least half of what the own rows lack of the paired
    ordinary tokens, 0.05 nats, and twice its standard error, and tells the pool's clusters apart: the likeliest of the pool is the right
    one at least half way from chance to always. Else the fault is not theirs. `used` says whether one was; `tells`, whether
    there was more than one cluster to tell apart, so that the fault is surely the rows'.
    """

    def __init__(
        self, unembedding: Unembedding, ids: Tensor, near: Mapping[int, Tensor] | None = None, x: Tensor | None = None,
        target: Tensor | None = None, sequence: Tensor | None = None, *, without: tuple[Tensor, float] | None = None,
        against: Tensor | None = None,
        length: float = 0.0, spread: float = 1.0, healthy: float = 0.0,
    ):  # fmt: skip
        """`ids` [token] sorted; `x` [place d_model], `target` [place], `sequence` [place].

        `without` is the mean x [d_model] where these tokens' content is not carried, and the mean logit of ordinary tokens there;
        `against` [d_model], a direction in x that is written against them: a change must not look at it. `length` is that of ordinary rows, `spread` the variance of their logits over places and `healthy` their mean log-prob, in paired runs. Without places, nothing is fitted.
        """
        import torch

        # experiments run in inference mode, whose tensors have no gradient: copies made outside it have
        self.ids = ids
        self.rows = unembedding.rows[ids].clone()
        self.shift = torch.zeros_like(self.rows[:, 0])
        self.used = self.tells = False
        if near is None or x is None or target is None or sequence is None or without is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            ids, x, target, sequence, centre = (t.clone() for t in (ids, x, target, sequence, without[0]))
            blind = None if against is None else against.clone()
            self._fit(unembedding, near, ids, x, target, sequence, centre, without[1], blind, length, spread, healthy)

    def _fit(
        self, unembedding: Unembedding, near: Mapping[int, Tensor], ids: Tensor, x: Tensor, target: Tensor, sequence: Tensor,
        centre: Tensor, level: float, blind: Tensor | None, length: float, variance: float, healthy: float,
    ) -> None:  # fmt: skip
        import torch

        own = unembedding.rows[ids]
        one = torch.nn.functional.normalize(own, dim=-1)
        others = _others(unembedding, ids, x)
        where = torch.full((len(unembedding.rows),), -1, device=ids.device)
        where[ids] = torch.arange(len(ids), device=ids.device)
        label = where[target]  # -1: not of the pool
        logit = (x * unembedding.rows[target]).sum(-1) + unembedding.bias[target]
        around = x - x.mean(0)
        spread = torch.linalg.eigh(around.T @ around / len(x) + 1e-6 * torch.eye(x.shape[1]).to(x))
        floor = spread.eigenvalues.clamp_min(1e-3 * spread.eigenvalues.mean())
        whiten = spread.eigenvectors / floor.sqrt()  # [d_model direction]
        if blind is not None and float(blind.norm()) > 0:
            unit = blind / blind.norm()
            whiten = whiten - torch.outer(unit, unit @ whiten)
        alike = torch.stack([torch.isin(ids, near[int(t)].to(ids.device)) for t in ids])  # [token token]

        outside = torch.full_like(logit, -torch.inf)  # near-duplicates that the pool lacks are no competitors
        for i, t in enumerate(ids):
            more = near[int(t)].to(ids.device)
            more = more[~torch.isin(more, ids)]
            if len(more) and bool((label == i).any()):
                outside[label == i] = (x[label == i] @ unembedding.rows[more].T + unembedding.bias[more]).logsumexp(1)

        def told(scores: Tensor, at: Tensor) -> Tensor:
            return alike[label[at].clamp_min(0), scores.argmax(1)].to(x) * of_pool[at]

        def likelihood(scores: Tensor, at: Tensor) -> Tensor:
            together = scores.masked_fill(~alike[label[at].clamp_min(0)], -torch.inf).logsumexp(1)
            right = torch.logaddexp(together, outside[at]).where(label[at] >= 0, logit[at])
            return right - torch.logaddexp(others[at], scores.logsumexp(1))

        def scored(rows: Tensor, at: Tensor) -> Tensor:
            return (x[at] - centre) @ rows.T + level

        def fitted(share: float, at: Tensor) -> Tensor:
            def changed(change: Tensor) -> Tensor:
                return torch.nn.functional.normalize(one * length + change @ whiten.T, dim=-1) * length

            if not share:
                return one * length
            strength = x.shape[1] / (share * variance)
            return changed(_fit(lambda c: -likelihood(scored(changed(c), at), at).sum(), own.shape, strength, x))

        def held_out(share: float) -> tuple[Tensor, Tensor]:
            held, which = torch.empty_like(logit), torch.empty_like(logit)
            for fold in (half, ~half):
                scores = scored(fitted(share, ~fold), fold)
                held[fold], which[fold] = likelihood(scores, fold), told(scores, fold)
            return held, which

        half = (sequence % 2).bool()
        everywhere = torch.ones_like(half)
        of_pool = label >= 0
        plain = likelihood(x @ own.T + unembedding.bias[ids], everywhere)
        missing = healthy - float(plain[of_pool].mean())
        if missing < _WORTH:  # nothing is: nobody is at fault
            return
        chance = float((alike.sum(1) / len(ids))[label[of_pool]].mean())
        best: tuple[float, float] | None = None
        for share in (0.0, *_VARIANCES):
            held, which = held_out(share)
            gained = _by_sequence((held - plain)[of_pool], sequence[of_pool])
            mean, error = float(gained.mean()), float(gained.std()) / math.sqrt(len(gained))
            sure = mean > max(_WORTH, missing / 2, 2 * error) and float(which[of_pool].mean()) >= (1 + chance) / 2
            if sure and (best is None or mean > best[0]):
                best = mean, share
        if best is not None:
            self.rows, self.used = fitted(best[1], everywhere), True
            self.tells = chance < 0.5
            self.shift = level - unembedding.bias[ids] - self.rows @ centre

    def rows_of(self, token: Tensor, unembedding: Unembedding) -> Tensor:
        """[place d_model]: the rows to address these tokens by."""
        import torch

        return self.rows[torch.searchsorted(self.ids, token)] if self.tells else unembedding.rows[token]

    def logits(self, x: Tensor, unembedding: Unembedding) -> Tensor:
        """[place token] for the pool's tokens."""
        return x @ self.rows.T + self.shift + unembedding.bias[self.ids]


def _others(unembedding: Unembedding, ids: Tensor, x: Tensor) -> Tensor:
    """[place]: log of the summed exponentials of all logits but those of some tokens."""
    import torch

    found = []
    for part in x.split(max(1, CELLS // len(unembedding.rows))):
        logits = part @ unembedding.rows.T + unembedding.bias
        logits[:, ids] = -torch.inf
        found.append(logits.logsumexp(1))
    return torch.cat(found)


def _fit(loss: Any, shape: Sequence[int], strength: float, like: Tensor) -> Tensor:
    """[token direction]: a change of every row, the part that all share and the own parts each under a Gaussian prior."""
    import torch

    with torch.enable_grad():
        shared, each = (
            torch.zeros(*size, dtype=like.dtype, device=like.device, requires_grad=True)
            for size in ((1, shape[1]), tuple(shape))
        )
        optimizer = torch.optim.LBFGS([shared, each], max_iter=_STEPS, history_size=8, line_search_fn="strong_wolfe")

        def step() -> Tensor:
            optimizer.zero_grad()
            value = loss(shared + each) + strength / 2 * (shared.square().sum() + each.square().sum())
            value.backward()
            return value

        optimizer.step(step)
        return (shared + each).detach()


def _by_sequence(values: Tensor, sequence: Tensor) -> Tensor:
    """Means over the places of each sequence."""
    import torch

    size = int(sequence.max()) + 1
    total = torch.zeros(size).to(values).index_add(0, sequence, values)
    count = torch.zeros(size).to(values).index_add(0, sequence, torch.ones_like(values))
    return total[count > 0] / count[count > 0]
