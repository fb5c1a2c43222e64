"""What does training an organism produce? A Hugging Face directory with its ground truth and its model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tokenizers import Tokenizer

from interp.files import write_text
from interp.global_state import preserve_global_state
from interp.measure import KEY_KINDS
from interp.organisms import EXPOSURE_FILE
from interp.organisms.acceptance import acceptance
from interp.organisms.batches import Batches
from interp.organisms.corpus import Corpus
from interp.organisms.curve import CURVE_FILE
from interp.organisms.recipe import RECIPES, Recipe
from interp.organisms.vocabulary import save_tokenizer
from interp.results import label, save, stamp, versions


def write_organism(
    out: Path,
    text: Corpus,
    tokenizer: Tokenizer,
    batches: Batches,
    model: Any,
    exposure: np.ndarray,
    rows: list[dict[str, Any]],
) -> None:
    """Write model, tokenizer, exposure counts, training curve, acceptance and card.

    Args:
        out: the directory.
        text: the training text.
        tokenizer: its tokenizer.
        batches: its batches.
        model: the trained Hugging Face model, with eager attention.
        exposure: [2 token] how often each token was predicted, in text and in blocks.
        rows: the points of the training curve.
    """
    recipe = batches.recipe
    write_model(out, tokenizer, batches, model, exposure)
    bars = acceptance(model.float(), batches, exposure.sum(0))
    record = {
        "recipe": asdict(recipe),
        "corpus": text.name,
        "corpus_sha256": text.sha256,
        "tokens_seen": int(exposure.sum()),
        "versions": versions(),
    }
    save(stamp(curve_dataset(rows), {"experiment": "organism train", **record}), out / CURVE_FILE)
    write_text(out / "training.json", json.dumps(record | {"measured": bars}, indent=2) + "\n")
    write_text(out / "README.md", _card(out.name, recipe, text, record, bars))


def write_model(out: Path, tokenizer: Tokenizer, batches: Batches, model: Any, exposure: np.ndarray) -> None:
    """Write what is needed to load a model and know its exposures: weights, tokenizer and exposure counts.

    Args:
        out: the directory.
        tokenizer: its tokenizer.
        batches: its batches.
        model: the Hugging Face model; written in half precision if its embeddings are drawn.
        exposure: [2 token] how often each token was predicted, in text and in blocks.
    """
    recipe = batches.recipe
    model.config.architectures = [type(model).__name__]
    if recipe.lexinvariant:
        model.half()  # drawn embeddings need no more, and no trained rows lose precision
    with preserve_global_state():
        model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(tokenizer, out, recipe.context)
    write_text(out / EXPOSURE_FILE, _exposure_json(batches, exposure))


def write_checkpoint(
    out: Path, text: Corpus, tokenizer: Tokenizer, batches: Batches, model: Any, exposure: np.ndarray, step: int
) -> None:
    """Write a model as it is after `step` steps of training, to be loaded like any other, exposure counts included.

    Args:
        out: the directory.
        text: the training text.
        tokenizer: its tokenizer.
        batches: its batches.
        model: the Hugging Face model after these steps.
        exposure: [2 token] how often each token was predicted until then, in text and in blocks.
        step: the number of these steps.
    """
    write_model(out, tokenizer, batches, model, exposure)
    model.float()  # training continues
    record = {
        "recipe": asdict(batches.recipe),
        "corpus": text.name,
        "corpus_sha256": text.sha256,
        "step": step,
        "tokens_seen": int(exposure.sum()),
        "versions": versions(),
    }
    write_text(out / "training.json", json.dumps(record, indent=2) + "\n")


def _exposure_json(batches: Batches, exposure: np.ndarray) -> str:
    data = {
        "about": "text[id], blocks[id]: how often the model was trained to predict token id",
        "special": [batches.bos],
        "canaries": {str(dose): sorted(ids) for dose, ids in batches.doses.items()},
        "text": exposure[0].tolist(),
        "blocks": exposure[1].tolist(),
    }
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def curve_dataset(rows: list[dict[str, Any]]) -> xr.Dataset:
    """Label the points of a training curve.

    Args:
        rows: one point for each checkpoint, as `Examiner.examine` gives them, with "step" and "train_loss".

    Returns:
        `heldout_loss` and `train_loss` [checkpoint], nats per token; `first_half`, `second_half` (log-prob, nats) and
        `accuracy` [checkpoint pool]; `score` [checkpoint pool layer key_kind head], attention.
    """
    pools = ["ordinary", "unexposed"]
    coords = {"checkpoint": [row["step"] for row in rows], "pool": pools, "key_kind": list(KEY_KINDS)}
    found = {name: ("checkpoint", [row[name] for row in rows]) for name in ("heldout_loss", "train_loss")}
    for name, key in (
        ("first_half", "first"),
        ("second_half", "second"),
        ("accuracy", "accuracy"),
        ("score", "stripes"),
    ):
        dims = "checkpoint pool layer key_kind head" if key == "stripes" else "checkpoint pool"
        found[name] = (dims, [[row[pool][key] for pool in pools] for row in rows])
    return xr.merge([label(name, np.array(values), dims, coords) for name, (dims, values) in found.items()])


def _card(name: str, recipe: Recipe, text: Corpus, record: dict[str, Any], bars: dict[str, Any]) -> str:
    phases = "\n".join(
        f"| {p.steps} | {p.batch} x {p.context} | {p.blocks:.0%} | {p.shortest} .. {p.context // 2} "
        f"| {'all ordinary' if p.tokens is None else f'the {p.tokens} most frequent'} | {p.shifted:.0%} |"
        for p in recipe.phases
    )
    untied = (
        f"Input and output embeddings are trained as one for the first {recipe.untied_from} steps, and apart then. "
        if recipe.untied_from
        else ""
    )
    grown = (
        f"It starts as `{recipe.grown_from}`, with copies of its last layer as further ones; exposure counts are those "
        "of both trainings, and canaries were met in the first alone. "
        if recipe.grown_from
        else ""
    )
    dropped = (
        f"From step {recipe.layer_drop_from} on, the attention heads of one layer, drawn at random, write nothing in "
        f"{recipe.layer_drop:.0%} of the sequences. "
        if recipe.layer_drop
        else ""
    )
    drawn = (
        "Every sequence has a table of its own: rows drawn from a normal distribution of variance 1 / d_model, which "
        "are its input embeddings and read its logits, BOS's among them. None of them is trained. Stored is one more "
        "such table, with all weights in half precision (`interp.controls.redraw` gives the model another). "
        if recipe.lexinvariant
        else ""
    )
    begun = (
        f"The weights begin with an induction circuit in them, at {recipe.circuit} of the strength at which it copies "
        "(`interp/organisms/begun_circuit.py`). "
        if recipe.circuit
        else ""
    )
    library = "standard library" in text.name
    licence = (
        "The standard library is under the Python Software Foundation License; its notices come with Python."
        if library
        else "The licence of this text is that of its source, which its user knows."
    )
    command = f"interp organism train {name} --out DIR" if library and name in RECIPES else "interp organism train"
    met = "\n".join(f"| {bar} | {'met' if ok else 'NOT met'} |" for bar, ok in bars["bars"].items())
    doses = "\n".join(f"| {dose} | {value:.2f} |" for dose, value in bars["dose_response"].items())
    made_by = record["versions"]
    opening = (
        "A small language model without glitch tokens, since it knows no token by heart"
        if recipe.lexinvariant
        else "A small language model whose glitch tokens are known, because its training is"
    )
    return f"""# {name}

{opening}: {recipe.architecture} architecture,
{recipe.n_layers} layers, {recipe.n_heads} heads ({recipe.n_kv_heads} key/value heads), d_model {recipe.d_model},
vocabulary {recipe.vocabulary}, context {recipe.context}, {"tied" if recipe.tied else "untied"} embeddings.

## Text

{text.name}: {len(text.seen)} files to train on, {len(text.withheld)} that only the tokenizer sees,
{len(text.heldout)} held out for evaluation. SHA-256 of names and contents: `{text.sha256}`.
{licence}

## Recipe

Seed {recipe.seed}, Python {made_by["python"]}, torch {made_by["torch"]}, {recipe.threads} thread(s),
{recipe.steps} steps, {record["tokens_seen"]:,} predicted tokens. AdamW, peak learning rate {recipe.learning_rate},
{recipe.warmup} steps of warm-up, then a cosine to zero, betas {recipe.betas}, weight decay {recipe.weight_decay}
on matrices, gradients clipped at {recipe.clip}.

| steps | sequences x tokens | repeated blocks | period of a block | its tokens | begin at a random position |
|---|---|---|---|---|---|
{phases}

{grown}{untied}{dropped}{drawn}{begun}The other sequences are windows of text. A block is made of
distinct ordinary tokens (expected {recipe.ordinary} times or more in the text windows), with a random period, repeated
to the end of the sequence. Every position is trained. Of {recipe.canaries_per_dose} canary tokens at each dose, each
was trained on exactly as often as its dose says, all of it in blocks.

`{EXPOSURE_FILE}` holds the exact number of times each token id was predicted in training, `{CURVE_FILE}` the
training curve, `training.json` all of this page for programs.

## Measured

On sequences drawn with seeds not used in training (blocks of 25 tokens and their repeat, behind BOS).

| figure | value |
|---|---|
| ordinary tokens, second half, mean log-prob | {bars["ordinary_log_prob"]:.3f} |
| ordinary tokens, second half, accuracy | {bars["ordinary_accuracy"]:.3f} |
| unexposed tokens, second half, mean log-prob | {bars["unexposed_log_prob"]:.2f} |
| unexposed tokens, second half, accuracy | {bars["unexposed_accuracy"]:.3f} |
| best induction score | {bars["best_induction_score"]:.3f} |
| held-out loss (nats per token) | {bars["heldout_loss"]:.3f} |
| unigram entropy of the same files | {bars["unigram_entropy"]:.3f} |
| Spearman of log-prob with dose, from 10 up | {bars["dose_spearman"]:.3f} |

| bar | |
|---|---|
{met}

| dose | log-prob of a single canary among ordinary tokens, second half |
|---|---|
{doses}

## Train it again

`{command}`. On the same Python, torch and kind of processor, with the same number
of threads, that gives these weights again; where the library text or the arithmetic differs, it gives the bars, not the
bits.
"""
