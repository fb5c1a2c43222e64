"""How is a bundled model retrained exactly?

`train(recipe, out)` goes from source text to a Hugging Face directory with its ground truth: exposure counts,
canaries and training curve. Killed at any time and restarted, it resumes from the last checkpoint and ends
with the same bits (same machine, same versions); each batch is a pure function of the step.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from interp.errors import InterpError
from interp.files import replacing, writable
from interp.measure import log_probs
from interp.organisms import exposure, folder
from interp.organisms.acceptance import copying
from interp.organisms.batches import Batches
from interp.organisms.corpus import Corpus, corpus
from interp.organisms.drawn_rows import drawn_table, logits_by_rows, renumbered, training_rows
from interp.organisms.export import write_checkpoint, write_organism
from interp.organisms.recipe import RECIPES, Recipe, fresh_model
from interp.organisms.schedule import learning_rate
from interp.organisms.vocabulary import train_tokenizer
from interp.progress import track
from interp.tokens import Pool, check_seed, repeated

_CHECKPOINT = ".checkpoint.pt"
_CHECKPOINT_EVERY = 200
_CURVE_SEED = 77_000  # for the sequences of the curve and the acceptance criteria; training uses another generator


def train(recipe: Recipe, out: str | Path, text: Corpus | None = None, keep_at: Sequence[int] = ()) -> Path:
    """Train a model and write its directory, or resume a training that was killed.

    Args:
        recipe: everything that determines the result.
        out: the directory; training resumes from a checkpoint in it.
        text: what it learns from; the standard library of this Python by default.
        keep_at: steps after which the model is also kept, in folders `step100` and so on below `out`.

    Returns:
        The directory: model, tokenizer, exposure counts, training curve and card.

    Raises:
        InterpError: `out` holds the checkpoint of another recipe or another text, or one that is past a step to keep.
    """
    check_seed(recipe.seed)
    odd = next((step for step in keep_at if not 0 <= step <= recipe.steps), None)
    if odd is not None:
        raise InterpError(f"cannot keep the model after step {odd}: this training has steps 0 to {recipe.steps:,}")
    out = writable(out)
    text = text or corpus()
    if recipe.grown_from:
        tokenizer, canaries = _known_tokenizer(recipe.grown_from)
    else:
        tokenizer, canaries = train_tokenizer(text.texts, recipe.vocabulary, recipe.n_canaries, recipe.seed)
    batches = Batches(recipe, text, tokenizer, canaries)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        run = Training(recipe, batches, text.sha256)
        run.restore(out / _CHECKPOINT)
        late = next((at for at in sorted(keep_at) if at < run.step and not _kept_folder(out, at).is_dir()), None)
        if late is not None:
            raise InterpError(
                f"the training in {out} is at step {run.step:,}, past step {late:,}, which is to be kept: "
                "leave that step out, or give another --out"
            )
        keep = partial(_keep, out, text, tokenizer, batches, run, frozenset(keep_at))
        keep()
        for step in track(range(run.step, recipe.steps), f"training {out.name}", done=run.step, total=recipe.steps):
            run.advance(step)
            keep()
            if run.step % _CHECKPOINT_EVERY == 0:
                run.store(out / _CHECKPOINT)
        write_organism(out, text, tokenizer, batches, run.examiner.copy_of(run.model), run.exposure, run.curve)
    finally:
        torch.set_num_threads(threads)
    (out / _CHECKPOINT).unlink(missing_ok=True)
    return out


def train_again(
    name: str,
    out: str | Path,
    *,
    text: str | Path | None = None,
    withheld: Sequence[str] | None = None,
    seed: int = 0,
    shorten: int = 1,
    keep_at: Sequence[int] = (),
) -> Path:
    """Retrain a bundled model by its recipe.

    Args:
        name: which recipe, such as `organism`.
        out: the directory; training resumes from a checkpoint in it.
        text: a folder of text to learn from; the standard library of this Python by default.
        withheld: names at the top of the text that only the tokenizer sees; by default those of the bundled models
            for the standard library, and nothing for another text.
        seed: decides initialisation, data order and canaries.
        shorten: divides steps, doses and thresholds, for a trial run.
        keep_at: steps after which the model is also kept, in folders `step100` and so on below `out`.

    Returns:
        The directory: model, tokenizer, exposure counts, training curve and card.

    Raises:
        InterpError: there is no such recipe, too little text, or a checkpoint of another recipe or text in `out`.
    """
    if name not in RECIPES:
        raise InterpError(f"unknown recipe '{name}': use {', '.join(RECIPES)}")
    recipe = replace(RECIPES[name], seed=seed).shortened(shorten)
    return train(recipe, out, corpus(text, tuple(withheld) if withheld else None), keep_at)


class Training:
    """The state of one training run: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, batches: Batches, text_hash: str):
        self.recipe, self.batches, self.text_hash = recipe, batches, text_hash
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.model = fresh_model(recipe, batches.bos, tied=recipe.tied or recipe.untied_from > 0).train()
        if recipe.lexinvariant:
            rows = self.model.get_input_embeddings().weight.requires_grad_(False)
            rows.copy_(drawn_table(recipe.seed, *rows.shape))  # the one for evaluation
        if recipe.grown_from:
            self.model.load_state_dict(
                grown(load_file(folder(recipe.grown_from) / "model.safetensors"), recipe.n_layers)
            )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim >= 2]
        others = [p for p in trained if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
        self.silent = torch.empty(0, dtype=torch.long)  # [sequence] the layer whose heads write nothing in this step
        if recipe.layer_drop:
            drop_layers(self.model, recipe, lambda: self.silent)
        self.step = 0
        before = batches.before
        self.exposure = (
            np.zeros((2, recipe.vocabulary), int) if before is None else np.array([before.text, before.blocks])
        )  # in text, in blocks
        self.curve: list[dict[str, Any]] = []
        self.recent: list[float] = []  # training losses since the last point of the curve
        self.examiner = Examiner(recipe, batches)

    def advance(self, step: int) -> None:
        """One optimiser step, with its place on the curve."""
        if step == self.recipe.untied_from > 0:
            self._untie()
        batch, recipe = self.batches[step], self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.learning_rate, recipe.warmup, recipe.steps, step)
        numbers = renumbered(batch.ids) if recipe.lexinvariant else batch.ids
        ids, self.silent = torch.from_numpy(numbers), torch.from_numpy(batch.silent)
        places = torch.from_numpy(batch.position)[:, None] + torch.arange(ids.shape[1] - 1)
        loss = cross_entropy(self._logits(step, ids[:, :-1], places).flatten(0, 1), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.exposure += np.stack(batch.exposures(self.recipe.vocabulary))
        self.step = step + 1
        self.recent.append(loss.item())
        interval = 10 if self.step <= 100 else 25 if self.step <= 2500 else 100
        if self.step % interval == 0 or self.step == self.recipe.steps:
            point = {"step": self.step, "train_loss": float(np.mean(self.recent))}
            self.curve.append(point | self.examiner.examine(self.model))
            self.recent = []

    def _logits(self, step: int, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        recipe = self.recipe
        if recipe.lexinvariant:
            count = recipe.phase(step).rows or recipe.vocabulary
            rows = training_rows(recipe.seed, step, len(ids), count, recipe.d_model)
            return logits_by_rows(self.model, ids, places, rows)
        logits: torch.Tensor = self.model(input_ids=ids, position_ids=places, use_cache=False).logits
        return logits

    def _untie(self) -> None:
        """From here on the output embeddings are separate parameters, with the optimiser state copied."""
        shared = self.model.get_input_embeddings().weight
        own = torch.nn.Parameter(shared.detach().clone())
        self.model.get_output_embeddings().weight = own
        self.optimizer.param_groups[0]["params"].append(own)
        if shared in self.optimizer.state:
            self.optimizer.state[own] = {key: value.clone() for key, value in self.optimizer.state[shared].items()}

    def store(self, path: Path) -> None:
        """Write all state; the old checkpoint stays until the new one is complete."""
        state = {
            "recipe": asdict(self.recipe),
            "text": self.text_hash,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "exposure": _as_tensors(self.exposure),
            "curve": _as_tensors(self.curve),
            "recent": self.recent,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Resume from a checkpoint, if there is one."""
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise InterpError(f"{path} is damaged ({error}): delete it to train from the start") from error
        if (state["recipe"], state["text"]) != (asdict(self.recipe), self.text_hash):
            raise InterpError(f"{path} belongs to another recipe or text: give another --out, or delete it")
        if state["step"] > self.recipe.untied_from > 0:
            self._untie()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.exposure = state["step"], _as_arrays(state["exposure"])
        self.curve, self.recent = _as_arrays(state["curve"]), state["recent"]


def _as_tensors(value: Any) -> Any:
    """The same with tensors for arrays, at any depth: a checkpoint is read without unpickling objects."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {key: _as_tensors(one) for key, one in value.items()}
    return [_as_tensors(one) for one in value] if isinstance(value, list) else value


def _as_arrays(value: Any) -> Any:
    """The inverse of `_as_tensors`."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: _as_arrays(one) for key, one in value.items()}
    return [_as_arrays(one) for one in value] if isinstance(value, list) else value


def _kept_folder(out: Path, step: int) -> Path:
    return out / f"step{step}"


def _keep(
    out: Path, text: Corpus, tokenizer: Tokenizer, batches: Batches, run: Training, keep_at: Collection[int]
) -> None:
    """Keep the model in its current state, if that is asked for at this step."""
    place = _kept_folder(out, run.step)
    if run.step in keep_at and not place.is_dir():
        temporary = place.with_name(f".{place.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed training
        model = run.examiner.copy_of(run.model)
        write_checkpoint(writable(temporary), text, tokenizer, batches, model, run.exposure, run.step)
        temporary.rename(place)


class Examiner:
    """Measures a model during training: held-out loss, both halves, attention scores per head."""

    def __init__(self, recipe: Recipe, batches: Batches):
        # never in a batch: absent from the seen text, and not a canary with a dose
        dosed = [c for dose, canaries in batches.doses.items() if dose > 0 for c in canaries]
        known = batches.counts if batches.before is None else batches.counts + np.array(batches.before.total)
        never = np.setdiff1d(np.flatnonzero(known == 0), dosed)
        length = min(25, recipe.context // 2 - 1)
        self.sequences = {
            name: repeated(Pool(name, tuple(ids.tolist())), batch=16, length=length, bos=batches.bos, seed=_CURVE_SEED)
            for name, ids in (("ordinary", batches.ordinary), ("unexposed", never))
        }
        width = min(256, recipe.context)
        rows = min(16, len(batches.heldout) // width)
        windows = batches.heldout[: rows * width].reshape(rows, width)
        self.heldout = torch.from_numpy(np.insert(windows[:, :-1], 0, batches.bos, axis=1))
        with torch.random.fork_rng():
            self.model = fresh_model(recipe, batches.bos).eval()  # a copy in which attention can be read
        self.model.set_attn_implementation("eager")

    def copy_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """The same weights in eval mode, in a model whose attention can be read."""
        self.model.load_state_dict(model.state_dict())
        return self.model

    @torch.no_grad()
    def examine(self, model: torch.nn.Module) -> dict[str, Any]:
        """One row of the training curve."""
        self.copy_of(model)
        logits = self.model(input_ids=self.heldout, use_cache=False).logits
        loss = -float(log_probs(logits, self.heldout).nanmean())
        return {"heldout_loss": loss} | {name: copying(self.model, tokens) for name, tokens in self.sequences.items()}


def grown(weights: Mapping[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Weights of a GPT-2 with additional layers, copies of its last one (stacking, Gong et al. 2019).

    Args:
        weights: by name.
        layers: the new number of layers.
    """
    last = max(int(name.split(".")[2]) for name in weights if name.startswith("transformer.h."))
    found = dict(weights)
    for name, value in weights.items():
        if name.startswith(f"transformer.h.{last}."):
            rest = name.split(".", 3)[3]
            found |= {f"transformer.h.{layer}.{rest}": value.clone() for layer in range(last + 1, layers)}
    return found


def _known_tokenizer(name: str) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of a bundled model and its canaries."""
    known = exposure(name)
    if known is None:
        raise InterpError(f"no exposure counts of '{name}': grow a bundled model that was trained")
    return Tokenizer.from_file(str(folder(name) / "tokenizer.json")), sorted(known.canaries)


def drop_layers(model: Any, recipe: Recipe, silent: Callable[[], torch.Tensor]) -> None:
    """From here on the attention heads of a layer write nothing in the sequences that drop it; biases stay.

    Args:
        model: a Hugging Face model of that recipe.
        recipe: the model's recipe.
        silent: gives, at each pass, the layer that each sequence drops [sequence]; -1 for none.
    """

    def without(layer: int, projection: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return ((silent() != layer)[:, None, None] * inputs[0],)

    projections = (
        [block.attn.c_proj for block in model.transformer.h]
        if recipe.architecture == "gpt2"
        else [layer.self_attn.o_proj for layer in model.model.layers]
    )
    for layer, projection in enumerate(projections):
        projection.register_forward_pre_hook(partial(without, layer))
