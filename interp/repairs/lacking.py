"""What do the values of a pool's tokens lack of ordinary tokens', beyond what as few of these lack by chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.repairs.minimal import mean_strength
from interp.repairs.ordinary_heads import OrdinaryHeads
from interp.tokens import Draw, Pool, Repeated, local_generator

_STREAM = 1 << 21  # of the draws of random pools, which no other part looks at
_RANDOM_POOLS = 16
_DRAWS = 4  # of a random pool, at most: more take longer and hardly lower what is lacking by chance
_BEYOND_CHANCE = 3.0  # standard deviations of what random pools lack
_EXACT = 128  # tokens up to which random pools have exactly as many as the pool


@dataclass(frozen=True)
class LackingStrength:
    """Says what pools lack in the heads' values, and remembers what random pools of ordinary tokens do.

    Chance is measured and not worked out from the spread over tokens: tokens of a block share what stands around them,
    and a token that unsettles all behind it is in every block of a small pool.

    Attributes:
        model: any loaded model.
        heads: what the heads carry of ordinary tokens.
        draw: draws sequences.
        healthy: ordinary tokens.
        seed: decides which of them random pools have.
    """

    model: TransformerBridge
    heads: OrdinaryHeads
    draw: Draw
    healthy: Pool
    seed: int = 0
    _chance: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)

    def of(self, sequences: Sequence[Repeated]) -> Tensor:
        """What the tested tokens of these lack on average [value head].

        At most all: a component below zero is written against the token, which is suppression. 0 where ordinary tokens
        drawn at random, as many in as many sequences, might lack as much: else every pool would lack something.
        """
        strength, count = mean_strength(self.model, sequences, self.heads)
        lacking, ordinary = self.heads.strength - strength, self.heads.strength.clamp_min(0)
        draws = min(len(sequences), _DRAWS)
        beyond = lacking > self._by_chance(min(_rounded(count), len(self.healthy.ids)), draws)
        return torch.minimum(lacking.clamp_min(0), ordinary) * beyond

    def _by_chance(self, count: int, draws: int) -> Tensor:
        """[value head]: the most that a pool of so many ordinary tokens lacks in so many draws, but for rare ones."""
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
    """Large pools of about the same size are compared with the same random ones."""
    return count if count <= _EXACT else 1 << (count.bit_length() - 1)
