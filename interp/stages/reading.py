"""What x says: log-probs of tokens and of their near-duplicates, and which of some paired tokens it has most of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.stages.places import Places
from interp.stages.reader import Reader
from interp.stages.unembedding import CELLS, Unembedding
from interp.tokens import Repeated

if TYPE_CHECKING:
    from torch import Tensor


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
    size = max(1, CELLS // len(unembedding.rows))
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
    size = max(1, CELLS // len(unembedding.rows))
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
