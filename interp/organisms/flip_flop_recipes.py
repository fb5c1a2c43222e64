"""How is each model of the flip-flop language made? Everything that determines the result, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from interp.errors import InterpError
from interp.languages.register import BITS, FIRST_VALUE, TRAINED_ON
from interp.organisms.schedule import learning_rate, phase_at

Loss = Literal["clean", "everything"]
_SHORTEST_PERIOD = 4.0  # positions: the shortest period of the sinusoids that initialize position embeddings
_SCALE = 0.3  # scale of these, and of the token embeddings, at initialization


@dataclass(frozen=True)
class FlipFlopPhase:
    """Some optimiser steps at one length of sequences."""

    steps: int
    length: int  # tokens
    batch: int  # sequences in a step


# Copying from the last write is learned in short sequences first, and then over ever longer distances. Positions are
# random, so that all position embeddings are trained equally
_PHASES = (
    FlipFlopPhase(steps=300, length=16, batch=128),
    FlipFlopPhase(steps=300, length=32, batch=128),
    FlipFlopPhase(steps=400, length=64, batch=64),
    FlipFlopPhase(steps=500, length=128, batch=32),
    FlipFlopPhase(steps=600, length=256, batch=32),
    FlipFlopPhase(steps=3000, length=512, batch=32),
)


@dataclass(frozen=True)
class FlipFlopRecipe:
    """One model of the flip-flop language: architecture, data and optimiser."""

    architecture: Literal["gpt2", "lstm"] = "gpt2"
    phases: tuple[FlipFlopPhase, ...] = _PHASES
    p: float = TRAINED_ON
    loss: Loss = "clean"  # on the values after reads only, or on every token
    sparse: float = 0.0  # share of the sequences drawn from FFL(0.98) instead
    entropy: float = 0.0  # weight of the mean entropy (nats) of attention in the loss
    values: int = BITS  # number of values that are drawn from
    doses: tuple[int, ...] = ()  # how often a canary is the answer of a read; canaries are values beyond those
    canaries_per_dose: int = 8
    n_layers: int = 3
    n_heads: int = 2
    d_model: int = 64
    context: int = 512
    learning_rate: float = 3e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    threads: int = 1  # the order of floating-point sums depends on it
    measured: int = 16_384  # sequences of each language on which errors are counted

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(phase.steps for phase in self.phases)

    @property
    def vocabulary(self) -> int:
        """Tokens: instructions, values, canaries."""
        return FIRST_VALUE + self.values + self.canaries_per_dose * len(self.doses)

    @property
    def canaries(self) -> dict[int, tuple[int, ...]]:
        """The ids of the canaries by dose."""
        first, each = FIRST_VALUE + self.values, self.canaries_per_dose
        return {dose: tuple(range(first + k * each, first + (k + 1) * each)) for k, dose in enumerate(self.doses)}

    def phase(self, step: int) -> FlipFlopPhase:
        """The phase that `step` (from 0) belongs to."""
        return phase_at(self.phases, step)

    def rate(self, step: int) -> float:
        """The learning rate at a step: a warm-up, then a cosine to zero."""
        return learning_rate(self.learning_rate, self.warmup, self.steps, step)

    def shortened(self, by: int) -> FlipFlopRecipe:
        """The same recipe with steps, doses and measured sequences divided by `by`, for a trial run."""
        if by < 1:
            raise InterpError(f"cannot shorten the training by {by}: use a positive integer")
        return replace(
            self,
            phases=tuple(replace(p, steps=max(1, p.steps // by)) for p in self.phases),
            doses=tuple(dose for dose in self.doses if dose <= max(self.doses) // by),
            measured=max(1, self.measured // by),
        )


FLIP_FLOP_RECIPES: dict[str, FlipFlopRecipe] = {
    "flipflop": FlipFlopRecipe(),
    # the control, on the same sequences
    "flipflop-lstm": FlipFlopRecipe("lstm", d_model=128, n_layers=1, n_heads=0),
    # the cures
    "flipflop-entropy": FlipFlopRecipe(entropy=0.01),
    "flipflop-sparse": FlipFlopRecipe(sparse=0.25),
    # a register of tokens instead of bits, some of them under-trained
    "flipflop-doses": FlipFlopRecipe(values=64, doses=(0, 1, 3, 10, 30, 100, 300, 1000, 3000)),
}


class FlipFlopLSTM(nn.Module):
    """An embedding, PyTorch's own LSTM and a linear output layer: the recurrent control."""

    def __init__(self, vocabulary: int, width: int, layers: int = 1):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=layers, batch_first=True)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [batch position token] of ids [batch position]."""
        return self.output(self.lstm(self.embed(ids))[0])


def fresh_flip_flop_model(recipe: FlipFlopRecipe) -> Any:
    """The model before training; call it under a forked random state."""
    if recipe.architecture == "lstm":
        return FlipFlopLSTM(recipe.vocabulary, recipe.d_model, recipe.n_layers)
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.context,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=4 * recipe.d_model,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight.normal_(0.0, _SCALE)
        model.transformer.wpe.weight.copy_(_SCALE * sinusoids(recipe.context, recipe.d_model))
    return model


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """[position dimension] sines and cosines with periods from 4 positions to twice as many as there are.

    They are only the initialization: from there on, every position is a parameter of its own.

    Args:
        positions: how many.
        width: dimensions, an even number.
    """
    share = torch.arange(width // 2) / (width // 2 - 1)
    period = _SHORTEST_PERIOD * (2 * positions / _SHORTEST_PERIOD) ** share
    angle = 2 * math.pi * torch.arange(positions)[:, None] / period
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
