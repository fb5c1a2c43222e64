"""interp: why does a language model that copies any ordinary token fail on its glitch tokens?

The public names. Importing this is cheap: torch is imported when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.errors import InterpError as InterpError
    from interp.experiments.attention_stripes import attention_stripes as attention_stripes
    from interp.experiments.repeated_tokens import repeated_tokens as repeated_tokens
    from interp.models import load as load, origin as origin
    from interp.organisms import exposure as exposure, training_curve as training_curve
    from interp.pools import pools as pools
    from interp.results import label as label, provenance as provenance
    from interp.run import run as run
    from interp.tokens import Pool as Pool, Repeated as Repeated, repeated as repeated

_HOME = {
    "InterpError": "errors",
    "Pool": "tokens",
    "Repeated": "tokens",
    "attention_stripes": "experiments.attention_stripes",
    "exposure": "organisms",
    "label": "results",
    "load": "models",
    "origin": "models",
    "pools": "pools",
    "provenance": "results",
    "repeated": "tokens",
    "repeated_tokens": "experiments.repeated_tokens",
    "run": "run",
    "training_curve": "organisms",
}

try:
    __version__ = version("interp")
except PackageNotFoundError:
    __version__ = "unknown"

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # `interp.run`, `interp.pools` and the like are functions here, also once a module of that name is imported
    if name in _HOME:
        found = getattr(import_module(f"interp.{_HOME[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"interp has no '{name}': it has {', '.join(sorted(_HOME))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
