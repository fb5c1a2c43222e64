"""What do components write against a pool's tokens, beyond what they write in paired runs and against random tokens?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.repairs.unembedding import Unembedding
from interp.tokens import local_generator

_SETS = 200  # random sets of ordinary tokens that say what is written against tokens by chance
_DEVIATIONS = 3.0  # standard deviations of these beyond which a write counts as suppressing


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

    A component is suppressing when what it writes lowers the mean logit of the tokens, lowers it more than its write in
    the paired runs does, and more, by three standard deviations, than that lowers on average the mean logit of 200
    random sets of as many ordinary tokens.

    Args:
        writes: [component d_model], mean writes in the pool's runs.
        ordinary: [component d_model], the same in the paired runs.
        ids: the tokens.
        healthy: ordinary tokens to draw the random sets from.
        scale: what the last norm divides by.
        unembedding: the model's.
        seed: decides the random sets.

    Returns:
        The summed excess of the suppressing components [d_model], and what each of them adds to the mean logit of the
        tokens [component]; zero for all others.
    """
    among = torch.tensor(sorted(set(healthy)), device=ids.device)
    random = local_generator(seed, 1 << 22)
    # drawn with replacement, so that sets of as many as there are differ, too
    sets = [among[torch.randint(len(among), (len(ids),), generator=random).to(ids.device)] for _ in range(_SETS)]
    chance = torch.stack([unembedding.logits_of(ordinary, some, scale) for some in sets])
    threshold = chance.mean(0) - _DEVIATIONS * chance.std(0)
    excess = writes - ordinary
    changed = unembedding.logits_of(excess, ids, scale)
    written = unembedding.logits_of(writes, ids, scale)
    suppressing = (written < 0) & (changed < 0) & (written < threshold)
    return (excess * suppressing[:, None]).sum(0), changed * suppressing
