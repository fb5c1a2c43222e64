"""What was asked? One experiment on one model, with its pools, drawing of sequences, parameters and seed.

A `Request` is shared by the command line, sections of a report, entries of the gallery, published runs and the
provenance of a result. It converts to a command line and to JSON and back without loss.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from interp import catalog
from interp.budgets import Budget
from interp.errors import InterpError

ASKED_BY_NAME = ("tokens", "singles", "pools", "draw", "keep")  # what an experiment may take after the model


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelRequest(_Frozen):
    """Which model, and how it is loaded; the arguments of `interp.load`."""

    name: str = Field(
        default="organism", description="A bundled name, a hub name, a Hugging Face directory, or a GGUF file."
    )
    weights: Literal["raw", "folded"] = Field(default="raw", description="raw, or folded (LayerNorm folded in).")
    revision: str | None = Field(default=None, description="A revision of a hub model.")
    checkpoint: int | None = Field(default=None, description="A training step of a hub model with checkpoints.")
    device: str | None = Field(
        default=None, description="cpu, cuda or mps (default: INTERP_DEVICE, else cuda if there is one)."
    )
    dtype: str = Field(default="float32", description="float32, bfloat16, ...")
    device_map: str | dict[str, str | int] | None = Field(
        default=None,
        description="Spread layers over devices, as accelerate does: auto, or JSON; not with --device.",
    )
    allow_pickle: bool = Field(
        default=False, description="Read pickled weights where there are no safetensors; a pickle may execute code."
    )
    trust_remote_code: bool = Field(default=False, description="Run the Python files that ship with the model.")

    @field_validator("device_map", mode="before")
    @classmethod
    def _places(cls, value: Any) -> Any:
        """JSON as text, from a command line."""
        return _literal(value) if isinstance(value, str) and value.startswith("{") else value


class Drawing(_Frozen):
    """How sequences are drawn from a pool. None means the protocol's value."""

    batch: int | None = Field(default=None, description="Sequences per pool (default: 64).")
    length: int | None = Field(default=None, description="Tokens in a block (default: 25, or all of a smaller pool).")
    copies: int | None = Field(default=None, description="How many times the block occurs (default: 2).")
    mixed: bool = Field(default=False, description="One token of the pool among ordinary ones.")
    among: str | None = Field(default=None, description="The pool of ordinary tokens.")
    replacement: bool | None = Field(default=None, description="Draw a block with or without replacement.")
    bos: int | str = Field(
        default="auto",
        description="What comes first: auto (the tokenizer's BOS, if any; another token where ordinary ones are copied "
        "significantly better after it), best (after which they are copied best), none, required (BOS), an id, or a "
        "token's text.",
    )
    protocol: Literal["default", "article"] = Field(
        default="default", description="default, or article (seed 42, one block of 25, drawn by randint)."
    )

    @field_validator("bos", mode="before")
    @classmethod
    def _bos(cls, value: Any) -> Any:
        """Accept True and False as in earlier releases, and an id as text from a command line."""
        if isinstance(value, bool):
            return "required" if value else "none"
        return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) else value


# the defaults of each protocol
_PROTOCOLS: dict[str, dict[str, Any]] = {
    "default": {"seed": 0, "batch": 64, "length": 25, "copies": 2, "mixed": False, "replacement": None},
    "article": {"seed": 42, "batch": 1, "length": 25, "copies": 2, "mixed": False, "replacement": True},
}


class Request(_Frozen):
    """Describe one run completely; it converts to a command line and to JSON, and back, without loss.

    Attributes:
        experiment: a name, or `file.py:function`.
        model: which model, and how it is loaded.
        pools: as for `interp.pools`; None: the model's default pools.
        prompts: sequences in place of pools, as for `interp.prompts.sets`.
        answer_tokens: whether answers of several tokens are refused ("one") or read token by token ("each").
        drawing: how sequences are drawn.
        parameters: the experiment's own.
        seed: None: the protocol's.
        budget: how much work.

    Example:
        >>> request = interp.Request.of("logit_lens", model="gpt2", batch=8)
        >>> request.to_argv(), interp.Request.from_json(request.to_json()) == request
        (['run', 'logit_lens', '--model', 'gpt2', '--batch', '8'], True)
    """

    experiment: str
    model: ModelRequest = ModelRequest()
    pools: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = Field(
        default=None,
        description="Your own sequences instead of pools: a JSON-lines file, text:FILE, "
        "blocks:POOL:32, ioi:32, greater_than:32. Repeatable.",
    )
    answer_tokens: Literal["one", "each"] = Field(
        default="one", description="Answers of several tokens: one rejects them, each reads them token by token."
    )
    drawing: Drawing = Drawing()
    parameters: dict[str, JsonValue] = {}
    seed: int | None = Field(default=None, description="Seed for every random draw (default: 0).")
    budget: Budget = Field(
        default="auto",
        description="Amount of work: quick, standard or thorough; fewer or more sequences and draws, with the same "
        "definitions (auto: quick on a CPU above 50 million parameters, else standard).",
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """NumPy's numbers, tuples and paths as JSON has them."""
        return {name: plain(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value

    @classmethod
    def of(
        cls,
        experiment: str,
        *,
        pools: str | Sequence[str] | None = None,
        prompts: str | Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Request:
        """A request of options in one row, as a command has them: `Request.of("logit_lens", model="gpt2", batch=8)`.

        Args:
            experiment: a name, or `file.py:function`.
            pools: one, several, or None.
            prompts: one set, several, or None.
            parameters: the experiment's own, where these are known to be that; others may stand among `options`.
            **options: fields of `Request`, `Drawing` and `ModelRequest` (its `name` is called `model`); others are
                parameters of the experiment.

        Returns:
            The request, with the names of earlier releases brought up to date.

        Raises:
            InterpError: a value is of the wrong kind.
        """
        of_model = {"model": "name"} | {name: name for name in ModelRequest.model_fields if name != "name"}
        groups: dict[str, Any] = {"model": {}, "drawing": {}, "parameters": dict(parameters or {})}
        whole = {name: options.pop(name) for name in ("seed", "budget", "answer_tokens") if name in options}
        for name, value in options.items():
            if name in of_model:
                groups["model"][of_model[name]] = value
            else:
                groups["drawing" if name in Drawing.model_fields else "parameters"][name] = value
        experiment = catalog.OLD_NAMES.get(experiment, experiment)
        groups["parameters"] = catalog.with_values_of_today(experiment, groups["parameters"])
        named, given = (
            (specs,) if isinstance(specs, str) else None if specs is None else tuple(specs)
            for specs in (pools, prompts)
        )
        try:
            return cls(experiment=experiment, pools=named, prompts=given, **whole, **groups)
        except ValidationError as error:
            raise InterpError(first_mistake(error)) from error

    def in_force(self, budget: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Seed and drawing as they are in force, those of the protocol where nothing else is asked.

        Args:
            budget: what a budget has in place of the default protocol's values.

        Raises:
            InterpError: the protocol fixes what is asked otherwise.
        """
        fixed = _PROTOCOLS[self.drawing.protocol]
        asked = {"seed": self.seed, **self.drawing.model_dump(exclude={"protocol"})}
        given = {name: value for name, value in asked.items() if name in fixed and value is not None}
        if self.drawing.protocol != "default":
            odd = next((name for name, value in given.items() if value != fixed[name]), None)
            if odd is not None:
                raise InterpError(
                    f"the protocol '{self.drawing.protocol}' has {odd} {fixed[odd]}, and {given[odd]} was asked: "
                    "leave one of them out"
                )
        else:
            fixed = fixed | {name: value for name, value in budget.items() if name in fixed}
        return asked | fixed | given

    def on(self, model: str) -> Request:
        """The same of another model."""
        return self.model_copy(update={"model": self.model.model_copy(update={"name": model})})

    # --- JSON, and back ---

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what is as it is by default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> Request:
        """The request that `to_json` wrote, as a mapping or as text. Raises `InterpError` for anything else."""
        try:
            return cls.model_validate_json(value) if isinstance(value, str) else cls.model_validate(value)
        except ValidationError as error:
            raise InterpError(first_mistake(error)) from error

    # --- a command line, and back ---

    def to_argv(self) -> list[str]:
        """The words behind `interp` that ask for the same."""
        words = ["run", self.experiment]
        if self.model.name != "organism":
            words += ["--model", self.model.name]
        for pool in self.pools or ():
            words += ["--pool", pool]
        for prompts in self.prompts or ():
            words += [f"--prompts={prompts}"] if prompts.startswith("-") else ["--prompts", prompts]
        if self.answer_tokens != "one":
            words += ["--answer-tokens", self.answer_tokens]
        for group, skipped in ((self.model, {"name"}), (self.drawing, set())):
            for name, value in group.model_dump(exclude_defaults=True, exclude=skipped).items():
                words += _as_option(name, value, bool if isinstance(value, bool) else str)
        if self.seed is not None:
            words += ["--seed", str(self.seed)]
        if self.budget != "auto":
            words += ["--budget", self.budget]
        try:
            known = {option.name: option for option in own_options(catalog.find(self.experiment))}
        except InterpError:  # the file no longer exists
            known = {}
        for name, value in self.parameters.items():
            option = known.get(name)
            several = option is not None and option.many and isinstance(value, list)
            for one in value if several else [value]:  # type: ignore[union-attr]
                words += _as_option(name, one, None if option is None else option.kind)
        return words

    def command(self) -> str:
        """What a reader types to ask for the same."""
        return shlex.join(["interp", *self.to_argv()])

    @classmethod
    def from_argv(cls, words: Sequence[str]) -> Request:
        """The request that a command line asks for.

        Args:
            words: what follows `interp`: `run` and its arguments, or another verb that stands for an experiment, with
                its own.

        Raises:
            InterpError: an option is unknown, or its value is of the wrong kind.
        """
        rest = list(words)
        if not rest:
            raise InterpError("no command: write run EXPERIMENT")
        if rest[0] == "run":
            rest.pop(0)
        experiment = next((word for word in positional(rest)), None)
        if experiment is None:
            raise InterpError("no experiment: write run EXPERIMENT, with a name from 'interp experiments'")
        rest.remove(experiment)
        known = {option.name: option for option in (*SHARED, *own_options(catalog.find(experiment)))}
        # --text FILE is short for --prompts text:FILE, unless the experiment has an option of that name
        known = {"text": TEXT} | known
        pools: list[str] = []
        prompts: list[str] = []
        shared: dict[str, Any] = {}
        own: dict[str, Any] = {}
        while rest:
            option, value = _next(rest, known, experiment)
            if option.name == "pool":
                pools.append(value)
            elif option.name == "prompts":
                prompts.append(value)
            elif option is TEXT:
                prompts.append(f"text:{value}")
            elif option.many:
                own.setdefault(option.name, []).append(value)
                while rest and not rest[0].startswith("--"):
                    own[option.name].append(option.read(rest.pop(0)))
            else:
                (own if option.own else shared)[option.name] = value
        return cls.of(experiment, pools=pools or None, prompts=prompts or None, parameters=own, **shared)


def positional(words: Sequence[str]) -> typing.Iterator[str]:
    """The words that are neither options nor their values, as far as the shared options show."""
    flags = {option.flag for option in SHARED if option.kind is bool} | {"--fresh", "--csv"}
    i = 0
    while i < len(words):
        if words[i].startswith("--"):
            i += 1 if "=" in words[i] or words[i] in flags or words[i].startswith("--no-") else 2
        else:
            yield words[i]
            i += 1


def _next(rest: list[str], known: Mapping[str, Option], experiment: str) -> tuple[Option, Any]:
    """Remove the next option and its value from the words."""
    flag, glued, value = rest.pop(0).partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    off = name.removeprefix("no_") if name not in known else name
    option = known.get(name) or known.get(off)
    if not flag.startswith("--") or option is None:
        own = ", ".join(o.flag for o in known.values() if o.own) or "no options of its own"
        close = get_close_matches(name, known, 1)
        remedy = f"did you mean {known[close[0]].flag}?" if close else f"{experiment} has {own};"
        raise InterpError(f"unknown option '{flag}': {remedy} see 'interp run {experiment} --help'")
    if name != option.name:
        return option, False
    if not glued:
        if option.name == "bos" and (not rest or rest[0].startswith("--")):  # a switch in the last release
            return option, True
        if option.kind is bool and (not rest or rest[0] not in ("true", "false", "True", "False")):
            return option, True
        if not rest:
            raise InterpError(f"{flag} needs a value")
        value = rest.pop(0)
    return option, option.read(value)


def _as_option(name: str, value: Any, kind: type | None) -> list[str]:
    """The words for an option of a type; a text that would be parsed as something else is quoted."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool) and kind is bool:
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, str):
        text = value if kind is str or _literal(value) == value else json.dumps(value)
        return [f"{flag}={text}"] if text.startswith("-") else [flag, text]  # otherwise it would be parsed as an option
    return [flag, json.dumps(value)]


def _literal(text: str) -> Any:
    """A text parsed as JSON or as a Python literal, or else itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError):
            continue
    return {"True": True, "False": False, "None": None}.get(text.capitalize(), text)


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option of a command: its name, type and help."""

    name: str
    kind: type | None  # None: a Python literal, or else text
    default: Any
    choices: tuple[str, ...] = ()
    help: str = ""
    own: bool = False  # the experiment's own, not shared
    required: bool = False
    many: bool = False  # may be repeated, or take several values
    old_values: tuple[str, ...] = ()  # from the last release

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def read(self, text: str) -> Any:
        """The value of a text on the command line. Raises `InterpError` if it has the wrong type."""
        if self.choices and text not in self.choices and text not in self.old_values:
            raise InterpError(f"{self.flag} '{text}': use {', '.join(self.choices)}")
        if self.kind is str:
            return text
        value = _literal(text)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.kind is not None and type(value) is not self.kind and not (value is None and self.default is None):
            raise InterpError(f"{self.flag} takes {_article(self.kind)}, and '{text}' is not one")
        return value


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"a {kind.__name__}")


def _shared() -> list[Option]:
    """The options shared by all experiments, from the fields of a request."""
    found = [Option("model", str, "organism", help=str(ModelRequest.model_fields["name"].description))]
    found.append(Option("pool", str, None, help="Tokens to draw from, e.g. unexposed, 177:188. Repeatable."))
    found.append(Option("prompts", str, None, help=str(Request.model_fields["prompts"].description)))
    tokens = Request.model_fields["answer_tokens"]
    found.append(
        Option("answer_tokens", str, tokens.default, typing.get_args(tokens.annotation), str(tokens.description))
    )
    for group in (Drawing, ModelRequest):
        for name, field in group.model_fields.items():
            if name == "name":
                continue
            kinds = [k for k in typing.get_args(field.annotation) if k in (int, bool, str)] or [field.annotation]
            choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
            kind = str if choices or name == "bos" else kinds[0]
            found.append(Option(name, kind, field.default, choices, str(field.description)))
    found.append(Option("seed", int, None, help=str(Request.model_fields["seed"].description)))
    budget = Request.model_fields["budget"]
    found.append(Option("budget", str, budget.default, typing.get_args(Budget), str(budget.description)))
    return found


SHARED = tuple(_shared())
TEXT = Option("text", str, None, help="Windows of a text, with every token read; short for --prompts text:FILE.")
HOW_LOADED = tuple(option for option in SHARED if option.name in ModelRequest.model_fields)
_OF_RUN = {"pools", "out", "fresh", "log", "format", "csv"}
SHARED_NAMES = frozenset(o.name for o in SHARED if o.name not in ("pool", "seed")) | _OF_RUN


def own_options(function: Callable[..., Any]) -> list[Option]:
    """An experiment's own parameters as options, with help from the docstring's `Args`."""
    said = {p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(function) or "").params}
    options = []
    for name, parameter in catalog.parameters(function).items():
        if name == "seed":  # the run's
            continue
        kind, choices = _kind(parameter, function)
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        help_text = " ".join(said.get(name, "").split())
        old = tuple(catalog.OLD_VALUES.get((getattr(function, "__name__", ""), name), {}))
        many = _takes_several(parameter, function)
        options.append(Option(name, kind, default, choices, help_text, True, required, many, old))
    return options


def _annotation(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """The annotation itself, if it was written as text; None for a name imported for type checkers only."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        names = {**vars(typing), **getattr(function, "__globals__", {})}
        return eval(parameter.annotation, names)  # noqa: S307 - the author's own
    except Exception:
        return None


def _takes_several(parameter: inspect.Parameter, function: Callable[..., Any]) -> bool:
    """Does a parameter take a list of texts, as a command names files?"""
    annotation = _annotation(parameter, function)
    return list[str] in (annotation, *typing.get_args(annotation))


def _kind(parameter: inspect.Parameter, function: Callable[..., Any]) -> tuple[type | None, tuple[str, ...]]:
    """The type of a parameter, by its annotation or else its default; and its choices, if any."""
    annotation = _annotation(parameter, function)
    if _takes_several(parameter, function):
        return str, ()
    if typing.get_origin(annotation) is Literal:
        return str, tuple(map(str, typing.get_args(annotation)))
    inner = [k for k in typing.get_args(annotation) if k is not type(None)]
    if len(inner) == 1:
        annotation = inner[0]
    if annotation in (bool, int, float, str):
        return annotation, ()
    default = parameter.default
    return (type(default) if isinstance(default, bool | int | float | str) else None), ()


def plain(value: Any) -> Any:
    """A value with NumPy numbers, tuples and paths converted to JSON types."""
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return str(value) if isinstance(value, PurePath) else value


def first_mistake(error: ValidationError) -> str:
    """The first error, in one line."""
    first = error.errors()[0]
    place = " ".join(
        str(part) for part in first["loc"] if isinstance(part, str) and part not in ("drawing", "function-before")
    )
    allowed = first.get("ctx", {}).get("expected")
    if first["type"] == "extra_forbidden":
        return f"unknown field '{place}' in a request: leave it out"
    return f"{place} {first.get('input')!r}: " + (
        f"use {allowed}" if allowed else str(first["msg"])[:1].lower() + str(first["msg"])[1:]
    )
