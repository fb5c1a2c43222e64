"""What does a survey ask? A TOML file with models, experiments, pools and seeds; each combination is one `Request`."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp import catalog
from interp.budgets import Budget
from interp.errors import InterpError
from interp.models import split_revision
from interp.organisms import BUNDLED, HAND_WIRED
from interp.request import ModelRequest, Request, first_mistake
from interp.runner import check_signature

_WILD = re.compile(r"[*?\[]")


class SurveyedModel(ModelRequest):
    """A model, or all those that a pattern names, how they are loaded, and what a worker must have for them."""

    name: str = Field(
        description="A name, a folder, a GGUF file, NAME@REVISION, or a pattern of bundled names or paths."
    )
    resources: dict[str, float] = Field(default={}, description="In place of the survey's own.")


class Spec(BaseModel):
    """A survey: every model is asked every experiment, with every seed.

    An experiment is a text as behind `interp run`, or a table with its `name` and options. `pools` are those of
    experiments that take pools and name none of their own, `seeds` of those that name no seed. `resources` are what a
    worker must offer (`{"GPU": 1}`). Work that takes longer than `share_after` seconds on one worker, and has parts
    that do not depend on one another, is shared among all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str | SurveyedModel, ...] = Field(min_length=1)
    experiments: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    pools: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    budget: Budget = "auto"
    resources: dict[str, float] = {}
    share_after: float = Field(default=30.0, ge=0)

    def cells(self) -> list[Cell]:
        """Every combination once, models in the order of the file: a worker loads each as seldom as possible.

        Raises:
            InterpError: a pattern names no model, or there is no such experiment or option.
        """
        models = [one for given in self.models for one in _models(given)]
        asked = [_experiment(given) for given in self.experiments]
        found: dict[str, Cell] = {}
        for model in models:
            loaded = ModelRequest(**model.model_dump(exclude={"resources"}))
            for request in asked:
                for changed in self._changes(request):
                    cell = Cell(
                        request.model_copy(update={"model": loaded, **changed}), model.resources or self.resources
                    )
                    found.setdefault(cell.name, cell)
        return list(found.values())

    def _changes(self, request: Request) -> Iterator[dict[str, Any]]:
        """What the survey says of a request, once for each seed."""
        takes = {"tokens", "pools"} & set(inspect.signature(catalog.find(request.experiment)).parameters)
        changed: dict[str, Any] = {}
        if takes and self.pools and request.pools is None and request.prompts is None:
            changed["pools"] = self.pools
        if request.budget == "auto":
            changed["budget"] = self.budget
        if request.seed is not None or self.seeds is None:
            yield changed
            return
        for seed in self.seeds:
            yield changed | {"seed": seed}


@dataclass(frozen=True)
class Cell:
    """One request of a survey, and what a worker must offer to run it."""

    request: Request
    resources: dict[str, float]

    @property
    def name(self) -> str:
        """A name for its folder: model and experiment for a reader, and a digest of all that was asked."""
        model, revision = self.request.model.name, self.request.model.revision
        about = "@".join(filter(None, (Path(model).name or model, revision)))
        words = [re.sub(r"[^\w.@-]+", "-", text).strip(".-") for text in (about, Path(self.request.experiment).name)]
        asked = json.dumps(self.request.to_json(), sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:12]
        return "--".join([*(word[-60:].lstrip(".-") for word in words), digest])


def read_spec(path: str | Path) -> Spec:
    """The survey that a TOML file asks for.

    Args:
        path: of the file.

    Returns:
        The survey; whether its models exist is not looked at yet.

    Raises:
        InterpError: there is no such file, it is no TOML, or says something that no survey has.
    """
    try:
        return Spec.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InterpError(f"cannot read {path} ({error.strerror}): name a TOML file, see docs/survey.md") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InterpError(f"{path} is no TOML ({error}): see docs/survey.md") from error
    except ValidationError as error:
        said = first_mistake(error).replace(" in a request", "")
        raise InterpError(f"{path}: {said}; see docs/survey.md") from error


def _models(given: str | SurveyedModel) -> list[SurveyedModel]:
    """The models that an entry of the file names."""
    model = SurveyedModel(name=given) if isinstance(given, str) else given
    name, revision = split_revision(model.name)
    if revision is not None and model.revision is not None:
        raise InterpError(f"'{model.name}' has a revision twice: write NAME@REVISION, or revision = ...")
    names = _matching(name) if _WILD.search(name) and not Path(name).expanduser().exists() else [name]
    update = {} if revision is None else {"revision": revision}
    return [model.model_copy(update={"name": one, **update}) for one in names]


def _matching(pattern: str) -> list[str]:
    """Bundled names, model folders and GGUF files that a pattern names; numbers in names count as numbers."""
    bundled = [name for name in (*BUNDLED, *HAND_WIRED) if fnmatch.fnmatchcase(name, pattern)]
    paths = map(Path, glob.glob(str(Path(pattern).expanduser())))
    found = bundled or [str(path) for path in paths if path.suffix == ".gguf" or (path / "config.json").is_file()]
    if not found:
        raise InterpError(f"no model matches '{pattern}': it names neither a bundled one nor a folder with config.json")
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _experiment(given: str | dict[str, Any]) -> Request:
    """The request of an entry of the file, without a model."""
    if isinstance(given, str):
        try:
            request = Request.from_argv(["run", *shlex.split(given)])
        except ValueError as error:
            raise error if isinstance(error, InterpError) else InterpError(f"'{given}': {error}") from error
    else:
        options = dict(given)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise InterpError(f"an experiment without a name ({', '.join(given) or 'empty'}): write name = ...")
        request = Request.of(name, **options)
    if request.model != ModelRequest():
        raise InterpError(f"{request.experiment}: models stand in 'models': leave the model's options out")
    check_signature(catalog.find(request.experiment), request.parameters)
    return request
