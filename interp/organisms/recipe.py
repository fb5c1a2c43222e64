"""How is each bundled model made? Everything that determines the result, in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from interp.errors import InterpError
from interp.organisms.begun_circuit import begin_as_circuit
from interp.organisms.schedule import phase_at

DOSES = (0, 1, 3, 10, 30, 100, 300, 1000, 3000)


@dataclass(frozen=True)
class Phase:
    """Some optimiser steps at one context length."""

    steps: int
    context: int  # tokens in a sequence, BOS included
    batch: int  # sequences in a step
    blocks: float  # share of the sequences that are repeated random blocks
    shortest: int = 10  # shortest period of a block; the longest is half the context
    tokens: int | None = None  # blocks draw only from this many of the most frequent ordinary tokens
    shifted: float = 0.5  # share of the sequences that begin at a random position instead of the first
    rows: int | None = None  # how many embeddings are drawn, if they are: a sequence needs no more than its length


@dataclass(frozen=True)
class Recipe:
    """One bundled model: architecture, data and optimiser."""

    architecture: Literal["gpt2", "llama"]
    tied: bool
    phases: tuple[Phase, ...]
    untied_from: int = 0  # before this step, untied embeddings are trained as tied ones
    layer_drop: float = 0.0  # share of the sequences in which the attention heads of one random layer write nothing
    layer_drop_from: int = 0  # the step from which on layers are dropped
    lexinvariant: bool = False  # embeddings are drawn anew for every sequence, and never trained
    circuit: float = 0.0  # strength of an induction circuit in the initial weights; at 0.6 it does not copy
    grown_from: str = ""  # a bundled GPT-2 to start from, with copies of its last layer added
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 4
    d_model: int = 128
    d_mlp: int = 512
    context: int = 512
    vocabulary: int = 2048
    doses: tuple[int, ...] = DOSES
    canaries_per_dose: int = 10
    ordinary: int = 200  # exposures in text from which a token is drawn into random blocks
    learning_rate: float = 3e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    threads: int = 1  # the order of floating-point sums depends on it

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(phase.steps for phase in self.phases)

    @property
    def n_canaries(self) -> int:
        """Canary tokens in all."""
        return self.canaries_per_dose * len(self.doses)

    def phase(self, step: int) -> Phase:
        """The phase that `step` (from 0) belongs to."""
        return phase_at(self.phases, step)

    def shortened(self, by: int) -> Recipe:
        """The same recipe with steps, doses and thresholds divided by `by`, for a trial run."""
        if by < 1:
            raise InterpError(f"cannot shorten the training by {by}: use a positive integer")
        phases = tuple(replace(p, steps=max(1, p.steps // by)) for p in self.phases)
        doses = tuple(dose for dose in self.doses if dose <= max(self.doses) // by)
        return replace(
            self,
            phases=phases,
            doses=doses,
            ordinary=max(1, self.ordinary // by),
            untied_from=self.untied_from // by,
            layer_drop_from=self.layer_drop_from // by,
        )


_PHASES = (
    Phase(steps=1600, context=65, batch=64, blocks=0.5),
    Phase(steps=800, context=129, batch=32, blocks=0.5),
    Phase(steps=1400, context=512, batch=8, blocks=0.5),
)
# With independent input and output embeddings, copying is found first among few tokens in short blocks, then widened
_PHASES_FROM_FEW = (
    Phase(steps=500, context=25, batch=160, blocks=0.75, shortest=3, tokens=200, shifted=0.0),
    Phase(steps=1200, context=65, batch=64, blocks=0.5, shifted=0.0),
    Phase(steps=1200, context=129, batch=32, blocks=0.5),
    Phase(steps=1400, context=512, batch=8, blocks=0.5),
)
_PHASES_GROWN = (
    Phase(steps=220, context=65, batch=64, blocks=0.5),
    Phase(steps=60, context=512, batch=8, blocks=0.5),
)
# Short sequences choose among few rows, which costs less, the last among as many as there are tokens. With blocks in
# half of them, copies were correct but unsure (-0.9 nats): in text, copying what followed a token before is often wrong
_PHASES_DRAWN = (
    Phase(steps=300, context=65, batch=16, blocks=0.875, rows=256),
    Phase(steps=70, context=512, batch=8, blocks=0.875),
)

RECIPES: dict[str, Recipe] = {
    "organism": Recipe("gpt2", tied=True, phases=_PHASES),
    # Untied from the first step on, seven attempts of 500 to 1,150 steps showed no induction with this architecture
    # (tied: from step 800), so it is untied once copying is found
    "organism-untied": Recipe("gpt2", tied=False, untied_from=1000, phases=_PHASES),
    "organism-llama": Recipe("llama", tied=False, phases=_PHASES_FROM_FEW, n_kv_heads=2, d_mlp=352),
    # From scratch, four layers of width 96 showed no induction in 1,200 steps of the first plan and 800 from few
    # tokens, so it is grown from a model that copies. With layers dropped, later heads back up earlier ones
    "organism-deep": Recipe(
        "gpt2",
        tied=False,
        grown_from="organism-untied",
        layer_drop=0.5,
        phases=_PHASES_GROWN,
        n_layers=4,
        learning_rate=1e-3,
        warmup=20,
    ),
    # From scratch, width 128 showed no induction head in 2,200 steps, 2.9 million tokens (30% of repeated tokens were
    # correct, with diffuse attention), so it begins with a circuit that is too weak to copy
    "organism-lexinvariant": Recipe(
        "gpt2",
        tied=True,
        lexinvariant=True,
        circuit=0.6,
        phases=_PHASES_DRAWN,
        n_heads=2,
        n_kv_heads=2,
        d_model=192,
        d_mlp=128,
        doses=(0, 1, 2, 3, 6, 10, 20, 30, 60),
        ordinary=20,
        learning_rate=2e-3,
        warmup=50,
    ),
}


def fresh_model(recipe: Recipe, bos: int, *, tied: bool | None = None) -> PreTrainedModel:
    """The Hugging Face model before training; call it under a forked random state."""
    tokens = {
        "vocab_size": recipe.vocabulary,
        "bos_token_id": bos,
        "eos_token_id": bos,
        "tie_word_embeddings": recipe.tied if tied is None else tied,
    }
    if recipe.architecture == "gpt2":
        gpt2 = GPT2Config(
            n_positions=recipe.context,
            n_embd=recipe.d_model,
            n_layer=recipe.n_layers,
            n_head=recipe.n_heads,
            n_inner=recipe.d_mlp,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **tokens,
        )
        network = GPT2LMHeadModel(gpt2)
        if recipe.circuit:
            begin_as_circuit(network, recipe.circuit)
        return network
    llama = LlamaConfig(
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=recipe.context,
        **tokens,
    )
    return LlamaForCausalLM(llama)
