"""What would repair copying, stage by stage? Patterns carried over, content put at a token's address, rows refitted, writes removed.

A *glitch* run is on a pool's sequences, its *paired* run on the same sequences with ordinary tokens in their place. What is read is
the tested token where context can tell it; `Places` lists these. All reading is done on the final residual stream behind the
last norm, x, as the unembedding sees it; logits are x . u_t + b_t.

- `near_duplicates`: which tokens does the model hardly tell apart, by their rows?
- `ends`: x, and what each component writes towards given rows, of one run, with attention of another if wanted.
- `Reader`: rows for a pool's tokens, fitted on other sequences; their own where these are as good.
- `readdressed`: x with what it says of one token said of another.
- `shapley`: how much each of several repairs is worth, whatever the order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from interp.hooks import Head, freeze_patterns, mlp_names, name_of, patch, pattern_names, record, z_names
from interp.tokens import Repeated, local_generator

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

_RARE = 1e-3  # share of ordinary tokens that the rule for near-duplicates may call
_SAMPLED = 1000  # ordinary tokens by which it is set
_RIDGE = 1.0  # of the mean variance of unembedding rows, in the metric of `readdressed`
_STRENGTHS = (1.0, 10.0, 100.0)  # prior precision of a fitted row's change, in whitened coordinates
_WORTH = 0.05  # nats that a reader must gain on held-out sequences
_STEPS = 60  # of L-BFGS
_SETS = 200  # random sets of ordinary tokens that say what chance writes
_CERTAIN = 3.0  # their standard deviations beyond which a write is against a pool
_CELLS = 1 << 24  # logits at a time


@dataclass(frozen=True)
class Places:
    """Where tested tokens are predicted: sequence, position of the query, and the token, each [place]."""

    sequence: Tensor
    query: Tensor
    token: Tensor

    @classmethod
    def of(cls, tokens: Repeated, *, every: bool = False) -> Places:
        """The tested inducible tokens of sequences, or (`every`) all inducible ones. Raises `InterpError` where there are none."""
        import torch

        read = torch.from_numpy(tokens.inducible_tested)
        if every:
            read = torch.from_numpy(tokens.inducible).expand(read.shape)
        sequence, position = read.nonzero(as_tuple=True)
        if not len(sequence):
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        at = sequence.to(tokens.ids.device), (position - 1).to(tokens.ids.device)
        return cls(at[0], at[1], tokens.ids[at[0], at[1] + 1])


@dataclass
class Ends:
    """The end of a run at some places: `x` and, before the last norm, `resid` [place d_model]; mean `writes` [component d_model]."""

    x: Tensor
    resid: Tensor
    writes: Tensor | None = None
    patterns: dict[str, Tensor] | None = None


class Unembedding:
    """Rows [token d_model] and biases of the output, with the last norm's gain: what turns x into logits."""

    def __init__(self, model: TransformerBridge):
        import torch

        head = model.original_model.get_output_embeddings()
        self.rows: Tensor = head.weight.detach().float()
        bias = getattr(head, "bias", None)
        self.bias: Tensor = torch.zeros(len(self.rows)).to(self.rows) if bias is None else bias.detach().float()
        self.mean = self.rows.mean(0)
        self.gain, self.offset, self.centres = _last_norm(model)
        centred = self.rows - self.mean
        covariance = centred.T @ centred / len(centred)
        eye = torch.eye(len(covariance)).to(covariance)
        self.metric: Tensor = torch.linalg.inv(covariance + _RIDGE * covariance.trace() / len(covariance) * eye)

        # caps and multipliers behind the unembedding would go unnoticed
        ids = torch.arange(1, 9, device=self.rows.device)[None] % len(self.rows)
        seen: dict[str, Tensor] = {}
        hooks = [("unembed.hook_in", lambda value, hook: seen.update(x=value))]
        logits = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False).float()
        own = seen["x"].float() @ self.rows.T + self.bias
        if float((own - logits).detach().abs().max()) > 0.02 * float(logits.detach().abs().max()):
            raise InterpError(
                "this model caps or scales its logits, so that its end is not read by rows alone: no causes can be given for it"
            )

    def towards(self, ids: Tensor) -> Tensor:
        """[place d_model]: unit vectors towards the tokens' rows, the mean over the vocabulary subtracted."""
        import torch

        return torch.nn.functional.normalize(self.rows[ids] - self.mean, dim=-1)

    def centred(self, resid: Tensor) -> Tensor:
        """What the last norm scales."""
        return resid - resid.mean(-1, keepdim=True) if self.centres else resid

    def scale(self, resid: Tensor) -> Tensor:
        """[place 1]: what the last norm divides by."""
        return self.centred(resid).square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)

    def shifted(self, x: Tensor, resid: Tensor, by: Tensor) -> Tensor:
        """x had `by` [d_model] been added to the residual stream before the last norm, whose scale it changes too."""
        before, after = self.scale(resid), self.scale(resid + by)
        return self.offset + (x - self.offset) * before / after + self.gain * self.centred(by) / after

    def logits_of(self, writes: Tensor, ids: Tensor, scale: float) -> Tensor:
        """[component]: mean logit, against the vocabulary's mean, that writes [component d_model] have for tokens."""
        towards = (self.rows[ids] - self.mean).mean(0)
        return self.centred(writes) @ (self.gain * towards) / scale


def _last_norm(model: TransformerBridge) -> tuple[Tensor, Tensor, bool]:
    """Gain and bias [d_model] of the last norm, and whether it subtracts the mean over features; measured on random vectors."""
    import torch

    width = model.cfg.d_model
    given = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    # of some length, so that the norm's epsilon is nothing
    given = 100 * given.to(model.original_model.get_output_embeddings().weight)
    one, other = (model.ln_final(v[None])[0].detach() for v in (given, -given))
    odd, even = (one - other) / 2, (one + other) / 2
    for centres in (True, False):
        plain = given - given.mean(-1, keepdim=True) if centres else given
        unit = (plain / plain.square().mean(-1, keepdim=True).sqrt()).float()
        gain = (odd.float() * unit).sum(0) / unit.square().sum(0)
        # in bfloat16 a norm is right to a hundredth
        if float((odd.float() - gain * unit).norm()) < 0.03 * float(odd.float().norm()):
            return gain, even.mean(0).float(), centres
    raise InterpError(
        "the last norm of this model is neither LayerNorm nor RMSNorm: the end of a run cannot be taken apart"
    )


def near_duplicates(
    model: TransformerBridge, ids: Sequence[int], ordinary: Sequence[int], unembedding: Unembedding
) -> dict[int, Tensor]:
    """For each token, its near-duplicates and itself: token ids, sorted.

    By input rows (with the mean position embedding, scaled to length 1, as a norm sees them) or by output rows (the vocabulary's
    mean subtracted), two tokens are near-duplicates when they are nearer than the nearest neighbours of all but one in a thousand
    of the `ordinary` tokens are to these (at most 1,000 of them, evenly spaced).
    """
    import torch

    given = model.original_model.get_input_embeddings().weight.detach().float()
    place = getattr(model, "W_pos", None) if "hook_pos_embed" in model.hook_dict else None
    inputs = torch.nn.functional.normalize(given + (0.0 if place is None else place.detach().float().mean(0)), dim=-1)
    sample = torch.tensor(sorted(set(ordinary)), device=given.device)
    sample = sample[torch.linspace(0, len(sample) - 1, min(_SAMPLED, len(sample))).round().long().to(sample.device)]
    asked = torch.tensor(sorted(set(ids)), device=given.device)
    near = torch.zeros(len(asked), len(given), dtype=torch.bool, device=given.device)
    outputs = torch.nn.functional.normalize(unembedding.rows - unembedding.mean, dim=-1)
    for rows in (inputs, outputs):
        size = max(1, _CELLS // len(rows))
        nearest = []
        for part in sample.split(size):
            distance = torch.cdist(rows[part], rows)
            distance[torch.arange(len(part)), part] = torch.inf
            nearest.append(distance.min(1).values)
        line = torch.cat(nearest).quantile(_RARE)
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            distance = torch.cdist(rows[part], rows)
            near[start : start + size] |= distance < line
    near[torch.arange(len(asked)), asked] = True
    return {int(t): row.nonzero()[:, 0] for t, row in zip(asked, near, strict=True)}


def ends(
    model: TransformerBridge,
    tokens: Repeated,
    places: Places,
    *,
    patterns: Mapping[str, Tensor] | None = None,
    heads: Sequence[Head] | None = None,
    keep_patterns: bool = False,
    writes: Tensor | None = None,
) -> Ends:
    """Run sequences [batch position], with the attention of another run in all heads or some, and read the end at `places`.

    `writes`: what each component (`components`) adds to the residual stream, the mean over the places that are marked in it.
    """
    import torch

    names = ["ln_final.hook_in", "unembed.hook_in"]
    whole: dict[str, list[Tensor]] = {} if not keep_patterns else {name: [] for name in pattern_names(model)}
    parts: dict[str, list[Tensor]] = {"x": [], "resid": []}
    written: list[Tensor] = []
    inner = [*z_names(model), *mlp_names(model), *(name_of(model, la, "attn_out") for la in range(model.cfg.n_layers))]
    start = 0
    for part in tokens.split(tokens.rows_per_pass()):
        rows = slice(start, start + len(part.ids))
        given = None if patterns is None else {name: value[rows] for name, value in patterns.items()}
        hooks = []
        if given is not None and heads is None:
            hooks = freeze_patterns(model, given)
        elif given is not None and heads is not None:
            for layer in sorted({la for la, _ in heads}):
                name = name_of(model, layer, "pattern")
                hooks.append(patch(model, name, given, heads=sorted(h for la, h in heads if la == layer)))
        seen = record(model, part.ids, [*names, *whole, *(inner if writes is not None else [])], hooks=hooks)
        for name in whole:
            whole[name].append(seen[name])
        at = (places.sequence >= start) & (places.sequence < rows.stop)
        sequence, query = places.sequence[at] - start, places.query[at]
        parts["x"].append(seen["unembed.hook_in"][sequence, query].float())
        parts["resid"].append(seen["ln_final.hook_in"][sequence, query].float())
        if writes is not None:
            written.append(_writes(model, seen, sequence[writes[at]], query[writes[at]]))
        start = rows.stop
    return Ends(
        torch.cat(parts["x"]),
        torch.cat(parts["resid"]),
        torch.stack(written).sum(0) / writes.sum() if writes is not None else None,
        {name: torch.cat(values) for name, values in whole.items()} if keep_patterns else None,
    )


def _writes(model: TransformerBridge, seen: dict[str, Tensor], sequence: Tensor, query: Tensor) -> Tensor:
    """[component d_model]: what each component adds to the residual stream, summed over places."""
    import torch

    rows = []
    rest = seen["ln_final.hook_in"][sequence, query].float().sum(0)
    for layer in range(model.cfg.n_layers):
        z, out, mlp = (
            seen[name_of(model, layer, n)][sequence, query].float().sum(0) for n in ("z", "attn_out", "mlp_out")
        )
        by_head = torch.einsum("he,hed->hd", z, model.W_O[layer].detach().float())
        rows += [by_head, (out - by_head.sum(0))[None], mlp[None]]
        rest = rest - out - mlp
    return torch.cat([rest[None], *rows])


def components(model: TransformerBridge) -> list[str]:
    """Names of the columns of `Ends.writes`."""
    names = ["embedding"]
    for layer in range(model.cfg.n_layers):
        names += [*(f"L{layer}H{h}" for h in range(model.cfg.n_heads)), f"attention bias {layer}", f"MLP {layer}"]
    return names


def readdressed(x: Tensor, source: Tensor, target: Tensor, unembedding: Unembedding) -> Tensor:
    """x [place d_model] with what it says of one row said of another, and the other way round; rows [place d_model].

    x' . target = r (x . source) and x' . source = (x . target) / r, r the ratio of the rows' lengths, by the smallest change in the
    metric of the unembedding's covariance, that is the one that moves other tokens' logits least. A reflection along the
    rows' difference does the same with a larger change of the others (it fails the health test on the bundled models).
    """
    import torch

    metric = unembedding.metric
    to_target, to_source = target @ metric, source @ metric
    tt, ts, ss = (target * to_target).sum(-1), (target * to_source).sum(-1), (source * to_source).sum(-1)
    ratio = target.norm(dim=-1) / source.norm(dim=-1).clamp_min(1e-12)
    at_target, at_source = (x * target).sum(-1), (x * source).sum(-1)
    for_target, for_source = ratio * at_source - at_target, at_target / ratio.clamp_min(1e-12) - at_source
    determinant = tt * ss - ts * ts
    ok = determinant > 1e-6 * tt * ss  # else the two rows are one, and there is nothing to exchange
    safe = determinant.where(ok, torch.ones_like(determinant))
    change = ((ss * for_target - ts * for_source) / safe)[:, None] * to_target
    change = change + ((tt * for_source - ts * for_target) / safe)[:, None] * to_source
    return x + change.where(ok[:, None], torch.zeros_like(change))


class Reader:
    """Rows to read a pool's tokens with, fitted to other sequences; their own rows unless others are surely better.

    Candidates are the tokens' own rows, the same at the mean length of the ordinary rows, and either with changes fitted by
    maximum likelihood under a Gaussian prior of several strengths: one change that all tokens share and one of each, acting on x
    less its mean over the fitted places, so that no constant is learned. What is made likely is that the token or one of its
    near-duplicates comes; a constant for all of the pool is fitted beside everything, and left out in reading. The best on
    held-out halves of the sequences is taken where it gains at least half of what the own rows lack of the paired
    ordinary tokens, 0.05 nats, and twice its standard error; else the fault is not theirs. `used` says whether one was.
    """

    def __init__(
        self, unembedding: Unembedding, ids: Tensor, near: Mapping[int, Tensor] | None = None, x: Tensor | None = None,
        target: Tensor | None = None, sequence: Tensor | None = None, length: float = 0.0, healthy: float = 0.0,
    ):  # fmt: skip
        """`ids` [token] sorted; `x` [place d_model], `target` [place], `sequence` [place].

        `length` is that of ordinary rows, `healthy` the mean log-prob of paired ordinary tokens there. Without places, nothing
        is fitted.
        """
        import torch

        # experiments run in inference mode, whose tensors have no gradient: copies made outside it have
        self.ids = ids
        self.rows = unembedding.rows[ids].clone()
        self.shift = torch.zeros_like(self.rows[:, 0])
        self.used = False
        if near is None or x is None or target is None or sequence is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            ids, x, target, sequence = (t.clone() for t in (ids, x, target, sequence))
            self._fit(unembedding, near, ids, x, target, sequence, length, healthy)

    def _fit(
        self, unembedding: Unembedding, near: Mapping[int, Tensor], ids: Tensor, x: Tensor, target: Tensor, sequence: Tensor,
        length: float, healthy: float,
    ) -> None:  # fmt: skip
        import torch

        own = unembedding.rows[ids]
        matched = torch.nn.functional.normalize(own, dim=-1) * length
        others = _others(unembedding, ids, x)
        where = torch.full((len(unembedding.rows),), -1, device=ids.device)
        where[ids] = torch.arange(len(ids), device=ids.device)
        label = where[target]  # -1: not of the pool
        logit = (x * unembedding.rows[target]).sum(-1) + unembedding.bias[target]
        centre = x.mean(0)
        spread = torch.linalg.eigh((x - centre).T @ (x - centre) / len(x) + 1e-6 * torch.eye(x.shape[1]).to(x))
        floor = spread.eigenvalues.clamp_min(1e-3 * spread.eigenvalues.mean())
        whiten = spread.eigenvectors / floor.sqrt()  # [d_model direction]
        white = (x - centre) @ whiten
        bias = unembedding.bias[ids]
        alike = torch.stack([torch.isin(ids, near[int(t)].to(ids.device)) for t in ids])  # [token token]

        outside = torch.full_like(logit, -torch.inf)  # near-duplicates that the pool lacks are no competitors
        for i, t in enumerate(ids):
            more = near[int(t)].to(ids.device)
            more = more[~torch.isin(more, ids)]
            if len(more) and bool((label == i).any()):
                outside[label == i] = (x[label == i] @ unembedding.rows[more].T + unembedding.bias[more]).logsumexp(1)

        def likelihood(base: Tensor, change: Tensor, at: Tensor) -> Tensor:
            # the last column of a change is a constant for all: that tokens of this pool come is no reading of which
            scores = x[at] @ base.T + bias + white[at] @ change[:, :-1].T + change[:, -1:].mean()
            together = scores.masked_fill(~alike[label[at].clamp_min(0)], -torch.inf).logsumexp(1)
            right = torch.logaddexp(together, outside[at]).where(label[at] >= 0, logit[at])
            return right - torch.logaddexp(others[at], scores.logsumexp(1))

        def fitted(base: Tensor, strength: float, at: Tensor) -> Tensor:
            change = x.new_zeros(len(base), x.shape[1] + 1)
            if math.isfinite(strength):
                change = _fit(lambda c: -likelihood(base, c, at).sum(), self.rows.shape, strength, x)
                change[:, -1] = 0.0
            return change

        def held_out(base: Tensor, strength: float) -> Tensor:
            held = torch.empty_like(logit)
            for fold in (half, ~half):
                held[fold] = likelihood(base, fitted(base, strength, ~fold), fold)
            return held

        half = (sequence % 2).bool()
        of_pool = label >= 0
        plain = held_out(own, math.inf)
        missing = healthy - float(plain[of_pool].mean())
        if missing < _WORTH:  # nothing is: nobody is at fault
            return
        best: tuple[float, Tensor, float] | None = None
        for base, strength in [(matched, math.inf), *((b, s) for b in (own, matched) for s in _STRENGTHS)]:
            gained = _by_sequence((held_out(base, strength) - plain)[of_pool], sequence[of_pool])
            mean, error = float(gained.mean()), float(gained.std()) / math.sqrt(len(gained))
            if mean > max(_WORTH, missing / 2) and mean > 2 * error and (best is None or mean > best[0]):
                best = mean, base, strength
        if best is not None:
            _, base, strength = best
            change = fitted(base, strength, torch.ones_like(half))[:, :-1] @ whiten.T
            self.rows, self.shift, self.used = base + change, -(change @ centre), True

    def rows_of(self, token: Tensor, unembedding: Unembedding) -> Tensor:
        """[place d_model]: the rows to read these tokens with."""
        import torch

        return self.rows[torch.searchsorted(self.ids, token)] if self.used else unembedding.rows[token]

    def logits(self, x: Tensor, unembedding: Unembedding) -> Tensor:
        """[place token] for the pool's tokens."""
        return x @ self.rows.T + self.shift + unembedding.bias[self.ids]


@dataclass
class Repairs:
    """What was learned from other sequences, by whether attention is repaired: readers, and streams written against the pool."""

    readers: dict[bool, Reader]
    against: dict[bool, Tensor]
    by: Tensor


def written_against(
    writes: Tensor, ordinary: Tensor, ids: Tensor, healthy: Sequence[int], scale: float, unembedding: Unembedding, *, seed: int = 0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What components write against tokens beyond what they write in paired runs: their excess [d_model], and logits [component].

    `writes` and `ordinary` [component d_model] are mean writes in the pool's and the paired runs. A component is counted
    when what it writes lowers the mean logit of the tokens `ids`, lowers it more than its write in the paired runs does, and more, by
    three standard deviations, than that lowers on average the mean logit of 200 random sets of as many `healthy` tokens.
    """
    import torch

    among = torch.tensor(sorted(set(healthy)), device=ids.device)
    random = local_generator(seed, 1 << 22)
    # drawn with replacement, so that sets of as many as there are differ, too
    sets = [among[torch.randint(len(among), (len(ids),), generator=random).to(ids.device)] for _ in range(_SETS)]
    chance = torch.stack([unembedding.logits_of(ordinary, some, scale) for some in sets])
    line = chance.mean(0) - _CERTAIN * chance.std(0)
    excess = writes - ordinary
    changed = unembedding.logits_of(excess, ids, scale)
    written = unembedding.logits_of(writes, ids, scale)
    guilty = (written < 0) & (changed < 0) & (written < line)
    return (excess * guilty[:, None]).sum(0), changed * guilty


def retrieval(model: TransformerBridge, fitted: Sequence[Repeated], tokens: Repeated) -> tuple[Tensor, int]:
    """How often the residual stream says which tested token it is about, [place depth way]: share of the places right.

    Of the tokens that the sequences `fitted` hold; how many these are is the second thing returned. NaN where none is asked.

    At the `source` (the token itself in the copy before) and at the `prediction` (the position before the repeat), in the
    embedding and after each layer; by the nearest mean of the tokens' streams in the sequences `fitted` (cosine, the mean of
    all subtracted), and by the same in coordinates in which the spread within tokens is even (linear discriminants).
    """
    import torch

    names = [name_of(model, 0, "resid_pre"), *(name_of(model, la, "resid_post") for la in range(model.cfg.n_layers))]

    def streams(of: Repeated) -> tuple[dict[tuple[str, str], Tensor], Tensor]:
        at = Places.of(of)
        found: dict[tuple[str, str], list[Tensor]] = {}
        start = 0
        for part in of.split(of.rows_per_pass()):
            seen = record(model, part.ids, names)
            here = (at.sequence >= start) & (at.sequence < start + len(part.ids))
            rows, query = at.sequence[here] - start, at.query[here]
            for name in names:
                found.setdefault(("source", name), []).append(seen[name][rows, query + 1 - of.length].float())
                found.setdefault(("prediction", name), []).append(seen[name][rows, query].float())
            start += len(part.ids)
        return {key: torch.cat(values) for key, values in found.items()}, at.token

    learned = [streams(part) for part in fitted]
    token = torch.cat([t for _, t in learned])
    asked, right = streams(tokens)
    kinds, index = token.unique(return_inverse=True)
    known = torch.isin(right, kinds)
    rows = []
    for place in ("source", "prediction"):
        for name in names:
            x = torch.cat([found[place, name] for found, _ in learned])
            total = torch.zeros(len(kinds), x.shape[1]).to(x).index_add(0, index, x)
            means = total / index.bincount(minlength=len(kinds))[:, None]
            within = x - means[index]
            spread = within.T @ within / len(x)
            # shrunk, so that directions that hardly vary do not decide
            spread = spread + (0.1 * spread.trace() / len(spread) + 1e-8) * torch.eye(len(spread)).to(x)
            centre = means.mean(0)
            for way in ("nearest mean", "fitted"):
                if way == "fitted":
                    scores = (asked[place, name] - centre) @ torch.linalg.solve(spread, (means - centre).T)
                    scores = scores - ((means - centre) * torch.linalg.solve(spread, (means - centre).T).T).sum(1) / 2
                else:
                    one, two = (torch.nn.functional.normalize(v - centre, dim=-1) for v in (asked[place, name], means))
                    scores = one @ two.T
                # equal scores are no knowledge
                best = scores.max(1)
                alone = (scores >= best.values[:, None]).sum(1) == 1
                rows.append(((kinds[best.indices] == right) & alone)[known].float().mean())
    return torch.stack(rows).reshape(2, len(names), 2), len(kinds)


def _others(unembedding: Unembedding, ids: Tensor, x: Tensor) -> Tensor:
    """[place]: log of the summed exponentials of all logits but those of some tokens."""
    import torch

    found = []
    for part in x.split(max(1, _CELLS // len(unembedding.rows))):
        logits = part @ unembedding.rows.T + unembedding.bias
        logits[:, ids] = -torch.inf
        found.append(logits.logsumexp(1))
    return torch.cat(found)


def _fit(loss: Any, shape: Sequence[int], strength: float, like: Tensor) -> Tensor:
    """[token direction + 1]: a change of every row, shared and own parts each under a Gaussian prior, and a free constant."""
    import torch

    with torch.enable_grad():
        shared, each, constant = (
            torch.zeros(*size, dtype=like.dtype, device=like.device, requires_grad=True)
            for size in ((1, shape[1]), tuple(shape), (1, 1))
        )
        fitted = [shared, each, constant]
        optimizer = torch.optim.LBFGS(fitted, max_iter=_STEPS, history_size=8, line_search_fn="strong_wolfe")

        def change() -> Tensor:
            return torch.cat([shared + each, constant.expand(shape[0], 1)], 1)

        def step() -> Tensor:
            optimizer.zero_grad()
            value = loss(change()) + strength / 2 * (shared.square().sum() + each.square().sum())
            value.backward()
            return value

        optimizer.step(step)
        return change().detach()


def _by_sequence(values: Tensor, sequence: Tensor) -> Tensor:
    """Means over the places of each sequence."""
    import torch

    size = int(sequence.max()) + 1
    total = torch.zeros(size).to(values).index_add(0, sequence, values)
    count = torch.zeros(size).to(values).index_add(0, sequence, torch.ones_like(values))
    return total[count > 0] / count[count > 0]


def read(
    x: Tensor,
    token: Tensor,
    near: Mapping[int, Tensor],
    unembedding: Unembedding,
    reader: Reader | None = None,
    own_logit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of each place's token, of its near-duplicates together, and the token's log-odds: three of [place], in nats.

    `own_logit` [place] takes the place of the token's own logit, where that is known otherwise.
    """
    import torch

    width = max(len(near[int(t)]) for t in token.unique())
    members = torch.full((len(token), width), -1, device=x.device)
    for t in token.unique():
        alike = near[int(t)].to(x.device)
        members[token == t, : len(alike)] = alike
    found: list[Tensor] = []
    size = max(1, _CELLS // len(unembedding.rows))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        logits = x[part] @ unembedding.rows.T + unembedding.bias
        if reader is not None:
            logits[:, reader.ids] = reader.logits(x[part], unembedding)
        if own_logit is not None:
            logits.scatter_(1, token[part, None], own_logit[part, None])
        whole = logits.logsumexp(1)
        own = logits.gather(1, token[part, None])[:, 0]
        alike = logits.gather(1, members[part].clamp_min(0)).masked_fill(members[part] < 0, -torch.inf).logsumexp(1)
        rest = logits.scatter(1, token[part, None], -torch.inf).logsumexp(1)
        found.append(torch.stack([own - whole, torch.minimum(alike - whole, torch.zeros_like(whole)), own - rest]))
    one, together, odds = torch.cat(found, 1)
    return one, together, odds


def said(
    x: Tensor, places: Places, tokens: Repeated, pair: Repeated, near: Mapping[int, Tensor], unembedding: Unembedding
) -> Tensor:
    """[place]: of the paired tokens of the near-duplicates in a place's sequence, the one that x has most of.

    A cluster's image in the paired run: where all of a block are near-duplicates, attending to any of them is right.
    """
    import torch

    found: list[Tensor] = []
    tested = tokens.tested.to(x.device)
    size = max(1, _CELLS // len(unembedding.rows))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        logits = x[part] @ unembedding.rows.T + unembedding.bias
        rows = places.sequence[part]
        alike = torch.stack(
            [torch.isin(tokens.ids[r], near[int(t)]) for r, t in zip(rows, places.token[part], strict=True)]
        )
        scores = logits.gather(1, pair.ids[rows]).masked_fill(~(alike & tested[rows]), -torch.inf)
        found.append(pair.ids[rows, scores.argmax(1)])
    return torch.cat(found)


def shapley(values: Mapping[frozenset[str], np.ndarray], stages: Sequence[str]) -> dict[str, np.ndarray]:
    """Each stage's mean marginal worth over all orders (Shapley 1953); the shares sum to all less none.

    `values` holds an array for every subset of `stages`.
    """
    n = len(stages)
    found = {}
    for stage in stages:
        others = [s for s in stages if s != stage]
        total: Any = 0.0
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in combinations(others, size):
                subset = frozenset(chosen)
                total = total + weight * (values[subset | {stage}] - values[subset])
        found[stage] = total
    return found
