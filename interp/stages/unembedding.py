"""The unembedding as a reader of x: its rows, the norm before it, tokens it hardly tells apart, and what x says of one said of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.errors import InterpError

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

_RARE = 1e-3  # share of ordinary tokens that the rule for near-duplicates may call
_SAMPLED = 1000  # ordinary tokens by which it is set
_RIDGE = 1.0  # of the mean variance of unembedding rows, in the metric of `readdressed`
CELLS = 1 << 24  # logits at a time


class Unembedding:
    """Rows [token d_model] and biases of the output, with the last norm's gain: what turns x into logits."""

    def __init__(self, model: TransformerBridge):
        import torch

        head = model.original_model.get_output_embeddings()
        self.rows: Tensor = head.weight.detach().float()
        bias = getattr(head, "bias", None)
        self.bias: Tensor = torch.zeros(len(self.rows)).to(self.rows) if bias is None else bias.detach().float()
        self.mean = self.rows.mean(0)
        self.gain, self.offset, self.centres = last_norm(model)
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


def last_norm(model: TransformerBridge) -> tuple[Tensor, Tensor, bool]:
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
    of the `ordinary` tokens are to these (at most 1,000 of them, evenly spaced), and than half their median.
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
        size = max(1, CELLS // len(rows))
        nearest = []
        for part in sample.split(size):
            distance = torch.cdist(rows[part], rows)
            distance[torch.arange(len(part)), part] = torch.inf
            nearest.append(distance.min(1).values)
        line = torch.minimum(torch.cat(nearest).quantile(_RARE), torch.cat(nearest).median() / 2)
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            distance = torch.cdist(rows[part], rows)
            near[start : start + size] |= distance < line
    near[torch.arange(len(asked)), asked] = True
    return {int(t): row.nonzero()[:, 0] for t, row in zip(asked, near, strict=True)}


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
