"""The experiments: one file each, holding one function of the same name.

An experiment takes a model and what it asks for by name: `tokens` (a `Repeated` per pool), `singles` (the
same with one token of the pool among ordinary ones), `pools` (all pools at once), or none of them, when
it is about the whole vocabulary; and `keep(name, make)`, which stores a finished part of a long run. Its keyword
arguments are its parameters, in Python and on the command line. It returns a labelled Dataset.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

from interp.errors import InterpError

Experiment = Callable[..., xr.Dataset | xr.DataArray]


def names() -> list[str]:
    """The names of all experiments in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> Experiment:
    """The experiment of that name, or `function` of `file.py:function`.

    Raises `InterpError` where there is none, or where the file cannot be run.
    """
    if ":" in name:
        return _from_file(name)
    if name.endswith(".py"):
        raise InterpError(f"{name} is a file: name the function in it, too, as {name}:my_experiment")
    if name not in names():
        raise InterpError(f"unknown experiment '{name}': use {', '.join(names())}, or file.py:function")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def _from_file(name: str) -> Experiment:
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InterpError(f"no file {path}: write file.py:function with an existing file")
    module = ModuleType(f"interp_file_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        # compiled here and not imported: no bytecode is left beside the user's file, nor taken from there when stale
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102
    except Exception as error:
        raise InterpError(f"{path} does not run ({type(error).__name__}: {error}): mend it first") from error
    found = getattr(module, function, None)
    if not callable(found):
        have = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise InterpError(f"{path} has no function '{function}': it has {', '.join(have) or 'none'}")
    return found


def parameters(experiment: Experiment) -> dict[str, inspect.Parameter]:
    """An experiment's own parameters: its keyword-only arguments."""
    found: dict[str, Any] = dict(inspect.signature(experiment).parameters)
    return {name: p for name, p in found.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
