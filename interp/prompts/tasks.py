"""Which small classification tasks can be demonstrated? This project's own, and those of a file or a model.

A task has two or more classes with equally many items, and a label word for each class. Words and labels here are this
project's own; `parity` needs arithmetic that small models lack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.models import location
from interp.organisms import TASKS_FILE, folder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Task:
    """Items with the label of their class, and how a demonstration of one is written.

    Attributes:
        name: the task's name.
        items: the items of each class, by its label as written in a text (" fruit").
        between: the text between an item and its label.
        behind: the text after a label.
    """

    name: str
    items: Mapping[str, tuple[str, ...]]
    between: str = ":"
    behind: str = "\n"

    def __post_init__(self) -> None:
        sizes = {len(items) for items in self.items.values()}
        every = [item for items in self.items.values() for item in items]
        if len(self.items) < 2 or len(sizes) != 1 or 0 in sizes:
            raise InterpError(f"task '{self.name}' is not balanced: give two classes or more, with as many items each")
        if len(set(every)) < len(every):
            twice = next(item for item in every if every.count(item) > 1)
            raise InterpError(f"task '{self.name}' has {twice!r} twice: give each item once")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each class."""
        return tuple(self.items)

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / len(self.items)

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))


def _task(name: str, **words: str) -> Task:
    return Task(name, {f" {label}": tuple(items.split()) for label, items in words.items()})


_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy")
_TEENS = ("ten", "eleven", "twelve", *(f"{n}teen" for n in ["thir", "four", "fif", "six", "seven", "eigh", "nine"]))
_COUNTED = ["zero", *_NUMBERS, *_TEENS, *(t if not n else f"{t}-{n}" for t in _TENS for n in ("", *_NUMBERS))][:64]

OWN = {
    task.name: task
    for task in (
        _task(
            "kinds",
            animal="dog cat horse cow sheep goat lion tiger rabbit wolf bear mouse elephant fox monkey deer",
            food="bread cheese soup rice pasta butter cake salad pizza sausage pie yogurt steak sandwich noodles "
            "porridge",
            clothing="shirt coat hat dress skirt jacket sweater scarf trousers socks gloves boots shorts vest jeans "
            "blouse",
            vehicle="car truck bus train bicycle ship airplane tractor motorcycle van boat tram helicopter taxi "
            "ferry wagon",
        ),
        _task(
            "sentiment",
            positive="wonderful excellent delightful brilliant superb beautiful amazing charming fantastic lovely "
            "pleasant perfect joyful splendid marvelous great terrific impressive enjoyable graceful "
            "magnificent outstanding cheerful remarkable admirable fabulous good happy inspiring generous "
            "refreshing elegant",
            negative="terrible awful horrible dreadful disgusting ugly boring miserable nasty unpleasant "
            "disappointing poor painful hideous pathetic bad atrocious annoying tedious clumsy appalling "
            "inferior gloomy mediocre shameful lousy dull sad depressing cruel irritating vulgar",
        ),
        _task(
            "language",
            English="house water bread night friend garden window street winter summer school mother father morning "
            "green black",
            French="maison eau fromage nuit ami jardin fenêtre rue hiver été école mère père matin vert noir",
            German="Haus Wasser Brot Nacht Freund Garten Fenster Straße Herbst Frühling Schule Mutter Vater Morgen "
            "grün schwarz",
            Spanish="casa agua queso noche amigo jardín ventana calle invierno verano escuela madre padre mañana "
            "verde negro",
        ),
        _task(
            "places",
            city="Paris London Berlin Madrid Rome Tokyo Beijing Moscow Cairo Chicago Boston Vienna Athens Dublin "
            "Lisbon Prague Warsaw Budapest Toronto Sydney Mumbai Seoul Bangkok Istanbul Amsterdam Brussels "
            "Stockholm Oslo Helsinki Houston Seattle Milan",
            country="France England Germany Spain Italy Japan China Russia Egypt Canada Brazil Austria Greece "
            "Ireland Portugal Poland Hungary Sweden Norway Finland India Thailand Turkey Belgium Denmark "
            "Mexico Argentina Chile Peru Kenya Nigeria Vietnam",
        ),
        Task("parity", {" even": tuple(_COUNTED[::2]), " odd": tuple(_COUNTED[1::2])}),
    )
}


def tasks_of(model: TransformerBridge, names: str = "") -> list[Task]:
    """The tasks of these names.

    Args:
        model: the model; if its folder has tasks (`tasks.json`), because it was trained on them, these are used.
        names: comma-separated names, or a JSON file: `{"name": {"items": {" label": ["item", ...], ...}}}`, with
            "between" and "behind" if an item and its label are not written "item: label" on a line. "" means all.

    Raises:
        InterpError: there is no task of that name, or the file holds none.
    """
    known = _of_model(model) or OWN
    if names.endswith(".json"):
        return list(_of_file(Path(names)).values())
    asked = [name.strip() for name in names.split(",")] if names else list(known)
    odd = next((name for name in asked if name not in known), None)
    if odd is not None:
        raise InterpError(f"unknown task '{odd}': use {', '.join(known)}, or a JSON file of tasks")
    return [known[name] for name in dict.fromkeys(asked)]


def _of_model(model: TransformerBridge) -> dict[str, Task]:
    """The tasks in a model's folder."""
    where = location(model)
    path = None if where is None else folder(where) / TASKS_FILE
    return _of_file(path) if path is not None and path.is_file() else {}


def _of_file(path: Path) -> dict[str, Task]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for name, task in data.items():
            items = {str(label): tuple(map(str, words)) for label, words in task["items"].items()}
            found[name] = Task(name, items, **{part: task[part] for part in ("between", "behind") if part in task})
    except InterpError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InterpError(
            f"{path} holds no tasks ({type(error).__name__}): write "
            '{"name": {"items": {" label": ["item", ...], ...}}}'
        ) from error
    if not found:
        raise InterpError(f"{path} holds no tasks: give at least one")
    return found
