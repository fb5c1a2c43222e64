"""interp: why does a language model that copies any ordinary token fail on its glitch tokens?

The public names. Importing this is cheap: torch is imported when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.models import load, origin
from interp.organisms import exposure, training_curve
from interp.pools import pools
from interp.results import label, provenance
from interp.run import run
from interp.tokens import Pool, Repeated, repeated

if TYPE_CHECKING:
    from interp import undertrained, vocabulary
    from interp.argmax import argmaxable
    from interp.experiments.attention_stripes import attention_stripes
    from interp.experiments.repeated_tokens import repeated_tokens
    from interp.vocabulary import census

__all__ = [
    "InterpError", "Pool", "Repeated", "argmaxable", "attention_stripes", "census", "exposure", "label", "load", "origin", "pools",
    "provenance", "repeated", "repeated_tokens", "run", "training_curve", "undertrained", "vocabulary",
]  # fmt: skip

try:
    __version__ = version("interp")
except PackageNotFoundError:
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in ("attention_stripes", "repeated_tokens"):  # experiments import torch, so they wait until asked for
        return getattr(import_module(f"interp.experiments.{name}"), name)
    if name in ("undertrained", "vocabulary"):
        return import_module(f"interp.{name}")
    if name == "argmaxable":
        return import_module("interp.argmax").argmaxable
    if name == "census":
        return import_module("interp.vocabulary").census
    raise AttributeError(f"interp has no '{name}': it has {', '.join(__all__)}")
