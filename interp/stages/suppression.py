"""What components write against a pool's tokens, beyond what they write in paired runs and against sets drawn by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.stages.unembedding import Unembedding
from interp.tokens import local_generator

if TYPE_CHECKING:
    from torch import Tensor

_SETS = 200  # random sets of ordinary tokens that say what chance writes
_CERTAIN = 3.0  # their standard deviations beyond which a write is against a pool


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
