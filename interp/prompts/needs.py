"""Which prompts can an experiment take? The annotation of its argument tells what it needs."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from interp.errors import InterpError
from interp.tokens import Prompts, Sequences


def needs_of(function: Callable[..., Any]) -> frozenset[str] | None:
    """What an experiment needs of given sequences ("answer", "pairing"), by the annotation of `tokens` or `pools`.

    None if it takes only repeated blocks, as a function without annotations does.
    """
    hints = getattr(function, "__annotations__", {})
    hint = hints.get("tokens", hints.get("pools"))
    if isinstance(hint, str):
        try:
            names = {**vars(typing), **getattr(function, "__globals__", {})}
            hint = eval(hint, names)  # noqa: S307 - the author's own
        except Exception:  # of a name that is there for type checkers only
            return None
    return _needs(hint)


def _needs(hint: Any) -> frozenset[str] | None:
    if typing.get_origin(hint) is Annotated:
        inner, *marks = typing.get_args(hint)
        found = _needs(inner)
        return None if found is None else found | {mark for mark in marks if isinstance(mark, str)}
    if hint is Sequences or hint is Prompts:
        return frozenset()
    parts = [needs for part in typing.get_args(hint) if (needs := _needs(part)) is not None]
    return parts[0] if parts else None


def check_needs(experiment: str, needs: frozenset[str] | None, sets: Sequence[Prompts]) -> None:
    """Raise `InterpError` if prompts lack what an experiment needs."""
    if needs is None:
        raise InterpError(f"{experiment} needs a repeat, which prompts are not: give pools, or leave prompts out")
    for prompts in sets:
        where = prompts.source if prompts.source is not None else np.arange(1, len(prompts.ids) + 1)
        without = ~prompts.read.any(1).cpu().numpy()
        if "answer" in needs and (prompts.answers is None or without.any()):
            raise InterpError(
                f"{experiment} needs answers, and line {where[without.argmax()]} of '{prompts.pool}' has none: give "
                "answer, or read"
            )
        if "pairing" in needs and prompts.pair is None:
            raise InterpError(
                f"{experiment} needs pairs, and not every line of '{prompts.pool}' has a corrupted prompt: give "
                "corrupted on each"
            )
