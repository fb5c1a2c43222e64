"""Which models are bundled, and what is known about each: exposure counts, canaries, training curve."""

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
    from interp.organisms.flip_flop_records import training_record, training_records
    from interp.organisms.flip_flop_training import collect_records, flip_flop_lstm, train_flip_flop
    from interp.organisms.training import train_again
    from interp.organisms.wired import wired_model
    from interp.organisms.wired_register import wired_flip_flop

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curve": ["training_curve"],
        "demonstrations": ["train_demonstrations"],
        "flip_flop_records": ["training_record", "training_records"],
        "flip_flop_training": ["collect_records", "flip_flop_lstm", "train_flip_flop"],
        "training": ["train_again"],
        "wired": ["wired_model"],
        "wired_register": ["wired_flip_flop"],
    },
)
__all__ = [
    "BUNDLED",
    "DEMONSTRATIONS",
    "EXPOSURE_FILE",
    "FLIP_FLOPS",
    "FLIP_FLOP_LSTM",
    "FLIP_FLOP_MODELS",
    "HAND_WIRED",
    "LEXINVARIANT",
    "ORDINARY_FROM",
    "ORGANISMS",
    "TASKS_FILE",
    "UNDERTRAINED_TO",
    "WIRED",
    "WIRED_FLIP_FLOP",
    "Exposure",
    "collect_records",
    "description",
    "exposure",
    "flip_flop_lstm",
    "folder",
    "hand_wired",
    "is_lexinvariant",
    "train_again",
    "train_demonstrations",
    "train_flip_flop",
    "training_curve",
    "training_record",
    "training_records",
    "wired_flip_flop",
    "wired_model",
]

ORGANISMS = ("organism", "organism-untied", "organism-llama", "organism-deep")
LEXINVARIANT = "organism-lexinvariant"  # the control: it has no trained token embeddings, so no token is under-trained
FLIP_FLOPS = ("flipflop", "flipflop-lstm", "flipflop-entropy", "flipflop-sparse", "flipflop-doses")
FLIP_FLOP_MODELS = ("flipflop", "flipflop-sparse", "flipflop-doses")  # the bundled transformers among these
FLIP_FLOP_LSTM = "flipflop-lstm"  # also bundled: the recurrent control, loaded only by `flip_flop_lstm`
# trained on demonstrations, 30%, 5% and none of which have false labels
DEMONSTRATIONS = ("demonstrations", "demonstrations-5", "demonstrations-0")
BUNDLED = (*ORGANISMS, LEXINVARIANT, *DEMONSTRATIONS, *FLIP_FLOP_MODELS)  # those with a folder of their own
WIRED = "wired"
WIRED_FLIP_FLOP = "wired-flipflop"
HAND_WIRED = (WIRED, WIRED_FLIP_FLOP)
TASKS_FILE = "tasks.json"
EXPOSURE_FILE = "exposure.json"
ORDINARY_FROM = 200  # exposures from which a token counts as ordinary
UNDERTRAINED_TO = 10  # exposures up to which it counts as under-trained


def folder(name: str | Path) -> Path:
    """The Hugging Face directory of a bundled model, or the directory of that path."""
    bundled = str(name) in (*BUNDLED, FLIP_FLOP_LSTM)
    return Path(__file__).parent / name if bundled else Path(name).expanduser()


def hand_wired(name: str) -> tuple[Any, Any]:
    """The Hugging Face model and the tokenizer of one of `HAND_WIRED`, by its name."""
    make = __getattr__("wired_model" if name == WIRED else "wired_flip_flop")  # torch is loaded when it is asked for
    return make()


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
    known = "of the flip-flop language" if name in FLIP_FLOP_MODELS else "exposure of every token known"
    if name == LEXINVARIANT:
        known = "embeddings drawn anew for every sequence of its training"
    return f"{kind} architecture, {size}, {tied}; {known}"


def is_lexinvariant(model: str | Path) -> bool:
    """Was a bundled model, or that of a directory, trained with embeddings drawn anew for every sequence?"""
    path = folder(model) / "training.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["recipe"]["lexinvariant"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
    """Return the exposure counts that ship with a bundled model or a trained directory.

    Args:
        model: the name of a bundled model, or the directory.

    Returns:
        How often each token was trained to be predicted, in text and in blocks, and the canaries planted at each dose;
        None where the counts are not known.

    Raises:
        InterpError: the file is damaged.

    Example:
        >>> sorted(interp.exposure("organism").doses)
        [0, 1, 3, 10, 30, 100, 300, 1000, 3000]
    """
    path = folder(model) / EXPOSURE_FILE
    if str(model) in HAND_WIRED or not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        doses = {int(dose): tuple(ids) for dose, ids in data["canaries"].items()}
        return Exposure(tuple(data["text"]), tuple(data["blocks"]), doses, tuple(data["special"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InterpError(f"{path} is damaged ({error}): restore it, or train the model again") from error
