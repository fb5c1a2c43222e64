"""How much probability do tokens that should never occur receive, and what does a model generate after one of them?"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import binomtest
from torch import Tensor

from interp.errors import InterpError, first_line
from interp.experiments.emission.continuations import LEAST, OUTCOMES, Unigram, outcome
from interp.first_token import first_token
from interp.models import boundary_ids, exposure_of, published_tokenizer, token_texts
from interp.pool_names import ordinary_pool, pools as resolve, spec_of, vocabulary_size
from interp.progress import track
from interp.rank_statistics import rank_codes, spearman
from interp.results import Keep, at_once, label
from interp.sampling import DECODINGS, Decoding, continued, uniforms
from interp.statistics import mean_interval, statistic_interval
from interp.texts import text_windows
from interp.tokens import LENGTH, Pool, local_generator, repeated
from interp.undertrained.forward_passes import Way, fastest
from interp.undertrained.prompts import HOLE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROLES = ("pool", "control")
CONTEXTS = ("text", "blocks", "pool blocks", "control blocks", "after pool", "after control")
SLIGHT = 0.1  # nats within which two divergences count as equal
_EVERY = 10**9  # more windows than any text has
_WORDS = 0.5  # share of a text's tokens that must be words, not the unknown token
_DRAWS = 1 << 21  # streams of random numbers that choose windows and tokens
BUDGETS = {"quick": {"contexts": 16}, "thorough": {"contexts": 256}}


def emission(
    model: TransformerBridge,
    pools: list[Pool],
    keep: Keep = at_once,
    *,
    text: str = "",
    contexts: int = 64,
    window: int = 24,
    steps: int = 30,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how much probability a pool's tokens receive, and what the model generates after one of them.

    Args:
        model: any loaded model.
        pools: the tokens that are asked about; a pool named `control(NAME)` of another one of the run is its control.
        keep: stores finished parts.
        text: a UTF-8 file, for windows and the unigram distribution (default: a part of the Python standard library).
        contexts: how many sequences of each kind, a positive integer.
        window: how many tokens of text stand before the token that is asked about, 2 or more.
        steps: how many tokens are generated, 8 or more.
        resamples: bootstrap resamples of tokens, for the interval of the correlation.
        seed: decides windows, tokens, controls and sampling.

    Returns:
        `mass` [pool role context batch], 0 to 1: the sum of the probabilities of all tokens of the pool, or of its
        control. `divergence` and `entropy` [pool role batch], nats: D(p || u) of the next prediction p from the unigram
        distribution u of the text, and the entropy of p; the model hedges where the former is smaller and the latter
        larger than for the control. `is_outcome` [pool role decoding outcome batch], 1 for what the continuation is.
        NaN is not tested (attribute `not_tested`). docs/emission.md lists the other variables.

    Raises:
        InterpError: a number is out of range, or a text cannot be read or has too few windows.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs, for the sampling.

    Example:
        >>> result = interp.run("emission", "organism", "unexposed", contexts=4, steps=8, window=4, resamples=10)
        >>> mass = result["mass"].sel(context="text").mean("batch").squeeze()
        >>> (mass.sel(role="pool") < mass.sel(role="control")).item()
        True
    """
    if contexts < 1 or window < 2 or steps < LEAST or resamples < 1:
        raise InterpError(
            f"contexts {contexts}, window {window}, steps {steps}, resamples {resamples}: use 1 or more contexts and "
            f"resamples, windows of 2 or more and {LEAST} or more steps"
        )
    front = first_token(model).id
    longest = (front is not None) + window + steps
    if longest > model.cfg.n_ctx:
        raise InterpError(
            f"a window of {window} and {steps} steps take {longest} positions, and the context of this model has "
            f"{model.cfg.n_ctx}: use a smaller --window or fewer --steps"
        )
    pairs, lacking = _with_controls(model, pools, seed)
    study = _Study(model, pairs, _Source.of(model, text, window, contexts, front, seed), contexts, steps, front, seed)
    masses = keep("probability over contexts", study.over_contexts).drop_attrs()
    names = np.array([pair[0].name for pair in pairs], dtype=object)
    found = xr.concat([study.of_pool(i, keep) for i in range(len(pairs))], "pool")
    found = found.merge(masses).assign_coords(pool=names, role=list(ROLES))
    after = found["held"].transpose("pool", "of", "role", "batch")
    found["mass"].loc[{"context": list(CONTEXTS[-len(ROLES) :])}] = after.values
    found = found.drop_dims("of")
    found["correlation"] = label("correlation", study.correlation(found, resamples), "bound", {"bound": _BOUNDS})
    reasons = [*lacking, *study.not_tested(found)]
    sentences = [f"{name}: {_sentence(found.sel(pool=name))}" for name in names]
    return found.assign_attrs(
        source=study.source.said,
        window=window,
        controls="\n".join(spec_of(control) for _, control in pairs if control is not None),
        not_tested="\n".join(reasons),
        verdict="\n".join(sentences),
    )


_BOUNDS = ["value", "low", "high"]


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """D(p || q) in nats over the last dimension: the expectation under p of log p - log q."""
    p = log_p.exp()
    return -torch.special.entr(p).sum(-1) - (p * log_q).sum(-1)  # 0 log 0 is 0, which kl_div makes NaN


def _with_controls(
    model: TransformerBridge, pools: Sequence[Pool], seed: int
) -> tuple[list[tuple[Pool, Pool | None]], list[str]]:
    """Each pool with its control, and why some have none."""
    named = {pool.name: pool for pool in pools}
    asked = [pool for pool in pools if pool.name not in {f"control({other})" for other in named}]
    pairs: list[tuple[Pool, Pool | None]] = []
    reasons = []
    for pool in asked:
        control = named.get(f"control({pool.name})")
        if control is None:
            try:
                control = resolve(f"control({spec_of(pool)})", model, seed=seed)[0]
            except InterpError as error:
                reasons.append(f"{pool.name}: no control ({first_line(error)})")
        pairs.append((pool, control))
    return pairs, reasons


@dataclass(frozen=True)
class _Source:
    """Windows that prompts begin with, and the text that they are from.

    Attributes:
        windows: [sequence position], what stands first and, of a text, a window: sequence i depends on the seed and i.
        text: what is known of the text; None where there is none.
        said: what the windows are, in words.
        reason: why there is no text.
    """

    windows: Tensor
    text: Unigram | None
    said: str
    reason: str = ""

    @classmethod
    def of(cls, model: TransformerBridge, text: str, width: int, count: int, front: int | None, seed: int) -> _Source:
        """Windows of a text or, where the model cannot read the default one, random tokens."""
        try:
            every = text_windows(model, text, width, _EVERY)
            ids = every[:, every.shape[1] - width :].flatten().cpu().numpy()
            marks = [*boundary_ids(model), getattr(published_tokenizer(model), "unk_token_id", None)]
            if np.isin(ids, [i for i in marks if i is not None]).mean() > _WORDS:
                raise InterpError("the tokenizer cannot write this text: give another --text")
        except InterpError as error:
            if text:
                raise
            drawn = repeated(_ordinary(model), batch=count, length=width, bos=front, seed=seed + _DRAWS)
            return cls(
                drawn.ids[:, : width + (front is not None)].to(model.cfg.device),
                None,
                "random tokens",
                first_line(error),
            )
        if len(every) < count:
            raise InterpError(
                f"the text has {len(every)} windows of {width} tokens, fewer than {count} contexts: use a longer text, "
                "a smaller --window or fewer --contexts"
            )
        order = torch.randperm(len(every), generator=local_generator(seed, _DRAWS))
        unigram = Unigram.of(ids, vocabulary_size(model))
        return cls(every[order[:count].to(every.device)], unigram, text or "the standard library's held-out part")


def _ordinary(model: TransformerBridge) -> Pool:
    """Ordinary tokens, or all where none are known."""
    try:
        return ordinary_pool(model)
    except InterpError:  # a model without a tokenizer
        return Pool("all", tuple(range(vocabulary_size(model))))


@dataclass(frozen=True)
class _Study:
    """Measures pools and their controls."""

    model: TransformerBridge
    pairs: Sequence[tuple[Pool, Pool | None]]
    source: _Source
    contexts: int
    steps: int
    front: int | None
    seed: int

    @cached_property
    def rows(self) -> int:
        """Sequences in a pass: always the same number, so that rounding is the same."""
        return max(1, 1024 // (self.source.windows.shape[1] + 1))

    def over_contexts(self) -> xr.Dataset:
        """`mass` [pool role context batch] where it is read at every position, NaN elsewhere; `occurs`, `size`."""
        mass = np.full((len(self.pairs), len(ROLES), len(CONTEXTS), self.contexts), np.nan)
        jobs: list[tuple[int, int | None, Tensor]] = []  # context, pair (None: all), sequences
        if self.source.text is not None:
            jobs.append((0, None, self.source.windows))
        jobs.append((1, None, self._blocks(_ordinary(self.model))))
        for k, pair in enumerate(self.pairs):
            jobs += [(2 + r, k, self._blocks(pool)) for r, pool in enumerate(pair) if pool is not None]
        for context, one, ids in track(jobs, "probability over contexts", total=len(jobs), even=False):
            among = range(len(self.pairs)) if one is None else [one]
            wanted = [(i, r, pool) for i in among for r, pool in enumerate(self.pairs[i]) if pool is not None]
            sums = self._sums(ids, [pool for _, _, pool in wanted])
            for (i, r, _), values in zip(wanted, sums, strict=True):
                mass[i, r, context] = values
        text = self.source.text
        occurs = [[np.nan if text is None or p is None else text.share(p.ids) for p in pair] for pair in self.pairs]
        size = [[np.nan if p is None else len(p) for p in pair] for pair in self.pairs]
        coords = {"context": list(CONTEXTS), "batch": np.arange(self.contexts)}
        return xr.Dataset(
            {
                "mass": label("mass", mass, "pool role context batch", coords),
                "occurs": label("occurs", np.array(occurs), "pool role"),
                "size": label("size", np.array(size), "pool role"),
            }
        )

    def _blocks(self, pool: Pool) -> Tensor:
        """Repeated blocks of a pool; for a single token, that token four times."""
        length = max(2, min(LENGTH, len(pool)))
        drawn = repeated(pool, batch=self.contexts, length=length, bos=self.front, seed=self.seed)
        most = self.model.cfg.n_ctx
        return drawn.ids[:, :most].to(self.model.cfg.device)

    def _sums(self, ids: Tensor, pools: Sequence[Pool]) -> np.ndarray:
        """[pool batch]: the probability of all tokens of each, mean over positions."""
        found = []
        for part in ids.split(max(1, 1024 // ids.shape[1])):
            p = self.model(part, return_type="logits", prepend_bos=False).float().softmax(-1)
            found.append(torch.stack([p[..., list(pool.ids)].sum(-1).mean(-1) for pool in pools]).cpu())
        return torch.cat(found, 1).numpy()

    def of_pool(self, k: int, keep: Keep) -> xr.Dataset:
        """What follows the tokens of a pool and of its control."""
        jobs = [
            (r, pool, start)
            for r, pool in enumerate(self.pairs[k])
            if pool is not None
            for start in range(0, self.contexts, self.rows)
        ]
        parts: list[list[xr.Dataset]] = [[] for _ in ROLES]
        name = self.pairs[k][0].name
        for r, pool, start in track(jobs, f"what follows: {name}", total=len(jobs), even=False):
            make = partial(self.after, k, r, pool, start)
            parts[r].append(keep(f"after {name}, {ROLES[r]}, from {start}", make).drop_attrs())
        roles = [xr.concat(part, "batch") for part in parts if part]
        return xr.concat(roles if len(roles) == len(ROLES) else [*roles, _absent(roles[0])], "role")

    def after(self, k: int, r: int, pool: Pool, start: int) -> xr.Dataset:
        """Prompts that end in a token of a pool, from one number on: what is predicted, and what is generated."""
        count = min(self.rows, self.contexts - start)
        tokens = self.tokens(pool)[start : start + count]
        windows = self.source.windows[start : start + count]
        ids = torch.cat([windows, torch.tensor(tokens, device=windows.device)[:, None]], 1)
        with torch.no_grad():
            started = self.way.forward(ids, None)
            log_p = started[0].float().log_softmax(-1)
            random = uniforms(start, count, self.steps, seed=self.seed)
            said = [continued(self.way, ids, started, decoding, random).numpy() for decoding in DECODINGS]
        prompts = ids.tolist()
        found = [self._outcomes(d, rows.tolist(), prompts) for d, rows in zip(DECODINGS, said, strict=True)]
        coords: dict[str, Any] = {
            "batch": np.arange(start, start + count),
            "decoding": [decoding.name for decoding in DECODINGS],
            "outcome": list(OUTCOMES),
            "of": list(ROLES),
            "new_token": np.arange(1, self.steps + 1),
        }
        held = torch.full((len(ROLES), count), torch.nan)
        for i, other in enumerate(self.pairs[k]):
            if other is not None:
                held[i] = log_p[:, list(other.ids)].exp().sum(-1).cpu()
        arrays: dict[str, tuple[Any, str]] = {
            "held": (held, "of batch"),
            "divergence": (self._divergence(log_p), "batch"),
            "entropy": (torch.special.entr(log_p.exp()).sum(-1), "batch"),
            "token_id": (np.array(tokens), "batch"),
            "token_text": (np.array(token_texts(self.model, tokens), dtype=object), "batch"),
            "generated": (np.stack(said), "decoding batch new_token"),
            "is_outcome": (np.stack([one for one, _ in found]), "decoding outcome batch"),
            "period": (np.stack([one for _, one in found]), "decoding batch"),
            "answer": (self._texts(said), "decoding batch"),
        }
        known = exposure_of(self.model)
        if known is not None:
            arrays["exposure"] = (np.array(known.total, dtype=float)[tokens], "batch")
        return xr.Dataset({name: label(name, values, dims, coords) for name, (values, dims) in arrays.items()})

    @cached_property
    def way(self) -> Way:
        """How prompts are run: the same for all."""
        form = [*self.source.windows[0].tolist(), HOLE]
        with torch.no_grad():
            return fastest(self.model, form, sorted({pool.ids[0] for pool, _ in self.pairs}))

    def tokens(self, pool: Pool) -> list[int]:
        """The token that each sequence ends in: all of a pool, in random order, before any recurs."""
        order = torch.randperm(len(pool), generator=local_generator(self.seed, _DRAWS + 1)).tolist()
        return [pool.ids[order[i % len(pool)]] for i in range(self.contexts)]

    def _divergence(self, log_p: Tensor) -> Tensor:
        if self.source.text is None:
            return log_p.new_full(log_p.shape[:1], torch.nan)
        return divergence(log_p, torch.from_numpy(self.source.text.log_probs).float().to(log_p.device))

    def _outcomes(
        self, decoding: Decoding, said: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """[outcome batch], 1 for the kind of each continuation, NaN where undetermined; and periods [batch]."""
        text = self.source.text
        ends = frozenset(boundary_ids(self.model))
        told = [outcome(one, prompt, text, ends) for one, prompt in zip(said, prompts, strict=True)]
        found = np.array([[float(name == one) for one, _ in told] for name in OUTCOMES])
        if not decoding.allows_loops:
            found[OUTCOMES.index("loop")] = np.nan
        if text is None:
            found[[OUTCOMES.index("text"), OUTCOMES.index("other")]] = np.nan
        return found, np.array([p for _, p in told])

    def _texts(self, said: Sequence[np.ndarray]) -> np.ndarray:
        """[decoding batch], the generated text; without a tokenizer, the ids."""
        tokenizer = published_tokenizer(self.model)
        write = (lambda ids: " ".join(map(str, ids))) if tokenizer is None else tokenizer.decode
        return np.array([[str(write(row.tolist())) for row in rows] for rows in said], dtype=object)

    def correlation(self, found: xr.Dataset, resamples: int) -> np.ndarray:
        """[bound]: Spearman's correlation of a token's mean divergence with its exposure, over tokens of the pools."""
        nothing = np.full(len(_BOUNDS), np.nan)
        if "exposure" not in found or self.source.text is None:
            return nothing
        own = found.sel(role="pool")
        tokens, number = np.unique(own["token_id"].values, return_inverse=True)
        number, count = number.ravel(), np.bincount(number.ravel())
        means = [np.bincount(number, own[name].values.ravel()) / count for name in ("divergence", "exposure")]
        if len(tokens) < 3 or np.ptp(means[1]) == 0:
            return nothing
        values, doses = map(rank_codes, means)

        def of(some: np.ndarray) -> float:
            return spearman(values[some], doses[some])

        every = np.arange(len(tokens))
        return np.array([of(every), *statistic_interval(of, every, resamples=resamples, seed=self.seed)])

    def not_tested(self, found: xr.Dataset) -> list[str]:
        """What could not be tested, and why."""
        reasons = ["loops with the article's sampling: it never repeats a pair of tokens"]
        if self.source.text is None:
            reasons.append(f"text, other, and the divergence: {self.source.reason}")
        elif not np.isfinite(found["correlation"].values[0]):
            known = "exposure counts are not known"
            if "exposure" in found:
                known = "all tokens were trained on equally often"
            reasons.append(f"the correlation with the dose: {known}")
        return reasons


def _absent(like: xr.Dataset) -> xr.Dataset:
    """For a missing control: NaN, -1 and no text."""
    nothing = {"f": np.nan, "i": -1, "O": "", "U": ""}
    return like.map(lambda values: xr.full_like(values, nothing[values.dtype.kind]))


def _sentence(at: xr.Dataset) -> str:
    """The verdict on a pool, compared with its control."""
    mass = at["mass"].mean("batch")
    everywhere = "text" if np.isfinite(mass.sel(role="pool", context="text")) else "blocks"
    pool, after = (float(mass.sel(role="pool", context=context)) for context in (everywhere, "after pool"))
    said = f"holds {pool:.2g} of the probability in {everywhere}, and {after:.2g} after one of its own tokens"
    if not np.isfinite(at["size"].sel(role="control")):
        return f"{said}; there is no control to compare with."
    pool, after = (float(mass.sel(role="control", context=context)) for context in (everywhere, "after control"))
    said += f"; size-matched ordinary tokens hold {pool:.2g}, and {after:.2g} after one of theirs"
    return f"{said}. {_hedges(at)} {_differences(at)}"


def _hedges(at: xr.Dataset) -> str:
    """Is the prediction closer to the unigram distribution than after ordinary tokens, and is its entropy higher?"""
    (mean, low, high), more = (
        mean_interval(operator.sub(*(at[name].sel(role=role).values for role in ROLES)))
        for name in ("divergence", "entropy")
    )
    said = []
    if np.isfinite(more).all():
        ends = "{:+.2f} nats ({:+.2f} .. {:+.2f})".format(*more)
        said.append(f"the entropy of the prediction differs from the control's by {ends}")
    if not np.isfinite([mean, low, high]).all():
        said.append("whether the prediction is closer to the unigram distribution cannot be determined")
    elif max(abs(low), abs(high)) < SLIGHT:
        said.append(f"the prediction is as far from the unigram distribution as the control's, within {SLIGHT} nats")
    elif low <= 0 <= high:
        said.append(f"no significant difference in distance from the unigram distribution ({low:+.2f} .. {high:+.2f})")
    else:
        side = "closer to" if high < 0 else "farther from"
        ends = f"{abs(mean):.2f} nats ({low:+.2f} .. {high:+.2f})"
        said.append(f"the prediction is {side} the unigram distribution, by {ends}")
    if high < 0 < more[1]:
        said.append("the model hedges")
    words = "; ".join(said)
    return f"{words[0].upper()}{words[1:]}."


def _differences(at: xr.Dataset) -> str:
    """Which outcomes are more or less frequent than after ordinary tokens, paired by sequence."""
    own, other = (at["is_outcome"].sel(role=role).transpose("decoding", "outcome", "batch") for role in ROLES)
    tested = own.notnull().all("batch") & other.notnull().all("batch")
    shown = []
    for decoding in map(str, at["decoding"].values):
        for name in OUTCOMES:
            place = {"decoding": decoding, "outcome": name}
            if not tested.sel(place):
                continue
            one, two = own.sel(place).values, other.sel(place).values
            apart = [int(((one == 1) & (two == 0)).sum()), int(((two == 1) & (one == 0)).sum())]
            if sum(apart) and binomtest(apart[0], sum(apart)).pvalue * int(tested.sum()) < 0.05:
                shown.append(f"{name} ({decoding}) {one.mean():.0%} against {two.mean():.0%}")
    if not shown:
        return "No significant difference in what follows."
    return f"What follows differs: {'; '.join(shown)}."
