"""interp: why does a language model that copies any ordinary token fail on its glitch tokens?

The public names. Importing this is cheap: each is loaded when it is first asked for, and torch with a model.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import lazy_loader

if TYPE_CHECKING:
    from interp import undertrained, vocabulary
    from interp.argmax import argmaxability
    from interp.blocks import repeated
    from interp.errors import InterpError
    from interp.experiments.attention_scores.experiment import attention_scores
    from interp.experiments.repeated_tokens.experiment import repeated_tokens
    from interp.models import load, origin
    from interp.organisms import exposure, training_curve
    from interp.pool_names import pools
    from interp.request import Request
    from interp.results import label, provenance
    from interp.runner import run, run_request
    from interp.tokens import Answered, Paired, Pool, Prompts, Repeated, Sequences
    from interp.views import show
    from interp.vocabulary import census

_lazy, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["undertrained", "vocabulary"],
    submod_attrs={
        "argmax": ["argmaxability"],
        "blocks": ["repeated"],
        "errors": ["InterpError"],
        "experiments.attention_scores.experiment": ["attention_scores"],
        "experiments.repeated_tokens.experiment": ["repeated_tokens"],
        "models": ["load", "origin"],
        "organisms": ["exposure", "training_curve"],
        "pool_names": ["pools"],
        "request": ["Request"],
        "results": ["label", "provenance"],
        "runner": ["run", "run_request"],
        "tokens": ["Answered", "Paired", "Pool", "Prompts", "Repeated", "Sequences"],
        "views": ["show"],
        "vocabulary": ["census"],
    },
)

_OLD_NAMES = {"argmaxable": "argmaxability", "attention_stripes": "attention_scores"}  # of 0.1, for one release


def __getattr__(name: str) -> Any:
    return _lazy(_OLD_NAMES.get(name, name))


try:
    __version__ = version("interp")
except PackageNotFoundError:
    __version__ = "unknown"
