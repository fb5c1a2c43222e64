"""What does a bundled model see at training step n?

Each batch is a pure function of the recipe, the text and the step, so training resumes exactly and the
exposure count of every token can be recomputed without training. An *exposure* of a token is one
position at which the model was trained to predict it.

A step mixes two kinds of sequence, each opened by BOS: windows of the text, and *blocks*, random
ordinary tokens repeated with a random period (a fixed one would teach a fixed offset, not matching).
Canaries are planted in blocks, in place of an ordinary token in the last two copies: two exposures, the
second of them predictable by copying (planted between other copies, copying would be wrong at the next).
An odd dose has one unpaired exposure.

Where the recipe drops layers, each sequence also says which layer's attention heads write nothing in it (LayerDrop,
Fan et al. 2019, for attention only). This is drawn independently of the tokens: the text is the same with and without.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from interp.errors import InterpError
from interp.organisms import exposure
from interp.organisms.corpus import Corpus
from interp.organisms.recipe import Recipe
from interp.organisms.vocabulary import BOS


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        ids: [sequence, context + 1], inputs and, shifted by one, targets.
        position: [sequence], the position of the first input.
        is_block: [sequence], whether it is a repeated block.
        silent: [sequence], the layer whose attention heads write nothing; -1 if all write.
    """

    ids: np.ndarray
    position: np.ndarray
    is_block: np.ndarray
    silent: np.ndarray

    def exposures(self, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
        """How often each token id is a target, in text and in blocks."""
        targets = self.ids[:, 1:]
        text, blocks = targets[~self.is_block].ravel(), targets[self.is_block].ravel()
        return np.bincount(text, minlength=vocabulary), np.bincount(blocks, minlength=vocabulary)


class Batches:
    """All batches of a recipe; `self[step]` is one of them."""

    def __init__(self, recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer, canaries: list[int]):
        self.recipe = recipe
        self.bos: int = tokenizer.token_to_id(BOS)  # type: ignore[assignment]
        self.seen = encoded(tokenizer, corpus.seen, self.bos)
        self.heldout = encoded(tokenizer, corpus.heldout, self.bos)
        self.counts = np.bincount(self.seen, minlength=recipe.vocabulary)
        self.doses = {dose: canaries[i :: len(recipe.doses)] for i, dose in enumerate(recipe.doses)}
        text_tokens = sum(int(p.batch * (1 - p.blocks)) * p.context * p.steps for p in recipe.phases)
        expected = self.counts * (text_tokens / len(self.seen))
        # exposures of the model that this one is grown from count, and its canaries have had their doses
        self.before = exposure(recipe.grown_from) if recipe.grown_from else None
        if self.before is not None:
            self.doses = {dose: list(ids) for dose, ids in self.before.doses.items()}
        often = expected if self.before is None else np.array(self.before.text)
        self.ordinary = np.flatnonzero((often >= recipe.ordinary) & (np.arange(recipe.vocabulary) != self.bos))
        self._by_frequency = self.ordinary[np.argsort(-self.counts[self.ordinary], kind="stable")]
        longest = max(p.context for p in recipe.phases) // 2
        if len(self.ordinary) < longest:
            raise InterpError(
                f"only {len(self.ordinary)} tokens are frequent enough for blocks of {longest}: "
                "give more text, or train for longer"
            )
        self._plantings = self._planting_plan()

    def __getitem__(self, step: int) -> Batch:
        phase = self.recipe.phase(step)
        rng = np.random.default_rng((self.recipe.seed, step))
        n_blocks = round(phase.batch * phase.blocks)
        ids = np.full((phase.batch, phase.context + 1), self.bos)
        starts = rng.integers(len(self.seen) - phase.context, size=phase.batch - n_blocks)
        for row, start in enumerate(starts, start=n_blocks):
            ids[row, 1:] = self.seen[start : start + phase.context]
        periods = rng.integers(phase.shortest, phase.context // 2, size=n_blocks, endpoint=True)
        for row, period in enumerate(periods):
            block = rng.choice(self._by_frequency[: phase.tokens], size=period, replace=False)
            ids[row, 1:] = np.resize(block, phase.context)
        self._plant(step, ids, periods, rng)
        room = self.recipe.context - phase.context
        shifted = rng.random(phase.batch) < phase.shifted
        position = np.where(shifted, rng.integers(room, size=phase.batch, endpoint=True), 0)
        return Batch(ids, position, np.arange(phase.batch) < n_blocks, self._silent(step, phase.batch))

    def _silent(self, step: int, sequences: int) -> np.ndarray:
        """The layer that is dropped in each sequence, -1 for none."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, step, 1))
        layer = rng.integers(recipe.n_layers, size=sequences)
        share = recipe.layer_drop if step >= recipe.layer_drop_from else 0.0
        return np.where(rng.random(sequences) < share, layer, -1)

    def _planting_plan(self) -> dict[int, list[tuple[int, int]]]:
        """step -> (canary, copies) to plant, spread evenly at random over the training."""
        rng = np.random.default_rng((self.recipe.seed, 1_000_003))
        plan: dict[int, list[tuple[int, int]]] = defaultdict(list)
        if self.before is not None:
            return plan
        for dose, canaries in self.doses.items():
            for canary in canaries:
                copies = [2] * (dose // 2) + [1] * (dose % 2)
                for step, n in zip(rng.integers(self.recipe.steps, size=len(copies)), copies, strict=True):
                    plan[int(step)].append((canary, n))
        return plan

    def _plant(self, step: int, ids: np.ndarray, periods: np.ndarray, rng: np.random.Generator) -> None:
        """Put this step's canaries into the blocks, no two at one offset of a block."""
        context = ids.shape[1] - 1
        rows = rng.permutation(len(periods))
        taken: set[tuple[int, int]] = set()
        for turn, (canary, copies) in enumerate(self._plantings.get(step, [])):
            row = int(rows[turn % len(rows)])
            period = int(periods[row])
            free = [offset for offset in range(period) if (row, offset) not in taken]
            if not free:
                raise InterpError("this training is too short for its canaries: train longer, or plant fewer")
            offset = int(rng.choice(free))
            taken.add((row, offset))
            whole = (context - offset - 1) // period + 1  # copies of this offset in the sequence
            for copy in range(whole - copies, whole):
                ids[row, 1 + offset + copy * period] = canary


def encoded(tokenizer: Tokenizer, texts: tuple[str, ...], bos: int) -> np.ndarray:
    """All texts as one stream of ids, each text opened by BOS."""
    parts = [np.array([bos, *e.ids]) for e in tokenizer.encode_batch(list(texts))]
    return np.concatenate(parts)
