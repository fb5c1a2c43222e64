"""Can fitted rows read a pool's tokens where their own cannot? Rows fitted on other sequences, and when to use them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.repairs.unembedding import Unembedding

_VARIANCES = (10.0, 1.0, 0.1)  # prior variances of the change in logits, relative to those of ordinary tokens
_LEAST_GAIN = 0.05  # nats that fitted rows must gain on held-out sequences
_STARTS = ("own", "predicted", "predicted, blind")  # rows that fitting starts from
_OF_MISSING = 0.02  # share of the deficit that ordinary tokens may lose to fitted rows, where that is more
_HALVINGS = 10  # of the part of the way from own rows to fitted ones
STEPS = 60  # of L-BFGS: rows of many tokens need more to converge


@dataclass(frozen=True)
class ReadoutData:
    """What rows are fitted to: final residuals of runs on other sequences, and reference values of ordinary tokens.

    Attributes:
        x: [place d_model].
        token: [place], the correct token.
        sequence: [place], which sequence it is in.
        centre: [d_model], the mean x where the same attention carries other tokens' content.
        level: the mean logit of ordinary tokens there.
        suppression: [d_model] or [direction d_model], the direction in x that is written against the pool, and others
            that encode only the position: a change must not read them.
        length: the mean length of ordinary rows.
        variance: the variance of ordinary tokens' logits over places, in paired runs.
        healthy: their mean log-prob there.
    """

    x: Tensor
    token: Tensor
    sequence: Tensor
    centre: Tensor
    level: float
    suppression: Tensor
    length: float
    variance: float
    healthy: float


@dataclass(frozen=True)
class FittedReadout:
    """Rows to read a pool's tokens with: their own, or fitted ones.

    Attributes:
        ids: [token], sorted.
        rows: [token d_model].
        shift: [token], added to the tokens' own biases.
        used: whether the rows are fitted ones.
        distinguishes: whether there was more than one cluster to distinguish, so that the fault clearly lies with the
            tokens' own rows.
        testable: whether some of the rows that were tried distinguish the pool's clusters on held-out sequences, or
            nothing is missing; otherwise nothing is known about the own rows, because there is nothing to read.
    """

    ids: Tensor
    rows: Tensor
    shift: Tensor
    used: bool = False
    distinguishes: bool = False
    testable: bool = True

    @classmethod
    def own(cls, unembedding: Unembedding, ids: Tensor) -> Self:
        """The tokens' own rows."""
        return cls(ids, unembedding.rows[ids], torch.zeros_like(unembedding.bias[ids]))

    @classmethod
    def fit(
        cls,
        unembedding: Unembedding,
        ids: Tensor,
        near: Mapping[int, Tensor],
        data: ReadoutData,
        *,
        steps: int = STEPS,
        predicted: bool = False,
    ) -> Self:
        """Rows fitted to other sequences; the tokens' own unless the fitted ones are clearly better.

        Candidates are the tokens' own rows at the mean length of the ordinary rows, and the same with changes fitted by
        maximum a posteriori under Gaussian priors of several widths: one change shared by all tokens and one per token;
        the length is kept. The likelihood is that of the token or one of its near-duplicates. Constants are not fitted:
        where the same attention carries another token's content, each token has the mean logit of ordinary tokens, so
        that a row can encode what is there, but not that something is missing. What is written against the tokens is
        read as their own rows read it, because that is not the rows' fault.

        The best candidate on held-out halves of the sequences is used if its gain is at least half the deficit of the
        own rows to the paired ordinary tokens, 0.05 nats, and twice its standard error, and if it distinguishes the
        pool's clusters: the pool's most likely token is the correct one at least half way from chance to always.
        Otherwise the fault is not in the rows. With `predicted`, rows go from the own ones only that part of the way to
        the best candidate at which the tokens are as likely, on held-out sequences, as ordinary ones.

        Args:
            unembedding: the model's.
            ids: [token], the pool's tokens, sorted.
            near: for each token its near-duplicates and itself.
            data: what to fit to.
            steps: the maximum number of L-BFGS steps.
            predicted: whether the rows that ordinary tokens would have at such places are candidates, too; ordinary
                tokens must then be among the places, and lose next to nothing to the rows that are used.
        """
        x, own = data.x, cls.own(unembedding, ids)
        likelihood = _Likelihood(unembedding, ids, near, data)
        of_pool, everywhere = likelihood.of_pool, torch.ones_like(likelihood.of_pool)
        plain = likelihood.log_prob(own.logits(x, unembedding), everywhere)
        missing = data.healthy - float(plain[of_pool].mean())
        if missing < _LEAST_GAIN:  # no deficit, so no fault
            return own
        start = normalize(own.rows, dim=-1) * data.length

        def scores(rows: Tensor, at: Tensor) -> Tensor:
            return (x[at] - data.centre) @ rows.T + data.level

        def whitening(at: Tensor) -> Tensor:
            return _whitening(x[at], data.suppression, shrunk=True) if predicted else _whitening(x, data.suppression)

        def fitted(way: tuple[str, float], at: Tensor, whiten: Tensor) -> Tensor:
            first_rows, share = way
            of_ordinary = first_rows != "own"
            first = start
            if of_ordinary:
                as_own = first_rows == "predicted"
                first = _rows_of_ordinary(unembedding, ids, likelihood, data, at, as_own=as_own)

            def changed(change: Tensor) -> Tensor:
                rows = first + change @ whiten.T
                return rows if of_ordinary else normalize(rows, dim=-1) * data.length

            def loss(change: Tensor) -> Tensor:
                return -likelihood.log_prob(scores(changed(change), at), at).sum()

            if not share:
                return first
            return changed(_best_change(loss, own.rows, x.shape[1] / (share * data.variance), steps))

        half = (data.sequence % 2).bool()
        folds = [(fold, whitening(~fold)) for fold in (half, ~half)]
        chance = float((likelihood.alike.sum(1) / len(ids))[likelihood.label[of_pool]].mean())
        count = data.sequence[of_pool].bincount()
        best: tuple[float, tuple[str, float], Tensor] | None = None
        told = float(likelihood.correct(own.logits(x, unembedding), everywhere)[of_pool].mean())
        for way in product(_STARTS if predicted else _STARTS[:1], (0.0, *_VARIANCES)):
            if way[0] == _STARTS[-1] and best is not None:
                break  # rows that read the suppression as the own rows do are good enough
            held, right = torch.empty_like(plain), torch.empty_like(plain)
            logits = torch.empty((len(x), len(ids))).to(x)
            for fold, whiten in folds:
                logits[fold] = of_fold = scores(fitted(way, ~fold, whiten), fold)
                held[fold], right[fold] = likelihood.log_prob(of_fold, fold), likelihood.correct(of_fold, fold)
            harm = float((plain - held)[~of_pool].mean()) if predicted else 0.0
            if harm > max(_LEAST_GAIN, _OF_MISSING * missing):
                continue  # with these rows, the pool's tokens are predicted where others are carried
            gained = (data.sequence[of_pool].bincount((held - plain)[of_pool]) / count)[count > 0]  # [sequence]
            mean, error = float(gained.mean()), float(gained.std()) / math.sqrt(len(gained))
            better = mean > max(_LEAST_GAIN, missing / 2, 2 * error)
            told = max(told, float(right[of_pool].mean()))
            if better and float(right[of_pool].mean()) >= (1 + chance) / 2 and (best is None or mean > best[0]):
                best = mean, way, logits
        if best is None:
            return replace(own, testable=told >= (1 + chance) / 2)
        rows = fitted(best[1], everywhere, whitening(everywhere))
        shift = data.level - unembedding.bias[ids] - rows @ data.centre
        if predicted:
            before = own.logits(x[of_pool], unembedding)
            part = _part_of_the_way(likelihood, of_pool, before, best[2][of_pool], data.healthy)
            rows, shift = own.rows + part * (rows - own.rows), part * shift
        return cls(ids, rows, shift, True, chance < 0.5)

    def rows_of(self, token: Tensor, unembedding: Unembedding) -> Tensor:
        """[place d_model]: the rows that stand for these tokens."""
        return self.rows[torch.searchsorted(self.ids, token)] if self.distinguishes else unembedding.rows[token]

    def logits(self, x: Tensor, unembedding: Unembedding) -> Tensor:
        """[place token] for the pool's tokens."""
        return x @ self.rows.T + self.shift + unembedding.bias[self.ids]


class _Likelihood:
    """How likely the correct tokens are, given logits [place token] of a pool's tokens; others keep their logits."""

    def __init__(self, unembedding: Unembedding, ids: Tensor, near: Mapping[int, Tensor], data: ReadoutData):
        where = torch.full((len(unembedding.rows),), -1, device=ids.device)
        where[ids] = torch.arange(len(ids), device=ids.device)
        self.label = where[data.token]  # -1: not in the pool
        self.of_pool = self.label >= 0
        self.logit = unembedding.logits_at(data.x, data.token)
        alike = [near[t].to(ids.device) for t in ids.tolist()]
        self.alike = torch.stack([torch.isin(ids, tokens) for tokens in alike])  # [token token]
        parts = (unembedding.logits(data.x[part]) for part in unembedding.batches(len(data.x)))
        self.others = torch.cat([part.index_fill(1, ids, -torch.inf).logsumexp(1) for part in parts])
        self.outside = torch.full_like(self.logit, -torch.inf)  # near-duplicates outside the pool: not competitors
        for i, tokens in enumerate(alike):
            more = tokens[~torch.isin(tokens, ids)]
            here = self.label == i
            self.outside[here] = (data.x[here] @ unembedding.rows[more].T + unembedding.bias[more]).logsumexp(1)

    def log_prob(self, scores: Tensor, at: Tensor) -> Tensor:
        """[place]: log-prob of the correct token or its near-duplicates, at the places marked in `at`."""
        together = scores.masked_fill(~self.alike[self.label[at].clamp_min(0)], -torch.inf).logsumexp(1)
        right = torch.logaddexp(together, self.outside[at]).where(self.of_pool[at], self.logit[at])
        return right - torch.logaddexp(self.others[at], scores.logsumexp(1))

    def correct(self, scores: Tensor, at: Tensor) -> Tensor:
        """[place]: 1 where the pool's most likely token is the correct one or a near-duplicate."""
        return self.alike[self.label[at].clamp_min(0), scores.argmax(1)].to(scores) * self.of_pool[at]


def _part_of_the_way(likelihood: _Likelihood, at: Tensor, own: Tensor, fitted: Tensor, healthy: float) -> float:
    """The smallest part of the way from `own` to `fitted` logits [place token] at which tokens are as likely as others.

    Rows that read more than is missing would make up for other faults, too. 1 where all of the way does not suffice.
    """

    def enough(part: float) -> bool:
        return float(likelihood.log_prob(own + part * (fitted - own), at).mean()) >= healthy

    if not enough(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _rows_of_ordinary(
    unembedding: Unembedding, ids: Tensor, likelihood: _Likelihood, data: ReadoutData, at: Tensor, *, as_own: bool
) -> Tensor:
    """[token d_model]: the row that an ordinary token with the same carried content would have.

    A ridge regression from x to ordinary tokens' rows, evaluated at each token's mean x; it needs fewer places than a
    row has entries. The mean of all rows is added, so that these logits rise and fall with the others. With `as_own`,
    what is written against the tokens is read as their own rows read it; otherwise it is not read at all.
    """
    x, of_pool = data.x, likelihood.of_pool
    ordinary, token = x[at & ~of_pool], data.token[at & ~of_pool]
    around = ordinary - ordinary.mean(0)
    gram = around.T @ around
    gram = gram + gram.trace() / len(gram) * torch.eye(len(gram)).to(gram)
    target = unembedding.rows[token] - unembedding.mean
    label = likelihood.label[at & of_pool]
    total = torch.zeros((len(ids), x.shape[1])).to(x).index_add(0, label, x[at & of_pool] - data.centre)
    mean = total / label.bincount(minlength=len(ids)).clamp_min(1)[:, None]
    blind = data.suppression.reshape(-1, x.shape[1])
    basis = torch.linalg.qr(blind[blind.norm(dim=1) > 0].T).Q
    rows = (mean - (mean @ basis) @ basis.T) @ torch.linalg.solve(gram, around.T @ target)
    apart = normalize(rows - (rows @ basis) @ basis.T, dim=-1) * target.norm(dim=-1).mean()
    if not as_own:
        return unembedding.mean + apart
    against = normalize(blind[:1], dim=-1)
    return unembedding.mean + apart + ((unembedding.rows[ids] - unembedding.mean) @ against.T) @ against


def _whitening(x: Tensor, blind: Tensor, *, shrunk: bool = False) -> Tensor:
    """[d_model direction]: coordinates in which x has equal variance, blind to one or several directions.

    A few places in a wide stream hardly vary in most directions, although other places do: rows that read such a
    direction harm tokens that were not sampled. Where that can happen, the covariance is shrunk towards isotropy.

    Source of the shrinkage: Y. Chen, A. Wiesel, Y. Eldar, A. Hero, "Shrinkage algorithms for MMSE covariance
    estimation" (2010), eq. 23 ("OAS").
    """
    around, (count, width) = x - x.mean(0), x.shape
    covariance = around.T @ around / count
    if shrunk:
        mean, square = covariance.trace() / width, covariance.square().sum()
        total = covariance.trace() ** 2
        part = ((1 - 2 / width) * square + total) / ((count + 1 - 2 / width) * (square - total / width))
        part = part.clamp(0, 1)
        covariance = (1 - part) * covariance + part * mean * torch.eye(width).to(x)
    spread = torch.linalg.eigh(covariance + 1e-6 * torch.eye(width).to(x))
    whiten = spread.eigenvectors / spread.eigenvalues.clamp_min(1e-3 * spread.eigenvalues.mean()).sqrt()
    if blind.ndim == 1:
        unit = normalize(blind, dim=0)
        return whiten - torch.outer(unit, unit @ whiten)
    basis = torch.linalg.qr(blind[blind.norm(dim=1) > 0].T).Q
    return whiten - basis @ (basis.T @ whiten)


def _best_change(loss: Callable[[Tensor], Tensor], like: Tensor, strength: float, steps: int) -> Tensor:
    """[token direction]: a change to every row: a shared part and one of its own, each under a Gaussian prior."""
    with torch.enable_grad():
        shared = torch.zeros_like(like[:1]).requires_grad_()
        each = torch.zeros_like(like).requires_grad_()
        optimizer = torch.optim.LBFGS([shared, each], max_iter=steps, history_size=8, line_search_fn="strong_wolfe")

        def step() -> Tensor:
            optimizer.zero_grad()
            value = loss(shared + each) + strength / 2 * (shared.square().sum() + each.square().sum())
            value.backward()
            return value

        optimizer.step(step)
        return (shared + each).detach()
