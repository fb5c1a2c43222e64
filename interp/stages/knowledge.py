"""Does the residual stream tell which token it is about? By layer, where the token stands and where it is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.hooks import name_of, record
from interp.stages.places import Places
from interp.tokens import Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


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
