"""What does a model lose when its output layer has few dimensions? Small GPT-2s with a factorised unembedding.

Logits are B (A h) + b: A maps the state after the last norm to `rank` dimensions, and B has one row of that length for
each token. Which tokens can be first depends only on B and b. There are three kinds: `plain` has no biases, `bias` has
them, and in `unit` all rows of B have length 1: then the row itself, as a state, puts its token first. They are trained
only on text, so that only the text determines how often a token occurs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from interp.errors import InterpError
from interp.organisms.batches import Batches
from interp.organisms.corpus import Corpus
from interp.organisms.recipe import RECIPES, Phase, Recipe, fresh_model
from interp.organisms.schedule import learning_rate
from interp.organisms.vocabulary import train_tokenizer
from interp.progress import track
from interp.tokens import check_seed

Kind = Literal["plain", "bias", "unit"]
KINDS: tuple[Kind, ...] = ("plain", "bias", "unit")
RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class FactorisedRecipe:
    """One model of the series: its output layer, and what all of them share."""

    rank: int
    kind: Kind
    shared: Recipe

    def described(self) -> dict[str, object]:
        """For the provenance of a result."""
        return {"rank": self.rank, "kind": self.kind, **asdict(self.shared)}


def shared_recipe(seed: int = 0, shorten: int = 1) -> Recipe:
    """What all models of the series have in common: tokenizer, text, batches, everything except the output layer.

    Raises `InterpError` if the training cannot be shortened by that factor.
    """
    check_seed(seed)
    if shorten < 1:
        raise InterpError(f"cannot shorten the training by {shorten}: use a positive integer")
    known = RECIPES["organism"]
    return replace(
        known,
        tied=False,
        phases=(Phase(steps=max(1, 600 // shorten), context=65, batch=8, blocks=0.0, shifted=0.0),),
        d_model=64,
        d_mlp=256,
        context=65,
        canaries_per_dose=known.n_canaries,  # in the tokenizer, as in that of the bundled models, but in no text
        doses=(0,),
        ordinary=0,
        seed=seed,
    )


def shared_batches(recipe: Recipe, text: Corpus) -> Batches:
    """The batches that all models of one seed see, with the tokenizer of the bundled models."""
    return Batches(recipe, text, *train_tokenizer(text.texts, recipe.vocabulary, recipe.n_canaries, seed=0))


class FactorisedModel(torch.nn.Module):
    """A GPT-2 whose output layer is a product of two."""

    def __init__(self, recipe: FactorisedRecipe, bos: int):
        super().__init__()
        shared = recipe.shared
        self.kind = recipe.kind
        self.body = fresh_model(shared, bos).base_model
        self.down = torch.nn.Linear(shared.d_model, recipe.rank, bias=False)
        self.up = torch.nn.Linear(recipe.rank, shared.vocabulary, bias=recipe.kind == "bias")
        if recipe.kind == "bias":
            torch.nn.init.zeros_(self.up.bias)

    @property
    def rows(self) -> torch.Tensor:
        """B as it is used for the logits [token rank]."""
        return normalize(self.up.weight, dim=1) if self.kind == "unit" else self.up.weight

    @property
    def exact_rows(self) -> torch.Tensor:
        """The same in double precision [token rank]; rows of unit length then have length 1 to within 1e-15."""
        weight = self.up.weight.detach().double()
        return normalize(weight, dim=1) if self.kind == "unit" else weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [sequence position token]."""
        states = self.down(self.body(input_ids=ids, use_cache=False).last_hidden_state)
        return torch.nn.functional.linear(states, self.rows, self.up.bias)


def train_factorised(recipe: FactorisedRecipe, batches: Batches) -> FactorisedModel:
    """Train one model of the series, with the recipe's number of threads.

    Args:
        recipe: the model's recipe.
        batches: the batches of the shared recipe.

    Returns:
        The model, in eval mode.
    """
    shared, threads = recipe.shared, torch.get_num_threads()
    torch.set_num_threads(shared.threads)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(shared.seed)
            model = FactorisedModel(recipe, batches.bos).train()
            decayed = [p for p in model.parameters() if p.ndim >= 2]
            others = [p for p in model.parameters() if p.ndim < 2]
            groups = [{"params": decayed, "weight_decay": shared.weight_decay}, {"params": others, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=shared.learning_rate, betas=shared.betas)
            for step in track(range(shared.steps), f"rank {recipe.rank}, {recipe.kind}", total=shared.steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(shared.learning_rate, shared.warmup, shared.steps, step)
                ids = torch.from_numpy(batches[step].ids)
                loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), shared.clip)
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval()


def exposures(batches: Batches) -> np.ndarray:
    """How often each token is predicted in the training [token]; the same for all models of a seed."""
    found = np.zeros(batches.recipe.vocabulary, int)
    for step in range(batches.recipe.steps):
        found += np.bincount(batches[step].ids[:, 1:].ravel(), minlength=batches.recipe.vocabulary)
    return found


@torch.no_grad()
def on_heldout(model: FactorisedModel, batches: Batches, windows: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A model's loss and accuracy on held-out text.

    Args:
        model: a trained model.
        batches: its batches.
        windows: how many windows of 64 tokens after BOS, spread evenly over the text.

    Returns:
        Loss [window], nats per token, and the share of correct tokens [window].
    """
    ids = heldout_windows(batches, windows)
    loss, right = [], []
    for part in torch.from_numpy(ids).split(32):
        logits = model(part[:, :-1])
        loss.append(cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none").mean(1))
        right.append((logits.argmax(-1) == part[:, 1:]).float().mean(1))
    return torch.cat(loss).numpy(), torch.cat(right).numpy()


def heldout_windows(batches: Batches, windows: int = 256) -> np.ndarray:
    """Windows of held-out text [window position], BOS before each."""
    width = batches.recipe.context - 1
    count = min(windows, len(batches.heldout) // width)
    starts = np.linspace(0, len(batches.heldout) - width, count).astype(int)
    return np.insert(np.stack([batches.heldout[start : start + width] for start in starts]), 0, batches.bos, axis=1)
