"""What do logits and attention patterns say about copying? Tensors in, tensors out; no model.

Log-probs, ranks and correctness are labelled by the token *being predicted*: entry [b, p] is about the
token at position p, read from the logits at p - 1. Position 0 is predicted by nothing: NaN, or False.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

KEY_KINDS = ("induction", "previous", "duplicate", "current", "bos")


def log_probs(
    logits: Float[Tensor, "batch position vocabulary"], ids: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position"]:
    """Natural-log probability of each token given those before it.

    Args:
        logits: of any precision; half precision is converted, since it would lose the near-zero log-probs of copied
            tokens.
        ids: the tokens that the logits were computed for.

    Returns:
        [batch position], nats, 0 or below; NaN at position 0.
    """
    logits = logits[:, :-1].float() if logits.dtype.itemsize < 4 else logits[:, :-1]
    target = logits.gather(-1, ids[:, 1:, None].to(logits.device))[..., 0]
    return pad(target - logits.logsumexp(-1), (1, 0), value=torch.nan)


def ranks(
    logits: Float[Tensor, "batch position vocabulary"], ids: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position"]:
    """Number of tokens with a higher logit than the right one (0: it is the arg-max).

    A token that ties with others counts as beaten by half of them, so that a model that cannot distinguish tokens
    scores the middle of their range rather than its top.

    Args:
        logits: the model's output.
        ids: the tokens that the logits were computed for.

    Returns:
        [batch position]; NaN at position 0.
    """
    target = logits[:, :-1].gather(-1, ids[:, 1:, None].to(logits.device))
    above = (logits[:, :-1] > target).sum(-1)
    tied = (logits[:, :-1] == target).sum(-1) - 1
    return pad(above + tied / 2, (1, 0), value=torch.nan)


def correct(rank: Float[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    """Is the right token the unique arg-max, by `ranks`? False at position 0, which nothing predicts."""
    return rank == 0


def key_masks(
    ids: Int[Tensor, "batch position"], queries: Bool[Tensor, "batch position"], *, bos: bool
) -> Bool[Tensor, "batch kind query key"]:
    """For the given queries, the keys of each kind (`KEY_KINDS`); the same for every layer of a pass.

    With t the token at the query: `induction` are the earlier keys that follow an earlier t, `previous` the key
    before, `duplicate` the earlier keys that are t, `current` the query itself, `bos` position 0. In [BOS, A, A]
    with distinct tokens and period L, these are the keys q - L + 1, q - 1, q - L, q and 0 for a query q in the
    second copy.

    Args:
        ids: the sequences.
        queries: the positions to score; all other queries have no keys.
        bos: whether position 0 holds a BOS token; without one, no key is of the kind `bos`.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Olsson et al. 2022, In-context
        Learning and Induction Heads.
    """
    place = torch.arange(ids.shape[1], device=ids.device)
    query, key = place[:, None], place[None, :]
    duplicate = (ids[:, :, None] == ids[:, None, :]) & (key < query)
    induction = pad(duplicate[..., :-1], (1, 0)) & (key < query)
    kinds = (induction, key == query - 1, duplicate, key == query, (key == 0) & bos)
    return torch.stack([mask & queries[..., None] for mask in kinds], dim=1)


def attention_scores(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch kind query key"],
    queries: Bool[Tensor, "batch query"],
    *,
    bos: bool,
) -> Float[Tensor, "kind batch head"]:
    """Attention to each kind of key, summed over keys and averaged over the given queries only.

    For `induction` this is the prefix-matching score. Averaging a whole diagonal instead would add rows at which
    nothing can be induced.

    Args:
        pattern: one layer's attention.
        keys: the `key_masks` of these queries.
        queries: the positions to average over.
        bos: as in `key_masks`.

    Returns:
        [kind batch head] in the order of `KEY_KINDS`, each 0..1. NaN for a sequence without a query and, without a
        BOS token, for the kind `bos`.
    """
    # a matrix product allocates nothing else of the size of the pattern; einsum would copy it
    sums = pattern.flatten(2) @ keys.flatten(2).to(pattern.dtype).transpose(1, 2)
    scores = (sums / queries.sum(-1)[:, None, None]).movedim(-1, 0)
    if not bos:
        scores[KEY_KINDS.index("bos")] = torch.nan
    return scores


def argmax_share(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch kind query key"],
    queries: Bool[Tensor, "batch query"],
    *,
    bos: bool,
) -> Float[Tensor, "kind batch head"]:
    """Share of the given queries whose most attended key is of each kind.

    The position of a BOS token, where heads without a match rest, does not count.

    Args:
        pattern: one layer's attention.
        keys: the `key_masks` of these queries.
        queries: the positions to count.
        bos: as in `key_masks`.

    Returns:
        [kind batch head] in the order of `KEY_KINDS`; NaN for the kind `bos` and for a sequence without a query.
    """
    best = pattern[..., int(bos) :].argmax(-1) + int(bos)  # [batch head query]
    hits = torch.take_along_dim(keys[:, :, None], best[:, None, ..., None], dim=-1)[..., 0]
    share = (hits.sum(-1) / queries.sum(-1)[:, None, None]).movedim(1, 0)
    share[KEY_KINDS.index("bos")] = torch.nan
    return share
