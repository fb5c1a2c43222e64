"""How much token content is missing from a pool's values, beyond the chance deficit of a size-matched ordinary pool?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.repairs.minimal import mean_strength
from interp.repairs.ordinary_heads import OrdinaryHeads
from interp.tokens import Draw, Pool, Repeated, local_generator

_STREAM = 1 << 21  # of the draws of random pools, which are used nowhere else
_RANDOM_POOLS = 16
_DRAWS = 4  # per random pool, at most: more take longer and hardly lower the chance deficit
_BEYOND_CHANCE = 3.0  # standard deviations of the random pools' deficits
_EXACT = 128  # pool size up to which random pools have exactly the same size


@dataclass(frozen=True)
class LackingStrength:
    """Measures what pools lack in the heads' values, and caches what random pools of ordinary tokens lack.

    Chance is measured rather than derived from the spread over tokens: tokens of a block share their context, and a
    token that disturbs everything after it is in every block of a small pool.

    Attributes:
        model: any loaded model.
        heads: what the heads carry of ordinary tokens.
        draw: draws sequences.
        healthy: ordinary tokens.
        seed: decides which of them the random pools hold.
    """

    model: TransformerBridge
    heads: OrdinaryHeads
    draw: Draw
    healthy: Pool
    seed: int = 0
    _chance: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)

    def of(self, sequences: Sequence[Repeated]) -> Tensor:
        """The mean deficit of the tested tokens' own components [value head].

        Capped at the whole component: one below zero is written against the token, which is suppression. 0 where a
        size-matched random pool of ordinary tokens might lack as much; otherwise every pool would lack something.
        """
        strength, count = mean_strength(self.model, sequences, self.heads)
        lacking, ordinary = self.heads.strength - strength, self.heads.strength.clamp_min(0)
        draws = min(len(sequences), _DRAWS)
        beyond = lacking > self._by_chance(min(_rounded(count), len(self.healthy.ids)), draws)
        return torch.minimum(lacking.clamp_min(0), ordinary) * beyond

    def _by_chance(self, count: int, draws: int) -> Tensor:
        """[value head]: the largest chance deficit of a pool of `count` ordinary tokens in `draws` draws."""
        if (count, draws) not in self._chance:
            ids = torch.tensor(self.healthy.ids)
            found = []
            for k in range(_RANDOM_POOLS):
                chosen = torch.randperm(len(ids), generator=local_generator(self.seed, _STREAM + k))[:count]
                pool = Pool("random", tuple(ids[chosen].sort().values.tolist()))
                first = _STREAM + k * draws
                drawn = [self.draw(pool, stream=first + i) for i in range(draws)]
                found.append(self.heads.strength - mean_strength(self.model, drawn, self.heads)[0])
            lacking = torch.stack(found)
            self._chance[count, draws] = lacking.mean(0) + _BEYOND_CHANCE * lacking.std(0)
        return self._chance[count, draws]


def _rounded(count: int) -> int:
    """The size of the random pools for a pool of `count` tokens: large pools of similar size share the same ones."""
    return count if count <= _EXACT else 1 << (count.bit_length() - 1)
