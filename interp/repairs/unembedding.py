"""How does the unembedding read x? Its rows, the norm before it, near-duplicate tokens, and tokens exchanged in x."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.final_norm import last_norm

_RARE = 1e-3  # share of ordinary tokens that may have a near-duplicate by this rule
_ENOUGH_ORDINARY = 100  # ordinary tokens from which the threshold for near-duplicates is set
_SAMPLED = 1000  # ordinary tokens from which its threshold is set
_RIDGE = 1.0  # relative to the mean variance of unembedding rows, in the metric of `swap_token_directions`
CELLS = 1 << 24  # logits at a time


class Unembedding:
    """The unembedding's rows [token d_model] and biases, which turn x into logits, and the last norm's gain.

    Raises:
        InterpError: the model caps or scales its logits, or its last norm is neither LayerNorm nor RMSNorm.
    """

    def __init__(self, model: TransformerBridge):
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

        # caps and multipliers after the unembedding would otherwise go unnoticed
        ids = torch.arange(1, 9, device=self.rows.device)[None] % len(self.rows)
        seen: dict[str, Tensor] = {}
        hooks = [("unembed.hook_in", lambda value, hook: seen.update(x=value))]
        logits = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False).detach().float()
        own = seen["x"].detach().float() @ self.rows.T + self.bias
        if float((own - logits).abs().max()) > 0.02 * float(logits.abs().max()):
            raise InterpError(
                "this model caps or scales its logits, so that they do not follow from its unembedding rows alone: "
                "causes cannot be measured on it"
            )

    def logits(self, x: Tensor) -> Tensor:
        """[place token] of x [place d_model]."""
        return x @ self.rows.T + self.bias

    def logits_at(self, x: Tensor, token: Tensor) -> Tensor:
        """[place]: the logit of each place's token [place]."""
        return (x * self.rows[token]).sum(-1) + self.bias[token]

    def batches(self, places: int) -> list[slice]:
        """Slices of this many places, each small enough for its logits to fit into memory."""
        size = max(1, CELLS // len(self.rows))
        return [slice(start, start + size) for start in range(0, places, size)]

    def centred(self, resid: Tensor) -> Tensor:
        """What the last norm scales."""
        return resid - resid.mean(-1, keepdim=True) if self.centres else resid

    def scale(self, resid: Tensor) -> Tensor:
        """[place 1]: what the last norm divides by."""
        return self.centred(resid).square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)

    def shifted(self, x: Tensor, resid: Tensor, by: Tensor) -> Tensor:
        """x if `by` [d_model] were added to the residual stream before the last norm, including the change in scale."""
        before, after = self.scale(resid), self.scale(resid + by)
        return self.offset + (x - self.offset) * before / after + self.gain * self.centred(by) / after

    def logits_of(self, writes: Tensor, ids: Tensor, scale: float) -> Tensor:
        """[component]: mean logit, minus the vocabulary's mean, that writes [component d_model] give to tokens."""
        towards = (self.rows[ids] - self.mean).mean(0)
        return self.centred(writes) @ (self.gain * towards) / scale


def normalized_inputs(model: TransformerBridge) -> Tensor:
    """[token d_model]: input rows with the mean position embedding, where there is one, at length 1."""
    given = model.original_model.get_input_embeddings().weight.detach().float()
    place = getattr(model, "W_pos", None) if "hook_pos_embed" in model.hook_dict else None
    return normalize(given + (0.0 if place is None else place.detach().float().mean(0)), dim=-1)


def others_of(ordinary: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """The ordinary tokens that are none of `ids`, or all of them where too few are left to say how near rows lie."""
    apart = sorted(set(ordinary) - set(ids))
    return apart if len(apart) > _ENOUGH_ORDINARY else ordinary


def near_duplicates(
    model: TransformerBridge, ids: Sequence[int], ordinary: Sequence[int], unembedding: Unembedding
) -> dict[int, Tensor]:
    """For each token, its near-duplicates and itself.

    Two tokens are near-duplicates when their input rows (with the mean position embedding, scaled to length 1, as a
    norm sees them) or their output rows (minus the vocabulary's mean, scaled to length 1) are closer than the 0.1%
    quantile of ordinary tokens' distances to their nearest neighbours, and closer than half the median of these.

    Args:
        model: any loaded model.
        ids: the tokens.
        ordinary: ordinary tokens; at most 1,000 of them, evenly spaced, are used.
        unembedding: the model's.

    Returns:
        For each token of `ids`, token ids in order.
    """
    inputs = normalized_inputs(model)
    outputs = normalize(unembedding.rows - unembedding.mean, dim=-1)
    sample = torch.tensor(sorted(set(ordinary)), device=inputs.device)
    sample = sample[torch.linspace(0, len(sample) - 1, min(_SAMPLED, len(sample))).round().long().to(sample.device)]
    asked = torch.tensor(sorted(set(ids)), device=inputs.device)
    near = torch.zeros(len(asked), len(inputs), dtype=torch.bool, device=inputs.device)
    for rows in (inputs, outputs):
        size = max(1, CELLS // len(rows))
        nearest = torch.cat(
            [
                torch.cdist(rows[part], rows).scatter(1, part[:, None], torch.inf).min(1).values
                for part in sample.split(size)
            ]
        )
        threshold = torch.minimum(nearest.quantile(_RARE), nearest.median() / 2)
        near |= torch.cat([torch.cdist(rows[part], rows) < threshold for part in asked.split(size)])
    near[torch.arange(len(asked)), asked] = True
    return {int(t): row.nonzero()[:, 0] for t, row in zip(asked, near, strict=True)}


def swap_token_directions(x: Tensor, source: Tensor, target: Tensor, unembedding: Unembedding) -> Tensor:
    """x with what it encodes about two tokens exchanged.

    x' . target = r (x . source) and x' . source = (x . target) / r, with r the ratio of the rows' lengths, by the
    smallest change in the metric of the unembedding's covariance, which moves other tokens' logits least. A reflection
    along the rows' difference does the same but moves the others more (it fails the health test on the bundled models).

    Args:
        x: [place d_model], the final residual stream after the last norm.
        source: [place d_model], the row of one token of each place, minus the vocabulary's mean.
        target: [place d_model], the same for the other token.
        unembedding: the model's.

    Returns:
        [place d_model]; x itself where the two rows are equal.
    """
    to_target, to_source = target @ unembedding.metric, source @ unembedding.metric
    tt, ts, ss = (target * to_target).sum(-1), (target * to_source).sum(-1), (source * to_source).sum(-1)
    ratio = target.norm(dim=-1) / source.norm(dim=-1).clamp_min(1e-12)
    at_target, at_source = (x * target).sum(-1), (x * source).sum(-1)
    for_target, for_source = ratio * at_source - at_target, at_target / ratio.clamp_min(1e-12) - at_source
    determinant = tt * ss - ts * ts
    distinct = determinant > 1e-6 * tt * ss  # otherwise there is nothing to exchange
    safe = determinant.where(distinct, torch.ones_like(determinant))
    change = ((ss * for_target - ts * for_source) / safe)[:, None] * to_target
    change = change + ((tt * for_source - ts * for_target) / safe)[:, None] * to_source
    return x + change.where(distinct[:, None], torch.zeros_like(change))
