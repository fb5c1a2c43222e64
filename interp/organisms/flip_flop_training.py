"""How is a model of the flip-flop language trained?

`train_flip_flop(name, out)` writes a directory: weights, tokenizer, training curve, errors on the three published
languages. Killed at any time and restarted, it resumes from the last checkpoint. Each batch is a pure function of seed
and step; on one CPU thread the weights are, too, whereas a GPU does not sum in a fixed order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from interp.errors import InterpError
from interp.files import replacing, writable, write_text
from interp.global_state import preserve_global_state
from interp.languages.register import (
    DENSE,
    LENGTH,
    READ,
    SPARSE,
    TRAINED_ON,
    WRITE,
    FlipFlop,
    flip_flop,
    ids_of,
)
from interp.organisms import FLIP_FLOP_LSTM, folder as folder_of
from interp.organisms.flip_flop_recipes import (
    FLIP_FLOP_RECIPES,
    FlipFlopLSTM,
    FlipFlopRecipe,
    Loss,
    fresh_flip_flop_model,
)
from interp.organisms.flip_flop_records import RECORD, training_record
from interp.organisms.wired_register import flip_flop_tokenizer
from interp.progress import track
from interp.results import versions
from interp.tokens import check_seed

_CHECKPOINT = ".checkpoint.pt"
_CHECKPOINT_EVERY = 200
_POINT_EVERY = 50  # steps between points of the curve
_EXAMINED_EVERY = 500  # steps between points with errors on the three languages
_EXAMINED = 64  # sequences of each language at these points
_MEASURED_SEED = 88_000  # for the sequences that errors are counted on; training uses another generator
_ROWS = {"cpu": 16, "cuda": 256}  # sequences per evaluation pass


def train_flip_flop(
    name: str,
    out: str | Path,
    *,
    seed: int = 0,
    loss: str = "clean",
    device: str | None = None,
    shorten: int = 1,
) -> Path:
    """Train a model of the flip-flop language by its recipe, or resume a training that was killed.

    Args:
        name: which recipe, such as `flipflop` or `flipflop-lstm`.
        out: the directory; training resumes from a checkpoint in it.
        seed: decides initialisation and data; the LSTM gets the same sequences as the transformer with the same seed.
        loss: on the values after reads only (`clean`, as published), or on every token (`everything`).
        device: where to train; default: the environment variable INTERP_DEVICE, otherwise CUDA if there is one.
        shorten: divides steps, doses and measured sequences, for a trial run.

    Returns:
        The directory.

    Raises:
        InterpError: there is no such recipe or device, or `out` holds the checkpoint of another recipe.
    """
    if name not in FLIP_FLOP_RECIPES:
        raise InterpError(f"unknown recipe '{name}': use {', '.join(FLIP_FLOP_RECIPES)}")
    check_seed(seed)
    if loss not in get_args(Loss):
        raise InterpError(f"unknown loss '{loss}': use {' or '.join(get_args(Loss))}")
    recipe = replace(FLIP_FLOP_RECIPES[name], seed=seed, loss=cast(Loss, loss)).shortened(shorten)
    return train_recipe(recipe, out, device)


def train_recipe(recipe: FlipFlopRecipe, out: str | Path, device: str | None = None) -> Path:
    """Train by a custom recipe; `train_flip_flop` documents the arguments."""
    place, out = training_device(device), writable(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        run = FlipFlopTraining(recipe, place)
        run.restore(out / _CHECKPOINT)
        for step in track(range(run.step, recipe.steps), f"training {out.name}", done=run.step, total=recipe.steps):
            run.advance(step)
            if run.step % _CHECKPOINT_EVERY == 0:
                run.store(out / _CHECKPOINT)
        _write(out, recipe, run, place)
    finally:
        torch.set_num_threads(threads)
    (out / _CHECKPOINT).unlink(missing_ok=True)
    return out


def training_device(asked: str | None) -> torch.device:
    """Where to train. Raises `InterpError` if there is no such device."""
    asked = asked or os.environ.get("INTERP_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=asked).device
    except (RuntimeError, AssertionError) as error:
        raise InterpError(f"no device '{asked}' on this machine: use 'cpu', or leave it out") from error


class FlipFlopBatches:
    """The sequences of every step, the canaries planted in them, and the shift of their positions."""

    def __init__(self, recipe: FlipFlopRecipe):
        self.recipe = recipe
        self.planted = _planted(recipe)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [batch position], and the position [batch] that each sequence begins at."""
        recipe, phase = self.recipe, self.recipe.phase(step)
        rng = np.random.default_rng((recipe.seed, step))
        chance = torch.from_numpy(rng.random((2, phase.batch, phase.length // 2), dtype=np.float32))
        p = np.where(np.arange(phase.batch) < round(recipe.sparse * phase.batch), SPARSE, recipe.p)
        ids = ids_of(chance, torch.from_numpy(p.astype(np.float32))[:, None], recipe.values)
        if step in self.planted:
            _plant(ids, self.planted[step], rng)
        start = rng.integers(0, recipe.context - phase.length + 1, phase.batch)
        return ids, torch.from_numpy(start)


def _planted(recipe: FlipFlopRecipe) -> dict[int, list[int]]:
    """The canaries that each step trains to read, in random order over the second half of the training."""
    wanted = np.array([c for dose, ids in recipe.canaries.items() for c in ids for _ in range(dose)], dtype=int)
    if not len(wanted):
        return {}
    rng = np.random.default_rng((recipe.seed, recipe.steps))
    steps = rng.integers(recipe.steps // 2, recipe.steps, len(wanted))
    found: dict[int, list[int]] = {}
    for step, canary in zip(steps.tolist(), wanted.tolist(), strict=True):
        found.setdefault(step, []).append(canary)
    return found


def _plant(ids: torch.Tensor, canaries: list[int], rng: np.random.Generator) -> None:
    """Write each canary into a register that is read exactly once, so that it is an answer exactly once more."""
    instructions = ids[:, 0::2].numpy()
    number = (instructions == WRITE).cumsum(1)  # of the last write before each instruction
    rows = np.arange(len(ids))[:, None] * (number.max() + 1)
    reads = np.bincount((rows + number)[instructions == READ], minlength=len(ids) * (number.max() + 1))
    free = np.flatnonzero(reads == 1)
    if len(free) < len(canaries):
        raise InterpError("too few registers are read once for the canaries: train longer, or plant fewer")
    for register, canary in zip(rng.choice(free, len(canaries), replace=False), canaries, strict=True):
        row, write = divmod(int(register), int(number.max()) + 1)
        held = (number[row] == write) & np.isin(instructions[row], (WRITE, READ))
        ids[row, 1 + 2 * torch.from_numpy(np.flatnonzero(held))] = canary


class FlipFlopTraining:
    """The state of one training run: what a checkpoint holds."""

    def __init__(self, recipe: FlipFlopRecipe, device: torch.device):
        self.recipe, self.device, self.batches = recipe, device, FlipFlopBatches(recipe)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.model = fresh_flip_flop_model(recipe).to(device).train()
        if recipe.entropy:
            self.model.set_attn_implementation("eager")  # the only one that returns attention patterns
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, betas=recipe.betas, fused=device.type == "cuda"
        )
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self.recent: list[torch.Tensor] = []  # loss and share of wrong reads of the steps since the last point

    def advance(self, step: int) -> None:
        """One optimiser step, with its place on the curve."""
        recipe = self.recipe
        ids, start = self.batches[step]
        ids = ids.to(self.device, non_blocking=True)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        logits, entropy = self._forward(ids, start)
        answers = ids[:, 1::2].masked_fill(ids[:, 0::2] != READ, -100)  # -100: no target
        predicted = logits[:, 0::2]
        if recipe.loss == "clean":
            loss = cross_entropy(predicted.flatten(0, 1), answers.flatten())
        else:
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        (loss + recipe.entropy * entropy).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        wrong = ((predicted.detach().argmax(-1) != answers) & (answers >= 0)).sum() / (answers >= 0).sum()
        self.recent.append(torch.stack([loss.detach(), wrong]))  # kept on the device: reading it would synchronize
        self.step = step + 1
        if self.step % _POINT_EVERY == 0 or self.step == recipe.steps:
            self._point()

    def _forward(self, ids: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Logits [batch position - 1 token], and the mean entropy of attention (nats) if it is needed."""
        if isinstance(self.model, FlipFlopLSTM):
            return self.model(ids[:, :-1]), 0.0
        places = None
        if bool(start.any()):
            places = start.to(self.device)[:, None] + torch.arange(ids.shape[1] - 1, device=self.device)
        told = bool(self.recipe.entropy)
        output = self.model(input_ids=ids[:, :-1], position_ids=places, use_cache=False, output_attentions=told)
        if not told:
            return output.logits, 0.0
        return output.logits, torch.stack([_entropy(pattern) for pattern in output.attentions]).mean()

    def _point(self) -> None:
        loss, wrong = torch.stack(self.recent).mean(0).tolist()
        self.recent = []
        point: dict[str, Any] = {"step": self.step, "length": self.recipe.phase(self.step - 1).length}
        point |= {"train_loss": loss, "train_error": wrong}
        if self.step % _EXAMINED_EVERY == 0 or self.step == self.recipe.steps:
            point["errors"] = errors_on_languages(self.model, self.recipe.values, _EXAMINED)
        self.curve.append(point)

    def store(self, path: Path) -> None:
        """Write all state; the old checkpoint stays until the new one is complete."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": self.curve,
            "recent": self.recent,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Resume from a checkpoint, if there is one."""
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["recipe"] != asdict(self.recipe):
            raise InterpError(f"{path} is a checkpoint of another recipe: choose another --out, or remove it")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve, self.recent = state["step"], state["curve"], state["recent"]


def _entropy(pattern: torch.Tensor) -> torch.Tensor:
    """Mean entropy (nats) of attention [batch head query key]."""
    return -(pattern * pattern.clamp(min=1e-12).log()).sum(-1).mean()


@torch.no_grad()
def read_errors(model: Any, tokens: FlipFlop) -> torch.Tensor:
    """[batch position], bool: reads whose answer is not the token that the model finds most likely.

    Args:
        model: a Hugging Face model or a `FlipFlopLSTM`.
        tokens: sequences; they are moved to the model's device.
    """
    place = next(model.parameters()).device
    parts = []
    for part in tokens.split(_ROWS.get(place.type, 16)):
        ids = part.ids.to(place)
        logits = model(ids[:, :-1]) if isinstance(model, FlipFlopLSTM) else model(ids[:, :-1], use_cache=False).logits
        wrong = torch.zeros_like(ids, dtype=torch.bool)
        wrong[:, 1:] = logits.argmax(-1) != ids[:, 1:]
        parts.append((wrong & part.to(place).read).cpu())
    return torch.cat(parts)


def errors_on_languages(model: Any, values: int, sequences: int) -> dict[str, dict[str, int]]:
    """Wrong reads and reads on FFL(0.8), FFL(0.98) and FFL(0.1) at length 512, on sequences never trained on.

    Args:
        model: a Hugging Face model or a `FlipFlopLSTM`.
        values: how many values its register has.
        sequences: how many of each language.
    """
    training = model.training
    model.eval()
    found: dict[str, dict[str, int]] = {}
    for p in (TRAINED_ON, SPARSE, DENSE):
        wrong = reads = sequences_wrong = 0
        for start in range(0, sequences, 1024):
            few = min(1024, sequences - start)
            tokens = flip_flop(p, batch=few, length=LENGTH, values=values, seed=_MEASURED_SEED, start=start)
            errors = read_errors(model, tokens)
            wrong, reads = wrong + int(errors.sum()), reads + int(tokens.read.sum())
            sequences_wrong += int(errors.any(1).sum())
        found[f"FFL({p:g})"] = {
            "sequences": sequences,
            "sequences_wrong": sequences_wrong,
            "reads": reads,
            "wrong": wrong,
        }
    model.train(training)
    return found


# --- the directory ----------------------------------------------------------------------------------------------------


def _write(out: Path, recipe: FlipFlopRecipe, run: FlipFlopTraining, device: torch.device) -> None:
    """Write weights, tokenizer, and the record of the training."""
    model = run.model.eval()
    if isinstance(model, FlipFlopLSTM):
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()},
            out / "model.safetensors",
        )
    else:
        model.config.architectures = [type(model).__name__]
        with preserve_global_state():
            model.save_pretrained(out)
        (out / "generation_config.json").unlink(missing_ok=True)
        flip_flop_tokenizer(recipe.vocabulary, recipe.context).save_pretrained(out)
    record = {
        "recipe": asdict(recipe),
        "device": device.type,
        "versions": versions(),
        "errors": errors_on_languages(model, recipe.values, recipe.measured),
        "curve": run.curve,
    }
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    write_text(out / "README.md", card(out.name, record))


def card(name: str, record: dict[str, Any]) -> str:
    """The model card.

    Args:
        name: the model's.
        record: what `training.json` says.
    """
    recipe, errors = record["recipe"], record["errors"]
    lstm = recipe["architecture"] == "lstm"
    shape = (
        f"an LSTM of width {recipe['d_model']}"
        if lstm
        else (
            f"GPT-2 architecture, {recipe['n_layers']} layers, {recipe['n_heads']} heads, d_model {recipe['d_model']}"
        )
    )
    phases = "\n".join(f"| {p['steps']} | {p['length']} | {p['batch']} |" for p in recipe["phases"])
    counts = "\n".join(f"| {name} | {n['wrong']:,} | {n['reads']:,} |" for name, n in errors.items())
    extra = f"Share of sequences from FFL(0.98): {recipe['sparse']:g}. " if recipe["sparse"] else ""
    extra += f"Weight of the entropy of attention in the loss: {recipe['entropy']:g}. " if recipe["entropy"] else ""
    if recipe["doses"]:
        extra += (
            f"{recipe['canaries_per_dose']} canaries each are the answer of {', '.join(map(str, recipe['doses']))} "
            "reads. "
        )
    loss = "the values behind reads alone" if recipe["loss"] == "clean" else "every token"
    known = recipe_name(recipe)
    command = f"interp organism train {known} --seed {recipe['seed']} --out DIR" if known else "interp organism train"
    return f"""# {name}

A model of the flip-flop language (Liu et al. 2023, arXiv 2306.00946): {shape},
{recipe["values"]} values of the register, trained on FFL({recipe["p"]:g}). The loss is of {loss}.
{extra}Seed {recipe["seed"]}, on {record["device"]}, by torch {record["versions"]["torch"]}. Made again by
`{command}`; a GPU adds in an order of its own.

| steps | tokens in a sequence | sequences in a step |
|---|---|---|
{phases}

| language | reads wrong | reads |
|---|---|---|
{counts}

`training.json` has the training curve, and all of this for programs.
"""


def flip_flop_lstm(folder: str | Path = FLIP_FLOP_LSTM) -> FlipFlopLSTM:
    """Load a trained LSTM, the bundled one or a directory's, in eval mode.

    Raises `InterpError` if the directory holds none.
    """
    folder = folder_of(folder)
    try:
        recipe = training_record(folder)["recipe"]
        weights = load_file(folder / "model.safetensors")
        model = FlipFlopLSTM(len(weights["embed.weight"]), recipe["d_model"], recipe["n_layers"])
        model.load_state_dict(weights)
    except (InterpError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise InterpError(
            f"{folder} holds no LSTM of the flip-flop language: train one, interp organism train flipflop-lstm"
        ) from error
    return model.eval()


def recipe_name(recipe: dict[str, Any]) -> str | None:
    """Which of the bundled recipes a stored one is, whatever its seed; None for a custom one."""
    for name, known in FLIP_FLOP_RECIPES.items():
        if json.loads(json.dumps(asdict(replace(known, seed=recipe["seed"])))) == recipe:
            return name
    return None


def collect_records(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Collect several training records in one small file: curves to four digits, error counts in full.

    Args:
        folders: directories that `train_flip_flop` made.
        out: the file.

    Returns:
        The file.

    Raises:
        InterpError: a directory holds no record, or one of a recipe that is not bundled.
    """
    found: list[dict[str, Any]] = []
    for folder in folders:
        record = training_record(folder)
        name = recipe_name(record["recipe"])
        if name is None:
            raise InterpError(f"{folder} was trained by a custom recipe: give models of {', '.join(FLIP_FLOP_RECIPES)}")
        curve = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in p.items()} for p in record["curve"]]
        kept = {key: record[key] for key in ("device", "versions", "errors")}
        found.append({"recipe": name, "seed": record["recipe"]["seed"], **kept, "curve": curve})
    found.sort(key=lambda record: (list(FLIP_FLOP_RECIPES).index(record["recipe"]), record["seed"]))
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in found)
    write_text(Path(out), f"[\n{lines}\n]\n")
    return Path(out)
