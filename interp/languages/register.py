"""What does a register hold? The flip-flop language: write, read and ignore, each with a value behind it.

A sequence of FFL(p) alternates instructions and values. It starts with a write and ends with a read; every other
instruction is ignore with probability p, write and read with (1 - p) / 2 each. The values behind writes and ignores are
uniform, the value behind a read is that of the last write. (Liu et al. 2023, arXiv 2306.00946, whose values are bits.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from interp.errors import InterpError
from interp.tokens import Sequences, check_seed, local_generator

if TYPE_CHECKING:
    from torch import Tensor

WRITE, READ, IGNORE = 0, 1, 2  # ids
INSTRUCTIONS = ("w", "r", "i")
FIRST_VALUE = len(INSTRUCTIONS)  # the id of the first value, the bit 0
BITS = 2
TRAINED_ON, SPARSE, DENSE = 0.8, 0.98, 0.1  # the published p: of training, and of two tests out of distribution
LENGTH = 512  # tokens, as published


@dataclass(frozen=True)
class FlipFlop(Sequences):
    """Sequences of FFL(p). What is read are the values behind reads; the attributes are those of `Sequences`.

    Attributes:
        ids: [batch position]; an instruction stands at every even position, its value behind it.
        p: the probability of ignore.
        values: how many values there are, ids from 3 on; 2 for bits.
    """

    ids: Tensor
    p: float
    values: int = BITS

    def __repr__(self) -> str:
        return (
            f"FlipFlop({len(self.ids)} sequences of FFL({self.p:g}), {self.ids.shape[1]} tokens, {self.values} values)"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def _behind(self, instruction: int) -> Tensor:
        """[batch position], bool: values behind an instruction."""
        import torch

        marked = torch.zeros_like(self.ids, dtype=torch.bool)
        marked[:, 1::2] = self.ids[:, 0::2] == instruction
        return marked

    @property
    def read(self) -> Tensor:
        """[batch position], bool: the values behind reads."""
        return self._behind(READ)

    @property
    def written(self) -> Tensor:
        """[batch position], bool: the values behind writes."""
        return self._behind(WRITE)

    @property
    def answers(self) -> Tensor:
        """[batch position 1]: the values themselves are right where they are read."""
        return self.ids[..., None]

    @property
    def rivals(self) -> Tensor:
        """[batch position values - 1]: the other values."""
        import torch

        shift = torch.arange(1, self.values, device=self.ids.device)
        return FIRST_VALUE + (self.ids[..., None] - FIRST_VALUE + shift) % self.values

    @property
    def present(self) -> Tensor:
        """[batch position], bool: nothing is padding."""
        import torch

        return torch.ones_like(self.ids, dtype=torch.bool)

    @property
    def labels(self) -> Mapping[str, Tensor]:
        """By name, [batch position], bool: the values behind writes, reads and ignores."""
        return {"written": self.written, "read": self.read, "ignored": self._behind(IGNORE)}

    @property
    def pair(self) -> None:
        """None: there are no corrupted sequences."""
        return None

    @property
    def pool(self) -> str:
        """The name of the language."""
        return f"FFL({self.p:g})"

    @property
    def text(self) -> np.ndarray:
        """[batch position]: what each token is written as."""
        names = np.array([*INSTRUCTIONS, *map(str, range(self.values))], dtype=object)
        return names[self.ids.cpu().numpy()]

    @property
    def last_write(self) -> Tensor:
        """[batch position]: where the value stands that the last write up to here has written.

        It is the position of what the register holds; a write's own value counts from its instruction on.
        """
        import torch

        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        starts = torch.where(self.written, places, -1).roll(-1, 1)  # from the instruction on
        starts[:, -1] = -1
        return starts.cummax(1).values.clamp(min=1)

    @property
    def distance(self) -> Tensor:
        """[batch position]: tokens from the last written value to the position."""
        import torch

        return torch.arange(self.ids.shape[1], device=self.ids.device) - self.last_write

    @property
    def writes(self) -> Tensor:
        """[batch position]: writes up to the position."""
        return (self.ids == WRITE).cumsum(1)

    @property
    def coords(self) -> dict[str, Any]:
        """Coordinates for `results.label`: token_id, read, register (its value), distance, writes."""
        both = ("batch", "position")
        register = self.ids.gather(1, self.last_write) - FIRST_VALUE
        named = {"token_id": self.ids, "read": self.read, "register": register}
        named |= {"distance": self.distance, "writes": self.writes}
        return {
            "batch": np.arange(len(self.ids)),
            "position": np.arange(self.ids.shape[1]),
            **{name: (both, values.cpu().numpy()) for name, values in named.items()},
        }

    def split(self, size: int) -> Iterator[Self]:
        """The same sequences, `size` at a time."""
        for part in self.ids.split(size):
            yield replace(self, ids=part)

    def to(self, device: Any) -> FlipFlop:
        """The same on a device."""
        return replace(self, ids=self.ids.to(device))


def flip_flop(
    p: float = TRAINED_ON, *, batch: int = 32, length: int = LENGTH, values: int = BITS, seed: int = 0, start: int = 0
) -> FlipFlop:
    """Draw sequences of the flip-flop language FFL(p).

    Sequence i depends on the seed and i alone, so a larger batch only adds sequences.

    Args:
        p: the probability of ignore; write and read have (1 - p) / 2 each.
        batch: how many sequences.
        length: tokens in a sequence, an even number.
        values: how many values there are; 2 for the published bits.
        seed: decides the draws.
        start: the number of the first sequence.

    Returns:
        The sequences.

    Raises:
        InterpError: p is no probability, or the sizes make no sequence.

    Source:
        Liu et al. 2023, Exposing attention glitches with flip-flop language modeling, arXiv 2306.00946.
    """
    import torch

    check_language(p, length, values)
    check_seed(seed)
    if batch < 1:
        raise InterpError(f"batch {batch}: use a positive integer")
    chance = torch.stack(
        [
            torch.rand((2, length // 2), generator=local_generator(seed, i), dtype=torch.float64)
            for i in range(start, start + batch)
        ],
        dim=1,
    )
    return FlipFlop(ids_of(chance, p, values), p, values)


def check_language(p: float, length: int, values: int = BITS) -> None:
    """Raise `InterpError` where there is no such flip-flop language, or no sequence of that length in it."""
    if not 0 <= p <= 1:
        raise InterpError(f"p {p}: the probability of ignore is a number from 0 to 1")
    if length < 4 or length % 2:
        raise InterpError(
            f"length {length}: a write and a read with their values take 4 tokens; use an even number from 4"
        )
    if values < 2:
        raise InterpError(f"values {values}: a register that can change holds one of 2 or more")


def ids_of(chance: Tensor, p: float | Tensor, values: int = BITS) -> Tensor:
    """The sequences that some uniform numbers stand for.

    Args:
        chance: [2 batch instruction] from 0 up to 1: they decide instructions, and values.
        p: the probability of ignore, one number or [batch 1].
        values: how many values there are.

    Returns:
        ids [batch position], two positions for each instruction.
    """
    import torch

    which, what = chance
    instructions = torch.full(which.shape, IGNORE, device=chance.device)
    instructions[which >= p] = WRITE
    instructions[which >= p + (1 - p) / 2] = READ
    instructions[:, 0], instructions[:, -1] = WRITE, READ
    held = (what * values).long().clamp(max=values - 1)
    places = torch.arange(which.shape[1], device=chance.device)
    last = torch.where(instructions == WRITE, places, 0).cummax(1).values
    held = torch.where(instructions == READ, held.gather(1, last), held)
    return torch.stack([instructions, FIRST_VALUE + held], -1).flatten(1)
