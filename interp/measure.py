"""What do logits and attention patterns say about copying? Tensors in, tensors out; no model.

Log-probs, ranks and correctness are labelled by the token *being predicted*: entry [b, p] is about the
token at position p, read from the logits at p - 1. Position 0 is predicted by nothing: NaN, or False.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, arange, full_like, nan, stack, zeros_like
from torch.nn.functional import pad

STRIPES = ("induction", "previous", "duplicate", "current", "bos")


def log_probs(
    logits: Float[Tensor, "batch position vocabulary"], ids: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position"]:
    """Natural-log probability of each token given those before it (nats, <= 0); NaN at position 0."""
    # log-softmax in float32 at least: bfloat16 logits would lose the near-zero log-probs of copied tokens
    logits = logits[:, :-1].float() if logits.dtype.itemsize < 4 else logits[:, :-1]
    target = logits.gather(-1, ids[:, 1:, None])[..., 0]
    return pad(target - logits.logsumexp(-1), (1, 0), value=nan)


def ranks(
    logits: Float[Tensor, "batch position vocabulary"], ids: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position"]:
    """How many tokens have a higher logit than the right one (0: it is the arg-max); NaN at position 0.

    A token that ties with others counts as beaten by half of them, so that a model that cannot tell
    tokens apart scores the middle of their range and not its top.
    """
    target = logits[:, :-1].gather(-1, ids[:, 1:, None])
    above = (logits[:, :-1] > target).sum(-1)
    tied = (logits[:, :-1] == target).sum(-1) - 1
    return pad(above + tied / 2, (1, 0), value=nan)


def correct(rank: Float[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    """Is the right token the single arg-max? False at position 0, which nothing predicts."""
    return rank == 0


def stripe_masks(ids: Int[Tensor, "batch position"], *, bos: bool) -> dict[str, Bool[Tensor, "batch query key"]]:
    """For every query, the keys that belong to each kind of head (Elhage et al. 2021, Olsson et al. 2022).

    With t the token at the query: `induction` are the earlier keys that follow an earlier t, `duplicate`
    the earlier keys that are t, `previous` the key before, `current` the query itself, `bos` position 0
    (no key at all without a BOS token). In [BOS, A, A] with distinct tokens and period L, these are the
    keys q - L + 1, q - L, q - 1, q and 0 for a query q in the second copy.
    """
    place = arange(ids.shape[1], device=ids.device)
    earlier = place[None, :] < place[:, None]
    same = ids[:, :, None] == ids[:, None, :]
    duplicate = same & earlier
    follows = pad(duplicate[..., :-1], (1, 0)) & earlier
    each = zeros_like(same)
    return {
        "induction": follows,
        "previous": each | (place[None, :] == place[:, None] - 1),
        "duplicate": duplicate,
        "current": each | (place[None, :] == place[:, None]),
        "bos": (each | (place[None, :] == 0)) & bos,
    }


def stripe_keys(
    ids: Int[Tensor, "batch position"], queries: Bool[Tensor, "batch position"], *, bos: bool
) -> Bool[Tensor, "batch stripe query key"]:
    """The `stripe_masks` in the order of `STRIPES`, for the given queries only: the same for every layer of a pass."""
    return stack([mask & queries[..., None] for mask in stripe_masks(ids, bos=bos).values()], dim=1)


def on_stripes(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch stripe query key"],
    queries: Bool[Tensor, "batch query"],
    *,
    bos: bool,
) -> Float[Tensor, "stripe batch head"]:
    """The scores of `stripes`, by the `stripe_keys` of the pass."""
    # a product of matrices makes nothing else of the size of the pattern; einsum would copy it
    sums = pattern.flatten(2) @ keys.flatten(2).to(pattern.dtype).transpose(1, 2)
    scores = (sums / queries.sum(-1)[:, None, None]).movedim(-1, 0)
    if not bos:
        scores[STRIPES.index("bos")] = nan
    return scores


def stripes(
    pattern: Float[Tensor, "batch head query key"],
    ids: Int[Tensor, "batch query"],
    queries: Bool[Tensor, "batch query"],
    *,
    bos: bool,
) -> Float[Tensor, "stripe batch head"]:
    """Attention on each kind of key, summed over keys and averaged over the given queries only.

    Stripes come in the order of `STRIPES`; each score lies in 0..1. Averaging a whole diagonal instead
    would add rows at which nothing can be induced. A sequence without a query scores NaN, and so does
    the BOS stripe without a BOS token.
    """
    return on_stripes(pattern, stripe_keys(ids, queries, bos=bos), queries, bos=bos)


def looked_at(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch stripe query key"],
    queries: Bool[Tensor, "batch query"],
    *,
    bos: bool,
) -> Float[Tensor, "stripe batch head"]:
    """Share of the given queries whose most attended key is of each kind, by the `stripe_keys` of the pass.

    With a BOS token its position, where heads rest that find nothing, does not count, and the BOS stripe is NaN.
    A sequence without a query scores NaN.
    """
    seen = pattern[..., 1:] if bos else pattern
    best = seen.argmax(-1) + int(bos)  # [batch head query]
    hits = [
        mask[:, None].expand_as(pattern).gather(-1, best[..., None])[..., 0].sum(-1) / queries.sum(-1, keepdim=True)
        for mask in keys.unbind(1)
    ]
    hits[STRIPES.index("bos")] = full_like(hits[0], nan)
    return stack(hits)
