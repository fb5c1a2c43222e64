"""What do components write against a pool's tokens, beyond what they write in paired runs or against random tokens?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.repairs.unembedding import Unembedding
from interp.tokens import local_generator

_SETS = 200  # random sets of ordinary tokens, the null for what is written against tokens
_DEVIATIONS = 3.0  # standard deviations of this null beyond which a write counts as suppressing


def suppressing_writes(
    writes: Tensor,
    ordinary: Tensor,
    ids: Tensor,
    healthy: Sequence[int],
    scale: float,
    unembedding: Unembedding,
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """What components write against tokens, beyond what they write in paired runs.

    A component is suppressing when its write lowers the mean logit of the tokens, lowers it more than its write in the
    paired runs does, and, by three standard deviations, more than the latter lowers the mean logit of 200 random
    size-matched sets of ordinary tokens on average.

    Args:
        writes: [component d_model], mean writes in the pool's runs.
        ordinary: [component d_model], the same in the paired runs.
        ids: the tokens.
        healthy: ordinary tokens to draw the random sets from.
        scale: what the last norm divides by.
        unembedding: the model's.
        seed: decides the random sets.

    Returns:
        The summed excess of the suppressing components [d_model], and what each component's excess adds to the mean
        logit of the tokens [component]; zero for components that are not suppressing.
    """
    among = torch.tensor(sorted(set(healthy)), device=ids.device)
    random = local_generator(seed, 1 << 22)
    # with replacement, so that the sets differ even if they are as large as the pool of ordinary tokens
    sets = [among[torch.randint(len(among), (len(ids),), generator=random).to(ids.device)] for _ in range(_SETS)]
    chance = torch.stack([unembedding.logits_of(ordinary, some, scale) for some in sets])
    threshold = chance.mean(0) - _DEVIATIONS * chance.std(0)
    excess = writes - ordinary
    changed = unembedding.logits_of(excess, ids, scale)
    written = unembedding.logits_of(writes, ids, scale)
    suppressing = (written < 0) & (changed < 0) & (written < threshold)
    return (excess * suppressing[:, None]).sum(0), changed * suppressing
