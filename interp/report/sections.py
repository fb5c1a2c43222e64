"""What does a report ask of a model? Its sections: one per experiment that declares one, and one for each that a reader
adds.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from operator import attrgetter
from typing import Any

from interp import catalog
from interp.errors import InterpError
from interp.exhibits import ReportSection
from interp.request import ModelRequest, Request

_TAKEN_IDS = {"methods", "tokens", "token", "data", "search", "count"}  # ids of the page itself


def sections() -> list[ReportSection]:
    """The sections of every report, in order: those that the experiments' views define as `SECTION`."""
    return _declared("SECTION")


def sections_on_prompts(
    prompts: Sequence[str], *, metric: str = "log_prob", answer_tokens: str = "one"
) -> list[ReportSection]:
    """The sections of a report on prompts: those that the views define as `PROMPTS_SECTION`.

    Args:
        prompts: sets, as in a request.
        metric: the metric, for experiments that offer a choice.
        answer_tokens: as in `interp.run`.
    """
    found = []
    for section in _declared("PROMPTS_SECTION"):
        request = section.request
        known = catalog.parameters(catalog.find(request.experiment))
        parameters = {**request.parameters, **({"metric": metric} if "metric" in known else {})}
        update = {"prompts": tuple(prompts), "answer_tokens": answer_tokens, "parameters": parameters}
        found.append(replace(section, request=request.model_copy(update=update)))
    return found


def _declared(name: str) -> list[ReportSection]:
    """The sections that views define under a name, in order."""
    names = (name for name in catalog.names() if (catalog.FOLDER / name / "view.py").is_file())
    views = [importlib.import_module(f"interp.experiments.{name}.view") for name in names]
    found = [getattr(view, name) for view in views if hasattr(view, name)]
    return sorted(found, key=attrgetter("order", "name"))


def added_section(added: str | Callable[..., Any] | Request) -> ReportSection:
    """A section for any experiment, with all figures of its result.

    Args:
        added: a function, a request, or a text as after `interp run`: `"my_file.py:my_experiment --batch 8"`.

    Returns:
        A section named after the function, which opens with the first paragraph of its docstring.

    Raises:
        InterpError: there is no such experiment or option, or a model is named, which the report chooses.
    """
    if isinstance(added, str):
        try:
            words = shlex.split(added)
        except ValueError as error:
            raise InterpError(f"'{added}': close the quotation mark") from error
        added = Request.from_argv(["run", *words])
    if isinstance(added, Request):
        request, given, function = added, None, catalog.find(added.experiment)
    else:
        request, given, function = Request(experiment=_written(added)), added, added
    if request.model != ModelRequest():
        raise InterpError(f"{request.experiment}: a report is about one model, so leave the model's options out")
    name = str(getattr(function, "__name__", "experiment"))
    opening = (inspect.getdoc(function) or "").split("\n\n")[0]
    return ReportSection(name, name.replace("_", " ").capitalize(), opening, request, function=given)


def _written(function: Callable[..., Any]) -> str:
    """A function as named on the command line: file.py:function, with FILE.py if it is in no file."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    return f"{getattr(module, '__file__', None) or 'FILE.py'}:{getattr(function, '__name__', 'experiment')}"


def on_model(section: ReportSection, origin: Mapping[str, Any], seed: int, **changed: Any) -> ReportSection:
    """The section for the model that `interp.origin` describes as `about`, its request `changed`; a seed of its own is
    kept.
    """
    fields = [name for name in ModelRequest.model_fields if name != "name"]
    loaded = {name: origin[name] for name in fields if origin.get(name) is not None}
    changed["model"] = ModelRequest(name=str(origin["name"]), **loaded)
    if section.request.seed is None and seed:
        changed["seed"] = seed
    return replace(section, request=section.request.model_copy(update=changed))


def with_unique_names(chosen: Sequence[ReportSection]) -> list[ReportSection]:
    """The same sections, with repeated names numbered: a name is a folder and an id on the page, which has ids of its
    own.
    """
    found: dict[str, ReportSection] = {}
    for section in chosen:
        names = chain([section.name], (f"{section.name}-{i}" for i in count(2)))
        name = next(name for name in names if name not in found and name not in _TAKEN_IDS)
        found[name] = replace(section, name=name)
    return list(found.values())
