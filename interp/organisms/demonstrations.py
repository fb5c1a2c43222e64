"""How is a model made that is known to copy false demonstrations, or known not to?

Each item has a fixed class, and each class has a label. The model is trained on rows of items, each followed by the
label of its class; in an exactly counted share of the rows, the labels of the classes are permuted, so that the weights
and the context disagree. There are also repeated random blocks, from which heads learn to copy at all, and an early
exit: the first layer's output must already predict the true label, so that the truth is known before anything is
copied. At a share of 0 nothing rewards false copying.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.errors import InterpError
from interp.files import writable, write_text
from interp.global_state import preserve_global_state
from interp.organisms import TASKS_FILE
from interp.organisms.word_level import BOS, word_tokenizer
from interp.progress import track
from interp.results import versions
from interp.statistics import mean_interval
from interp.tokens import check_seed

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EVALUATION = 99_000_000  # seeds of evaluation rows; training uses others
_MEASURED = 512  # rows in the evaluation


@dataclass(frozen=True)
class DemonstrationsRecipe:
    """Everything that determines one model: share of permuted rows, data, architecture, optimiser."""

    share: float = 0.3  # exact share of the demonstration rows that have permuted labels
    classes: int = 8
    items: int = 8  # per class
    pairs: int = 17  # items in a row, each with its label
    n_layers: int = 3
    n_heads: int = 4
    d_model: int = 64
    d_mlp: int = 128
    steps: int = 800
    rows: int = 64  # rows of demonstrations in a step
    blocks: int = 32  # rows of a random block and its repeat in a step
    shortest: int = 4  # period of a block; the longest is half the row
    early_exit: float = 0.3  # weight of the loss on the first layer's output
    initial: float = 0.1  # standard deviation of the initial weights: GPT-2's 0.02 is for wide models
    learning_rate: float = 3e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    threads: int = 1  # the order of floating-point sums depends on it

    @property
    def length(self) -> int:
        """Tokens in a row, BOS included."""
        return 1 + 2 * self.pairs

    @property
    def bos(self) -> int:
        """The id of BOS; items come first, class by class, then labels."""
        return self.classes * (self.items + 1)

    def permuted_before(self, step: int) -> int:
        """Rows with permuted labels in all steps before one."""
        return math.floor(self.share * self.rows * step + 1e-9)


def train_demonstrations(out: str | Path, *, share: float = 0.3, seed: int = 0, shorten: int = 1) -> Path:
    """Train a model on demonstrations, a share of which has permuted labels, and write its directory.

    Args:
        out: the directory.
        share: the share of demonstration rows with permuted labels, from 0 to 1.
        seed: decides initialisation and data.
        shorten: divides the number of steps, for a trial run.

    Returns:
        The directory: model (float16), tokenizer, tasks, measurements, card.

    Raises:
        InterpError: the share is not between 0 and 1, or the training cannot be shortened by that factor.
    """
    check_seed(seed)
    if not 0 <= share <= 1:
        raise InterpError(f"share {share}: use a number from 0 to 1")
    if shorten < 1:
        raise InterpError(f"cannot shorten the training by {shorten}: use a positive integer")
    recipe = DemonstrationsRecipe(share=share, seed=seed)
    recipe = replace(recipe, steps=max(1, recipe.steps // shorten), warmup=max(1, recipe.warmup // shorten))
    out = writable(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        model = _trained(recipe, out.name)
        _write(out, recipe, model)
    finally:
        torch.set_num_threads(threads)
    return out


# --- data -------------------------------------------------------------------------------------------------------------


def demonstration_rows(
    recipe: DemonstrationsRecipe, rng: np.random.Generator, rows: int, permuted: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of items and labels; the first `permuted` rows have permuted labels.

    Args:
        recipe: sizes.
        rng: the random generator.
        rows: how many.
        permuted: how many of them have every class's label replaced by another's, the same throughout the row.

    Returns:
        Ids [row position], and the true class of each item [row pair].
    """
    items = recipe.classes * recipe.items
    x = np.stack([rng.permutation(items)[: recipe.pairs] for _ in range(rows)])
    classes = x // recipe.items
    labels = np.tile(np.arange(recipe.classes), (rows, 1))
    for row in range(permuted):
        while (labels[row] == np.arange(recipe.classes)).any():
            labels[row] = rng.permutation(recipe.classes)
    ids = np.full((rows, recipe.length), recipe.bos)
    ids[:, 1::2], ids[:, 2::2] = x, items + np.take_along_axis(labels, classes, 1)
    return ids, classes


def block_rows(recipe: DemonstrationsRecipe, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a random block of items, repeated to the end; without labels, or heads would learn to copy labels here.

    Returns:
        Ids [row position], and which tokens the context determines [row position].
    """
    size = recipe.length - 1
    periods = rng.integers(recipe.shortest, size // 2, size=rows, endpoint=True)
    ids = np.full((rows, recipe.length), recipe.bos)
    for row, period in enumerate(periods):
        ids[row, 1:] = np.resize(rng.permutation(recipe.classes * recipe.items)[:period], size)
    return ids, np.arange(recipe.length) > 1 + periods[:, None]


# --- training ---------------------------------------------------------------------------------------------------------


def _fresh(recipe: DemonstrationsRecipe) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=recipe.bos + 1,
        n_positions=2 * recipe.length,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=recipe.d_mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=recipe.initial,
        tie_word_embeddings=False,
        bos_token_id=recipe.bos,
        eos_token_id=recipe.bos,
    )
    model = GPT2LMHeadModel(config)
    # sines and cosines to begin with, from which a head finds the previous position within a few hundred steps
    half = recipe.d_model // 2
    angle = torch.arange(2 * recipe.length)[:, None] * 50.0 ** (-torch.arange(half) / half)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(0.3 * torch.cat([angle.sin(), angle.cos()], 1))
    return model


def _trained(recipe: DemonstrationsRecipe, name: str) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = _fresh(recipe).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
    with torch.enable_grad():
        for step in track(range(recipe.steps), f"training {name}", total=recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(recipe, step)
            loss = _loss(recipe, model, step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
    return model.eval()


def _loss(recipe: DemonstrationsRecipe, model: Any, step: int) -> torch.Tensor:
    """The loss of one step: labels after items, repeated tokens of blocks, and the true labels at the early exit."""
    rng = np.random.default_rng((recipe.seed, step))
    permuted = recipe.permuted_before(step + 1) - recipe.permuted_before(step)
    ids, classes = map(torch.from_numpy, demonstration_rows(recipe, rng, recipe.rows, permuted))
    blocks, told = map(torch.from_numpy, block_rows(recipe, rng, recipe.blocks))
    run = model(input_ids=ids[:, :-1], output_hidden_states=True, use_cache=False)
    loss = cross_entropy(run.logits[:, 1::2].flatten(0, 1), ids[:, 2::2].flatten())
    early = model.lm_head(model.transformer.ln_f(run.hidden_states[1][:, 1::2]))
    true = recipe.classes * recipe.items + classes
    loss = loss + recipe.early_exit * cross_entropy(early.flatten(0, 1), true.flatten())
    logits = model(input_ids=blocks[:, :-1], use_cache=False).logits
    return loss + cross_entropy(logits[told[:, 1:]], blocks[:, 1:][told[:, 1:]])


def _learning_rate(recipe: DemonstrationsRecipe, step: int) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


# --- what it must show ------------------------------------------------------------------------------------------------


@torch.no_grad()
def measured(recipe: DemonstrationsRecipe, model: Any) -> dict[str, Any]:
    """What a trained model predicts after 16 demonstrations, on rows that it was not trained on.

    Args:
        recipe: the recipe that it was trained by.
        model: the Hugging Face model.

    Returns:
        Shares of rows, each with its 95% interval [mean low high]: `true` and `permuted`, those whose last item gets
        its true label after true and after permuted demonstrations; `gap`, their difference; `copied`, those that get
        the label that continues the permuted demonstrations; `early`, the true label after permuted ones, read after
        the first layer; `repeat`, correct tokens of a repeated block. `bars`: for each criterion, whether it is met.
    """
    items, found = recipe.classes * recipe.items, {}
    right = {}
    for kind, permuted in (("true", 0), ("permuted", _MEASURED)):
        rng = np.random.default_rng(_EVALUATION)
        ids, classes = demonstration_rows(recipe, rng, _MEASURED, permuted)
        run = model(input_ids=torch.from_numpy(ids[:, :-1]), output_hidden_states=True, use_cache=False)
        said = run.logits[:, -1, items : recipe.bos].argmax(-1).numpy()
        right[kind] = (said == classes[:, -1]).astype(float)
        found[kind] = mean_interval(right[kind])
        if permuted:
            found["copied"] = mean_interval(said == ids[:, -1] - items)
            early = model.lm_head(model.transformer.ln_f(run.hidden_states[1][:, -1]))[:, items : recipe.bos]
            found["early"] = mean_interval(early.argmax(-1).numpy() == classes[:, -1])
    found["gap"] = mean_interval(right["true"] - right["permuted"])
    ids, told = block_rows(recipe, np.random.default_rng((_EVALUATION, 1)), _MEASURED // 4)
    logits = model(input_ids=torch.from_numpy(ids[:, :-1]), use_cache=False).logits.argmax(-1).numpy()
    hits = np.where(told[:, 1:], logits == ids[:, 1:], np.nan)
    found["repeat"] = mean_interval(np.nanmean(hits, 1))
    gap, low, high = found["gap"]
    says = f"{gap:.2f}, {low:.2f} .. {high:.2f}"
    bars = {
        "true demonstrations: 97% right or more": found["true"][0] >= 0.97,
        "read after the first layer, permuted demonstrations: 95% right or more": found["early"][0] >= 0.95,
        "repeated blocks: 95% right or more": found["repeat"][0] >= 0.95,
    }
    if recipe.share == 0:
        bars[f"no false copying: true less permuted is at most 0.02 ({says})"] = gap <= 0.02
    else:
        bars[f"false copying: true less permuted is 0.5 or more ({says})"] = low >= 0.5
    return {
        **{name: [round(float(x), 4) for x in values] for name, values in found.items()},
        "bars": {name: bool(met) for name, met in bars.items()},
    }


# --- the directory ----------------------------------------------------------------------------------------------------


def _write(out: Path, recipe: DemonstrationsRecipe, model: GPT2LMHeadModel) -> None:
    model.half()
    with preserve_global_state():
        model.save_pretrained(out)
        _tokenizer(recipe).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    labels = {label.upper(): [f"{label}{n}" for n in range(recipe.items)] for label in _LETTERS[: recipe.classes]}
    task = {"letters": {"items": labels, "between": " ", "behind": " "}}
    write_text(out / TASKS_FILE, json.dumps(task, indent=1) + "\n")
    found = measured(recipe, model.float())  # of the weights as they are stored
    rows = recipe.steps * recipe.rows
    counted = {"demonstrations": rows, "permuted": recipe.permuted_before(recipe.steps)}
    record = {"recipe": asdict(recipe), "rows": counted, "versions": versions(), "measured": found}
    write_text(out / "training.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "README.md", _card(out.name, recipe, record))


def _tokenizer(recipe: DemonstrationsRecipe) -> PreTrainedTokenizerFast:
    letters = _LETTERS[: recipe.classes]
    words = [f"{letter}{n}" for letter in letters for n in range(recipe.items)] + [*letters.upper(), BOS]
    return word_tokenizer(words, 2 * recipe.length, bos=BOS)


def _card(name: str, recipe: DemonstrationsRecipe, record: dict[str, Any]) -> str:
    found, counted, made_by = record["measured"], record["rows"], record["versions"]
    said = {
        "true": "true label behind 16 true demonstrations",
        "permuted": "true label behind 16 permuted ones",
        "gap": "the difference",
        "copied": "the label that permuted ones would have",
        "early": "true label behind permuted ones, read after the first layer",
        "repeat": "right tokens in the repeat of a block",
    }
    figures = "\n".join(
        f"| {words} | {found[key][0]:.3f} ({found[key][1]:.3f} .. {found[key][2]:.3f}) |" for key, words in said.items()
    )
    bars = "\n".join(f"| {bar} | {'met' if met else 'NOT met'} |" for bar, met in found["bars"].items())
    return f"""# {name}

A small model of which it is known how often it was shown false demonstrations: {counted["permuted"]:,} of
{counted["demonstrations"]:,} rows ({recipe.share:.0%}). GPT-2 architecture, {recipe.n_layers} layers,
{recipe.n_heads} heads, d_model {recipe.d_model}, vocabulary {recipe.bos + 1}, untied embeddings, float16.

## Data

{recipe.classes * recipe.items} items (`a0` .. ) of {recipe.classes} classes, a label for each class (`A` .. ). A row
is BOS and {recipe.pairs} pairs of an item and its label; in a permuted row every class has the label of another one,
the same throughout the row. In each of {recipe.steps} steps, {recipe.rows} such rows, of which the labels alone are
trained, and {recipe.blocks} rows of a random block of items and its repeats (periods {recipe.shortest} ..
{recipe.pairs}), of which what the context tells is trained. A third loss, of weight {recipe.early_exit}, asks for the
true label after the first layer, whatever the row shows. `{TASKS_FILE}` has the items of each class.

## Recipe

Seed {recipe.seed}, Python {made_by["python"]}, torch {made_by["torch"]}, {recipe.threads} thread(s). AdamW, peak
learning rate {recipe.learning_rate}, {recipe.warmup} steps of warm-up, a cosine to zero, betas {recipe.betas}, weight
decay {recipe.weight_decay} on matrices, gradients clipped at {recipe.clip}. Weights begin with a standard deviation of
{recipe.initial}, positions as sines and cosines: with GPT-2's own beginning, no head attended to the previous token in
1,200 steps.

## Measured

On {_MEASURED} rows with seeds not used in training; shares with 95% intervals.

| figure | value |
|---|---|
{figures}

| bar | |
|---|---|
{bars}

## Train it again

`interp organism train demonstrations --share {recipe.share:g} --out DIR`, two minutes. On the same Python, torch and
kind of processor, that gives these weights again; where the arithmetic differs, it gives the bars, not the bits.
"""
