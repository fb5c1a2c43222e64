"""Which models are bundled, and what is known of each: exposure counts, canaries, training curve."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.organisms.curve import training_curve
    from interp.organisms.demonstrations import train_demonstrations
    from interp.organisms.training import train_again
    from interp.organisms.wired import wired_model

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curve": ["training_curve"],
        "demonstrations": ["train_demonstrations"],
        "training": ["train_again"],
        "wired": ["wired_model"],
    },
)
__all__ = [
    "BUNDLED",
    "DEMONSTRATIONS",
    "EXPOSURE_FILE",
    "ORDINARY_FROM",
    "ORGANISMS",
    "TASKS_FILE",
    "UNDERTRAINED_TO",
    "WIRED",
    "Exposure",
    "description",
    "exposure",
    "folder",
    "train_again",
    "train_demonstrations",
    "training_curve",
    "wired_model",
]

ORGANISMS = ("organism", "organism-untied", "organism-llama", "organism-deep")
# trained on demonstrations of which 30%, 5% and none have false labels
DEMONSTRATIONS = ("demonstrations", "demonstrations-5", "demonstrations-0")
BUNDLED = (*ORGANISMS, *DEMONSTRATIONS)  # those that lie in a folder of their own
WIRED = "wired"
TASKS_FILE = "tasks.json"
EXPOSURE_FILE = "exposure.json"
ORDINARY_FROM = 200  # exposures from which a token counts as ordinary
UNDERTRAINED_TO = 10  # exposures up to which it counts as under-trained


def folder(name: str | Path) -> Path:
    """The Hugging Face directory of a bundled model, or the directory of that path."""
    return Path(__file__).parent / name if str(name) in BUNDLED else Path(name).expanduser()


def description(name: str) -> str:
    """One line about a bundled model."""
    config = json.loads((folder(name) / "config.json").read_text(encoding="utf-8"))
    if name in DEMONSTRATIONS:
        share = json.loads((folder(name) / "training.json").read_text(encoding="utf-8"))["recipe"]["share"]
        return f"GPT-2 architecture, {config['n_layer']} layers; of its demonstrations, {share:.0%} had false labels"
    kind = {"gpt2": "GPT-2", "llama": "Llama"}[config["model_type"]]
    layers = config.get("n_layer") or config["num_hidden_layers"]
    tied = "tied" if config["tie_word_embeddings"] else "untied"
    size = f"{layers} layers, vocabulary {config['vocab_size']}"
    return f"{kind} architecture, {size}, {tied}; exposure of every token known"


@dataclass(frozen=True)
class Exposure:
    """How often a model was trained to predict each token id: `text[id]` and `blocks[id]`, both exact.

    `doses` gives the canaries planted at each dose. A dose is the canary's exposure count.
    """

    text: tuple[int, ...]
    blocks: tuple[int, ...]
    doses: dict[int, tuple[int, ...]]
    special: tuple[int, ...]

    @cached_property
    def total(self) -> tuple[int, ...]:
        """Exposures in text and in blocks together, by token id."""
        return tuple(a + b for a, b in zip(self.text, self.blocks, strict=True))

    @cached_property
    def canaries(self) -> frozenset[int]:
        """The ids of all canaries."""
        return frozenset(i for ids in self.doses.values() for i in ids)

    def between(self, low: int, high: int | None = None, *, canaries: bool = False) -> tuple[int, ...]:
        """Ids exposed from `low` to `high` times, special tokens left out, and canaries unless asked for."""
        out = set(self.special) | (set() if canaries else self.canaries)
        return tuple(i for i, n in enumerate(self.total) if i not in out and n >= low and (high is None or n <= high))


def exposure(model: str | Path) -> Exposure | None:
    """The exposure counts that ship with a bundled model or a trained directory; None where there are none.

    Raises `InterpError` where the file is damaged.
    """
    path = folder(model) / EXPOSURE_FILE
    if str(model) == WIRED or not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        doses = {int(dose): tuple(ids) for dose, ids in data["canaries"].items()}
        return Exposure(tuple(data["text"]), tuple(data["blocks"]), doses, tuple(data["special"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InterpError(f"{path} is damaged ({error}): restore it, or train the model again") from error
