"""What does x predict: how likely are tokens and their near-duplicates, and which of some others is most likely?"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.repairs.fitted_readout import FittedReadout
from interp.repairs.sites import PredictionSites
from interp.repairs.unembedding import Unembedding
from interp.tokens import Repeated


def readout_scores(
    x: Tensor,
    token: Tensor,
    near: Mapping[int, Tensor],
    unembedding: Unembedding,
    readout: FittedReadout | None = None,
    own_logit: Tensor | None = None,
) -> Tensor:
    """Log-prob of each place's token and of its near-duplicates together, and the token's log-odds.

    Args:
        x: [place d_model].
        token: [place].
        near: for each token its near-duplicates and itself.
        unembedding: the model's.
        readout: rows to use instead for the tokens that it covers.
        own_logit: [place], the token's own logit if it is known otherwise.

    Returns:
        [3 place], nats: log-prob, log-prob of the near-duplicates, log-odds.
    """
    members = pad_sequence([near[t] for t in token.tolist()], batch_first=True, padding_value=-1).to(x.device)
    found = []
    for part in unembedding.batches(len(x)):
        logits, at = unembedding.logits(x[part]), token[part, None]
        if readout is not None:
            logits[:, readout.ids] = readout.logits(x[part], unembedding)
        if own_logit is not None:
            logits.scatter_(1, at, own_logit[part, None])
        total, own = logits.logsumexp(1), logits.gather(1, at)[:, 0]
        alike = logits.gather(1, members[part].clamp_min(0)).masked_fill(members[part] < 0, -torch.inf).logsumexp(1)
        rest = logits.scatter(1, at, -torch.inf).logsumexp(1)
        found.append(torch.stack([own - total, (alike - total).clamp_max(0), own - rest]))
    return torch.cat(found, 1)


def best_source_token(
    x: Tensor,
    sites: PredictionSites,
    tokens: Repeated,
    pair: Repeated,
    near: Mapping[int, Tensor],
    unembedding: Unembedding,
) -> Tensor:
    """Among the paired tokens of the near-duplicates in a place's sequence, the one to which x gives the largest logit.

    This is what a cluster of near-duplicates became in the paired run: where all tokens of a block are near-duplicates,
    attending to any of them is correct.

    Args:
        x: [place d_model], of the paired run.
        sites: the places.
        tokens: the glitch run's sequences.
        pair: the paired run's sequences.
        near: for each token its near-duplicates and itself.
        unembedding: the model's.

    Returns:
        [place]: token ids.
    """
    found = []
    tested = tokens.tested.to(x.device)
    for part in unembedding.batches(len(x)):
        rows = sites.sequence[part]
        alike = torch.stack(
            [torch.isin(tokens.ids[r], near[int(t)]) for r, t in zip(rows, sites.token[part], strict=True)]
        )
        scores = unembedding.logits(x[part]).gather(1, pair.ids[rows]).masked_fill(~(alike & tested[rows]), -torch.inf)
        found.append(pair.ids[rows, scores.argmax(1)])
    return torch.cat(found)
