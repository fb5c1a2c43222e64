"""Which experiment does a name refer to, and what are its parameters? It is one of this package, or a function in a
file.

Nothing is registered: any folder of `interp/experiments` whose `experiment.py` defines a function of the folder's name
is an experiment.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

from interp.arguments import takes_what_it_says
from interp.errors import InterpError

Experiment = Callable[..., xr.Dataset | xr.DataArray]


FOLDER = Path(__file__).parent / "experiments"
# names from the last release, kept for one more release
OLD_NAMES = {"attention_stripes": "attention_scores"}
OLD_VALUES: dict[tuple[str, str], dict[Any, Any]] = {("undertrained", "verify_tokens"): {"called": "detected"}}


@takes_what_it_says
def names() -> list[str]:
    """The names of all experiments in this package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/experiment.py"))


@takes_what_it_says
def question(name: str) -> str:
    """The question that an experiment of this package answers: the first line of its folder, else of its module.

    Raises:
        InterpError: there is no experiment of that name.
    """
    if name not in names():
        raise InterpError(f"unknown experiment '{name}': use {', '.join(names())}")
    for module in (f"interp.experiments.{name}", f"interp.experiments.{name}.experiment"):
        said = (inspect.getdoc(importlib.import_module(module)) or "").strip()
        if said:
            return said.splitlines()[0]
    return ""


@takes_what_it_says
def find(name: str) -> Experiment:
    """The experiment of that name, or `function` of `file.py:function`.

    Raises `InterpError` where there is none, or where the file cannot be run.
    """
    if ":" in name:
        return _from_file(name)
    if name.endswith(".py"):
        raise InterpError(f"{name} is a file: name the function in it as well, as {name}:my_experiment")
    name = OLD_NAMES.get(name, name)
    if name not in names():
        raise InterpError(f"unknown experiment '{name}': use {', '.join(names())}, or file.py:function")
    return getattr(importlib.import_module(f"interp.experiments.{name}.experiment"), name)


def _from_file(name: str) -> Experiment:
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InterpError(f"no file {path}: write file.py:function with an existing file")
    module = sys.modules.get(f"interp_file_{path.stem}")
    try:
        text = path.read_text(encoding="utf-8")
        # a file runs once, unless it is edited: what one run records of its functions then holds for the next
        if module is None or (module.__file__, vars(module).get("__interp_source__")) != (str(path), text):
            module = ModuleType(f"interp_file_{path.stem}")
            module.__file__ = str(path)
            sys.modules[module.__name__] = module  # dataclasses look up their module there
            # compiled here, not imported: no bytecode is left beside the user's file, nor taken from there when
            # stale
            exec(compile(text, str(path), "exec", dont_inherit=True), vars(module))  # noqa: S102
            vars(module)["__interp_source__"] = text  # the code that runs, even if the file is edited later
    except Exception as error:
        raise InterpError(f"{path} does not run ({type(error).__name__}: {error}): fix it first") from error
    found = getattr(module, function, None)
    if not callable(found):
        have = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise InterpError(f"{path} has no function '{function}': it has {', '.join(have) or 'none'}")
    return found


@takes_what_it_says
def with_values_of_today(experiment: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an experiment, with values from the last release brought up to date."""
    old = {name: OLD_VALUES.get((experiment, name), {}) for name in given}
    return {name: old[name].get(v, v) if isinstance(v, str) else v for name, v in given.items()}


@takes_what_it_says
def parameters(experiment: Experiment) -> dict[str, inspect.Parameter]:
    """An experiment's own parameters: its keyword-only arguments."""
    found: dict[str, Any] = dict(inspect.signature(experiment).parameters)
    return {name: p for name, p in found.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


@takes_what_it_says
def parameters_of_blocks(experiment: Experiment) -> tuple[str, ...]:
    """Parameters without effect on prompts: the experiment's module names them in `OF_BLOCKS`."""
    found = getattr(sys.modules.get(experiment.__module__), "OF_BLOCKS", ())
    return tuple(map(str, found)) if isinstance(found, tuple | list) else ()
