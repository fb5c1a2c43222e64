"""How is a bundled model trained again, exactly?

`train(recipe, out)` goes from source text to a Hugging Face directory with its truth: exposure counts,
canaries and training curve. Killed at any time and started again, it goes on from the last checkpoint
and ends with the same bits (same machine, same versions); each batch is a pure function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from interp.errors import InterpError
from interp.files import replacing, writable
from interp.measure import correct, log_probs, ranks, stripes
from interp.organisms.batches import Batches
from interp.organisms.corpus import Corpus, corpus
from interp.organisms.export import write_organism
from interp.organisms.recipe import Recipe, fresh_model
from interp.organisms.vocabulary import train_tokenizer
from interp.progress import track
from interp.tokens import Pool, Repeated, check_seed, repeated

_CHECKPOINT = ".checkpoint.pt"
_CHECKPOINT_EVERY = 200
_CURVE_SEED = 77_000  # sequences of the curve and of the bars; training draws from another generator


def train(recipe: Recipe, out: str | Path, text: Corpus | None = None) -> Path:
    """Train `recipe` on `text` (default: the standard library) and write the model directory `out`.

    Raises `InterpError` where `out` holds the checkpoint of another recipe or another text.
    """
    check_seed(recipe.seed)
    out = writable(out)
    text = text or corpus()
    tokenizer, canaries = train_tokenizer(text.texts, recipe.vocabulary, recipe.n_canaries, recipe.seed)
    batches = Batches(recipe, text, tokenizer, canaries)
    with _threads(recipe.threads):
        run = Training(recipe, batches, text.sha256)
        run.restore(out / _CHECKPOINT)
        for step in track(range(run.step, recipe.steps), f"training {out.name}", done=run.step, total=recipe.steps):
            run.advance(step)
            if run.step % _CHECKPOINT_EVERY == 0:
                run.store(out / _CHECKPOINT)
        write_organism(out, text, tokenizer, batches, run.readable(), run.exposure, run.curve)
    (out / _CHECKPOINT).unlink(missing_ok=True)
    return out


class Training:
    """The state of one training run: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, batches: Batches, text_hash: str):
        self.recipe, self.batches, self.text_hash = recipe, batches, text_hash
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.model = fresh_model(recipe, batches.bos, tied=recipe.tied or recipe.untied_from > 0).train()
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
        self.step = 0
        self.exposure = np.zeros((2, recipe.vocabulary), int)  # in text, in blocks
        self.curve: list[dict[str, Any]] = []
        self.recent: list[float] = []  # training losses since the last point of the curve
        self._examiner = Examiner(recipe, batches)

    def advance(self, step: int) -> None:
        """One optimiser step, with its place on the curve."""
        if step == self.recipe.untied_from > 0:
            self._untie()
        batch = self.batches[step]
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.recipe, step)
        ids = torch.from_numpy(batch.ids)
        places = torch.from_numpy(batch.position)[:, None] + torch.arange(ids.shape[1] - 1)
        logits = self.model(input_ids=ids[:, :-1], position_ids=places, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.exposure += np.stack(batch.exposures(self.recipe.vocabulary))
        self.step = step + 1
        self.recent.append(loss.item())
        if self.step % _curve_interval(self.step) == 0 or self.step == self.recipe.steps:
            point = {"step": self.step, "train_loss": float(np.mean(self.recent))}
            self.curve.append(point | self._examiner.look(self.model))
            self.recent = []

    def _untie(self) -> None:
        """From here on the output embeddings are parameters of their own, with the optimiser's memory copied."""
        shared = self.model.get_input_embeddings().weight
        own = torch.nn.Parameter(shared.detach().clone())
        self.model.get_output_embeddings().weight = own
        self.optimizer.param_groups[0]["params"].append(own)
        if shared in self.optimizer.state:
            self.optimizer.state[own] = {key: value.clone() for key, value in self.optimizer.state[shared].items()}

    def readable(self) -> torch.nn.Module:
        """The model as it is now, in eval mode, with attention that can be read."""
        return self._examiner.copy_of(self.model)

    def store(self, path: Path) -> None:
        """Write all state; the old checkpoint stays until the new one is whole."""
        state = {
            "recipe": self.recipe.as_dict(), "text": self.text_hash, "step": self.step,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "exposure": self.exposure, "curve": self.curve, "recent": self.recent,
        }  # fmt: skip
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, where there is one."""
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=False)
        except Exception as error:
            raise InterpError(f"{path} is damaged ({error}): delete it to train from the start") from error
        if (state["recipe"], state["text"]) != (self.recipe.as_dict(), self.text_hash):
            raise InterpError(f"{path} belongs to another recipe or text: give another --out, or delete it")
        if state["step"] > self.recipe.untied_from > 0:
            self._untie()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.exposure = state["step"], state["exposure"]
        self.curve, self.recent = state["curve"], state["recent"]


class Examiner:
    """Measures a model during training: held-out loss, both halves, attention stripes per head."""

    def __init__(self, recipe: Recipe, batches: Batches):
        pools = {
            "ordinary": Pool("ordinary", tuple(batches.ordinary.tolist())),
            "unexposed": Pool("unexposed", tuple(np.flatnonzero(_never(batches)).tolist())),
        }
        draw: dict[str, Any] = {
            "batch": 16,
            "length": min(25, recipe.context // 2 - 1),
            "bos": batches.bos,
            "seed": _CURVE_SEED,
        }
        self.sequences: dict[str, Repeated] = {name: repeated(pool, **draw) for name, pool in pools.items()}
        width = min(256, recipe.context)
        rows = min(16, len(batches.heldout) // width)
        windows = batches.heldout[: rows * width].reshape(rows, width)
        self.heldout = torch.from_numpy(np.insert(windows[:, :-1], 0, batches.bos, axis=1))
        with torch.random.fork_rng():
            self.model = fresh_model(recipe, batches.bos).eval()  # a copy in which attention can be read
        self.model.set_attn_implementation("eager")

    def copy_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """The same weights in a model whose attention can be read."""
        self.model.load_state_dict(model.state_dict())
        return self.model

    @torch.no_grad()
    def look(self, model: torch.nn.Module) -> dict[str, Any]:
        """One row of the training curve."""
        self.copy_of(model)
        logits = self.model(input_ids=self.heldout, use_cache=False).logits
        row: dict[str, Any] = {"heldout_loss": -float(log_probs(logits, self.heldout).nanmean())}
        for name, tokens in self.sequences.items():
            output = self.model(input_ids=tokens.ids, use_cache=False, output_attentions=True)
            scores = log_probs(output.logits, tokens.ids)
            right = correct(ranks(output.logits, tokens.ids))
            queries = torch.from_numpy(tokens.inducible_queries)
            heads = [stripes(p, tokens.ids, queries, bos=True).mean(1) for p in output.attentions]
            row[name] = {
                "first": float(scores[:, tokens.half == 1].mean()),
                "second": float(scores[:, tokens.inducible].mean()),
                "accuracy": float(right[:, tokens.inducible].float().mean()),
                "stripes": torch.stack(heads).numpy(),  # [layer, stripe, head]
            }
        return row


def _never(batches: Batches) -> np.ndarray:
    """Token ids that no batch can hold: absent from the seen text and no canary with a dose."""
    dosed = {c for dose, canaries in batches.doses.items() if dose > 0 for c in canaries}
    absent = batches.counts == 0
    absent[list(dosed)] = False
    return absent


def _learning_rate(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _curve_interval(step: int) -> int:
    return 10 if step <= 100 else 25 if step <= 2500 else 100


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
