"""Does the residual stream encode which token it is? By layer, at the token itself and where it is predicted."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from interp.hooks import name_of, record
from interp.repairs.sites import PredictionSites
from interp.tokens import Repeated


def probe_accuracy(model: TransformerBridge, fitted: Sequence[Repeated], tokens: Repeated) -> tuple[Tensor, int]:
    """How often probes of the residual stream identify the tested token, in the embedding and after each layer.

    One probe chooses the nearest of the tokens' mean streams (cosine, minus the mean of all), the other does so in
    coordinates in which the variance within tokens is equal (linear discriminants).

    Args:
        model: any loaded model.
        fitted: sequences that the probes are fitted to; they choose among the tokens that these hold.
        tokens: other sequences; the probes are tested at those of their tested tokens that they were fitted to.

    Returns:
        Accuracies [place depth way] by place (the token itself in the copy before, the position before the repeat),
        depth (embedding, layers) and probe (nearest mean, linear discriminants), NaN where none is tested; and how many
        tokens the probes choose among.
    """
    names = [name_of(model, 0, "resid_pre"), *(name_of(model, la, "resid_post") for la in range(model.cfg.n_layers))]
    learned = [_streams(model, part, names) for part in fitted]
    kinds, index = torch.cat([PredictionSites.of(part).token for part in fitted]).unique(return_inverse=True)
    asked, right = _streams(model, tokens, names), PredictionSites.of(tokens).token
    known = torch.isin(right, kinds)
    rows = []
    for key, x in asked.items():
        train = torch.cat([streams[key] for streams in learned])
        total = torch.zeros(len(kinds), train.shape[1]).to(train).index_add(0, index, train)
        means = total / index.bincount(minlength=len(kinds))[:, None]
        within = train - means[index]
        spread = within.T @ within / len(train)
        # shrunk, so that directions that hardly vary do not decide
        spread = spread + (0.1 * spread.trace() / len(spread) + 1e-8) * torch.eye(len(spread)).to(x)
        around, centred = means - means.mean(0), x - means.mean(0)
        weights = torch.linalg.solve(spread, around.T)
        nearest = normalize(centred, dim=-1) @ normalize(around, dim=-1).T
        for scores in (nearest, centred @ weights - (around * weights.T).sum(1) / 2):
            best = scores.max(1)
            # a tie does not identify a token
            alone = (scores >= best.values[:, None]).sum(1) == 1
            rows.append(((kinds[best.indices] == right) & alone)[known].float().mean())
    return torch.stack(rows).reshape(2, len(names), 2), len(kinds)


def _streams(model: TransformerBridge, tokens: Repeated, names: Sequence[str]) -> dict[tuple[int, str], Tensor]:
    """[place d_model] for the token itself in the copy before (0) and where it is predicted (1), by hook."""
    found: dict[tuple[int, str], list[Tensor]] = {(place, name): [] for place in (0, 1) for name in names}
    for part, _, _, (sequence, query) in PredictionSites.of(tokens).batches(tokens):
        seen = record(model, part.ids, names)
        for (place, name), values in found.items():
            values.append(seen[name][sequence, query if place else query + 1 - tokens.length].float())
    return {key: torch.cat(values) for key, values in found.items()}
