"""Does an argument have the type that its function takes? If not, one line says so before anything breaks further in.

`takes_what_it_says` checks callers against a function's annotations, which are its documentation. What it does not
understand (shapes, protocols, type variables) passes. Classes that a module imports for type checkers only are
recognised by name, so that the check imports nothing.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from interp.errors import InterpError

P = ParamSpec("P")
R = TypeVar("R")
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    "PathLike": "a path",
    "Tensor": "a tensor",
    "TransformerBridge": "a model, as interp.load gives it",
    "Repeated": "sequences, as interp.repeated gives them",
    "Sequences": "sequences, such as interp.repeated gives",
    "Dataset": "an xarray Dataset",
    "DataArray": "an xarray DataArray",
    "ndarray": "an array",
    "Pool": "a Pool, as interp.pools gives it",
}
_PARSED = ("Heads",)  # types with a parser of their own, which takes anything and reports what it does not understand
_SAID_BELOW = ("batch_size",)  # checked further down, where the command line's values are checked too
_FEW = 6  # entries of a list that are checked, and at most shown in the message
_LENGTH = 60  # characters of the given value that a message shows


class _Named:
    """A class that a module imports for type checkers only: recognised by its name."""

    def __init__(self, name: str):
        self.name = name

    def __or__(self, other: Any) -> Any:
        return _Union((self, other))

    def __ror__(self, other: Any) -> Any:
        return _Union((other, self))

    def __getitem__(self, of: Any) -> _Named:
        return self

    def __getattr__(self, name: str) -> _Named:
        return _Named(name)

    def __call__(self, *args: Any, **kwargs: Any) -> _Named:
        return self


class _Union:
    """A union of types, at least one of which is known by name only."""

    def __init__(self, kinds: tuple[Any, ...]):
        self.kinds = kinds

    def __or__(self, other: Any) -> _Union:
        return _Union((*self.kinds, other))

    def __ror__(self, other: Any) -> _Union:
        return _Union((other, *self.kinds))


class _Known(dict):
    """A module's names; any other name stands for a class of that name."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name) if hasattr(builtins, name) else _Named(name)


def takes_what_it_says(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which rejects arguments of types other than its annotations name, with a one-line message.

    A missing or unknown argument is a TypeError, as for any function.

    Raises:
        InterpError: an argument has another type.
    """
    signature = inspect.signature(function)
    kinds: dict[str, Any] = {}

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kinds:
            kinds.update(_kinds(function, signature))
        given = signature.bind(*args, **kwargs)  # TypeError
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if not several and name in kinds and value is not parameter.default and not _is(value, kinds[name]):
                raise InterpError(f"{function.__name__}: {name} cannot be {_shown(value)}: give {_said(kinds[name])}")
        return function(*args, **kwargs)

    return checking


def _kinds(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """What each parameter takes, as far as that can be determined."""
    module = sys.modules.get(function.__module__)
    known = _Known({**vars(typing), **vars(collections.abc), **(vars(module) if module else {})})
    known["ArrayLike"] = _Named("ArrayLike")  # NumPy's own is a union of dozens
    found = {}
    for name, parameter in signature.parameters.items():
        annotation = parameter.annotation
        if annotation in _PARSED or name in _SAID_BELOW:
            annotation = Any
        elif isinstance(annotation, str):
            try:
                annotation = eval(annotation, {}, known)  # noqa: S307 - this package's own
            except Exception:  # its type cannot be determined
                annotation = Any
        if isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        found[name] = Any if annotation is parameter.empty else annotation
    return found


def _is(value: Any, kind: Any) -> bool:
    """Is a value of a type? True where that cannot be determined."""
    if kind is Any or isinstance(kind, TypeVar | ParamSpec | str):
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    if isinstance(kind, _Union):
        return any(_is(value, one) for one in kind.kinds)
    if isinstance(kind, _Named):
        return _is_named(value, kind.name)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in of)
    if origin is typing.Literal:  # the function itself checks the words and lists them
        return any(type(value) is type(one) for one in of)
    if origin is not None:
        return _is_generic(value, origin, of)
    return _is_plain(value, kind)


def _is_named(value: Any, name: str) -> bool:
    if name in ("ArrayLike", "PathLike", "Callable"):
        return True
    return any(base.__name__ == name for base in type(value).__mro__)


def _is_plain(value: Any, kind: Any) -> bool:
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return callable(value) or not callable(kind)
    if issubclass(kind, os.PathLike):
        return isinstance(value, os.PathLike)
    shaped = getattr(kind, "array_type", None)  # jaxtyping's
    if shaped is not None:
        return isinstance(value, shaped)
    if kind.__name__ == "TransformerBridge":
        return isinstance(value, kind) or hasattr(value, "hook_dict")
    return isinstance(value, kind)


def _is_generic(value: Any, origin: Any, of: tuple[Any, ...]) -> bool:
    if origin is collections.abc.Callable:
        return callable(value)
    if not isinstance(origin, type):
        return True
    lists = (collections.abc.Sequence, collections.abc.Iterable)
    if origin in lists and hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        value = value[:_FEW].tolist()
    elif origin in lists and hasattr(value, "dims") and hasattr(value.values, "tolist"):  # xarray's
        value = value.values.tolist()
    if not isinstance(value, origin):
        return False
    if not of:
        return True
    if isinstance(value, str | bytes):  # its entries are texts, or numbers
        return _is(value[:1], of[0])
    if isinstance(value, Mapping):
        entries = list(value.items())[:_FEW]
        return all(_is(key, of[0]) and (len(of) < 2 or _is(entry, of[1])) for key, entry in entries)
    if origin is tuple and of[-1] is not Ellipsis:
        return len(value) == len(of) and all(map(_is, value, of))
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is(entry, of[0]) for entry in list(value)[:_FEW])
    return True


def _said(kind: Any) -> str:
    """A type in words."""
    kinds = kind.kinds if isinstance(kind, _Union) else typing.get_args(kind) if _is_union(kind) else (kind,)
    words = list(dict.fromkeys(_word(one) for one in kinds if one is not types.NoneType and one is not None))
    return " or ".join(filter(None, words)) or "another"


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _word(kind: Any) -> str:
    if isinstance(kind, _Union) or _is_union(kind):
        return _said(kind)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(map(str, of))
    if origin is collections.abc.Callable:
        return "a function"
    if origin is not None and isinstance(origin, type):
        if issubclass(origin, Mapping):
            return f"a dictionary from {_plural(of[0])} to {_plural(of[1])}" if len(of) == 2 else "a dictionary"
        return f"a list of {_plural(of[0])}" if of else "a list"
    if isinstance(kind, _Named):
        return _WORDS.get(kind.name, f"a {kind.name}")
    name = getattr(kind, "__name__", str(kind))
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if getattr(kind, "array_type", None) is not None:
        return "a tensor"
    return _WORDS.get(kind, "") if kind in (int, float, str, bool) else _WORDS.get(name, f"a {name}")


def _plural(kind: Any) -> str:
    word = _word(kind)
    return {"a text": "texts", "a whole number": "whole numbers", "a number": "numbers"}.get(
        word, word.removeprefix("a ") + " each" if word else "entries"
    )


def _shown(value: Any) -> str:
    """The given value, shortened."""
    plain = isinstance(value, str | int | float | bool | type(None))
    try:
        text = repr(value) if plain or (isinstance(value, list | tuple | dict | set) and len(value) <= _FEW) else ""
    except Exception:  # a foreign object may raise anything when printed
        text = ""
    text = " ".join(text.split())
    kind = type(value).__name__
    return text if text and len(text) <= _LENGTH else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
