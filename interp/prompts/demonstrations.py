"""Which prompts demonstrate a task, with its true labels or with false ones?

A prompt is a row of items, each but the last followed by a label: "dog: animal", "bread: food", "shirt:". Predictions
are read after every item, so that one prompt of 16 demonstrations shows what the model predicts after 0 to 16 of them.
All kinds of labels are used with the same items in the same order, aligned token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp import first_token
from interp.errors import InterpError
from interp.models import encoded, encoded_inside, needed_tokenizer, single_token, token_texts
from interp.prompts.tasks import Task
from interp.tokens import Prompts, check_seed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Labels = Literal["true", "permuted", "random"]
KINDS = get_args(Labels)
SHOTS = 16


@dataclass(frozen=True)
class Demonstrations:
    """Prompts of one task with one kind of labels, and the positions of their parts.

    Attributes:
        task: the task.
        kind: the kind of labels.
        tokens: the prompts, read at the last item: its answer is the true label, the others are its rivals. Named
            positions are `query` (from which the last label is predicted), `demonstrated` (the labels of all
            demonstrations) and `same class` (the labels of those whose item is in the last item's class).
        label_ids: [class], the token of each label.
        classes: [batch place], the true class of each item; the last place is the query.
        shown: [batch place], the class whose label follows each item; for the last item, the one that continues the
            demonstrations; for random labels, any.
        places: [batch place], positions of the labels; the last one is the label that is predicted.
    """

    task: Task
    kind: Labels
    tokens: Prompts
    label_ids: np.ndarray
    classes: np.ndarray
    shown: np.ndarray
    places: np.ndarray

    def rows(self, at: Any) -> Demonstrations:
        """Some of the prompts, by a slice, a mask or their indices."""
        return Demonstrations(
            self.task,
            self.kind,
            self.tokens.rows(at),
            self.label_ids,
            self.classes[at],
            self.shown[at],
            self.places[at],
        )


def demonstrations(
    model: TransformerBridge, task: Task, kind: Labels = "true", *, shots: int = SHOTS, count: int = 32, seed: int = 0
) -> Demonstrations:
    """Prompts of one task with one kind of labels.

    Classes are balanced at each place over the prompts, and within each prompt. Items, their order and the permutation
    depend only on the seed and on the prompt's index.

    Args:
        model: a model with a tokenizer.
        task: the task.
        kind: "true" labels; "permuted", each class has the label of another one, the same throughout a prompt; or
            "random", each label is drawn independently.
        shots: demonstrations before the last item, 0 to 16.
        count: how many prompts; rounded up to a multiple of the number of classes.
        seed: decides what is drawn.

    Raises:
        InterpError: an unknown kind, an invalid number of demonstrations or prompts, too few items, a label that is not
            one token, or a tokenizer that merges an item with its label.

    Source:
        Halawi, Denain and Steinhardt 2023, Overthinking the Truth, arXiv 2307.09476; with different tasks.
    """
    check_seed(seed)
    if kind not in KINDS:
        raise InterpError(f"unknown kind of labels '{kind}': use {', '.join(KINDS)}")
    if not 0 <= shots <= SHOTS:
        raise InterpError(f"shots {shots}: use 0 to {SHOTS}")
    if count < 1:
        raise InterpError(f"count {count}: use a positive integer")
    drawn = _drawn(task, shots + 1, -(-count // len(task.labels)) * len(task.labels), seed)
    return _written(model, task, kind, *drawn)


def lines(model: TransformerBridge, tasks: list[Task], count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Lines of a file of prompts: false demonstrations of several tasks in turn, two of each class, beside true ones.

    Args:
        model: a model with a tokenizer.
        tasks: the tasks.
        count: how many.
        seed: decides what is drawn.
    """
    each = -(-count // len(tasks))
    of_task = []
    for task in tasks:
        shots = min(SHOTS, 2 * len(task.labels))
        false, true = (
            demonstrations(model, task, kind, shots=shots, count=each, seed=seed) for kind in ("permuted", "true")
        )
        rows = []
        for i in range(each):
            at = int(false.places[i, -1])
            answer = int(false.label_ids[false.classes[i, -1]])
            rows.append(
                {
                    "ids": false.tokens.ids[i, :at].tolist(),
                    "answer": answer,
                    "rivals": [int(token) for token in false.label_ids if token != answer],
                    "corrupted": true.tokens.ids[i, :at].tolist(),
                    "spans": {"query": [at - 1, at]},
                }
            )
        of_task.append(rows)
    return [of_task[i % len(tasks)][i // len(tasks)] for i in range(count)]


def _drawn(
    task: Task, places: int, count: int, seed: int
) -> tuple[np.ndarray, list[list[str]], np.ndarray, np.ndarray]:
    """Classes [batch place], items, permutations [batch class] and random classes [batch place]."""
    size = len(task.labels)
    items = list(task.items.values())
    if len(items[0]) < -(-places // size):
        raise InterpError(
            f"task '{task.name}' has {len(items[0])} items of a class, too few for {places - 1} demonstrations: give "
            "fewer shots"
        )
    classes = np.zeros((count, places), int)
    random, permuted = np.zeros_like(classes), np.zeros((count, size), int)
    words = []
    for i in range(count):
        # prompts of a group cycle through the classes together: at each place, each class occurs once in every group
        order = np.random.default_rng((seed, i // size, 1)).permutation(np.arange(places) % size)
        rng = np.random.default_rng((seed, i, 2))
        classes[i] = (order + i) % size
        supply = [iter(rng.permutation(len(of))) for of in items]
        words.append([items[c][next(supply[c])] for c in classes[i]])
        permuted[i] = _derangement(rng, size)
        random[i] = rng.integers(size, size=places)
    return classes, words, permuted, random


def _derangement(rng: np.random.Generator, size: int) -> np.ndarray:
    """A permutation without fixed points."""
    while (found := rng.permutation(size)).tolist() and (found == np.arange(size)).any():
        continue
    return found


def _written(
    model: TransformerBridge,
    task: Task,
    kind: Labels,
    classes: np.ndarray,
    words: list[list[str]],
    permuted: np.ndarray,
    random: np.ndarray,
) -> Demonstrations:
    import torch

    tokenizer = needed_tokenizer(model, "demonstrations")
    label_ids = []
    for text in task.labels:
        try:
            label_ids.append(single_token(tokenizer, text))
        except InterpError as error:
            raise InterpError(f"task '{task.name}': the label {error}") from error
    if len(set(label_ids)) < len(label_ids):
        raise InterpError(f"task '{task.name}' has two labels that are the same token: give different labels")
    shown = {"true": classes, "permuted": np.take_along_axis(permuted, classes, 1), "random": random}[kind]
    first = first_token.first_token(model, "auto").id
    front = [] if first is None else [first]
    behind = encoded_inside(tokenizer, task.behind) or [] if task.behind.strip(" ") else []
    rows, places = [], np.zeros_like(classes)
    pieces: dict[tuple[str, bool], list[int]] = {}
    for i, of in enumerate(words):
        ids = list(front)
        for k, word in enumerate(of):
            key = (word, k == 0)
            if key not in pieces:
                text = word + task.between
                pieces[key] = encoded(tokenizer, text) if k == 0 else encoded_inside(tokenizer, text) or []
            if not pieces[key]:
                raise InterpError(f"task '{task.name}': the tokenizer makes no tokens of {word!r}: leave it out")
            ids += pieces[key]
            places[i, k] = len(ids)
            ids += [label_ids[shown[i, k]], *(behind if k + 1 < len(of) else [])]
        rows.append(ids)
    _check_text(tokenizer, task, rows[0][len(front) :], words[0], shown[0])
    width = max(map(len, rows))
    if width > int(model.cfg.n_ctx):
        raise InterpError(
            f"task '{task.name}' with {len(words[0]) - 1} demonstrations is {width} tokens, and the context of this "
            f"model is {model.cfg.n_ctx}: give fewer shots"
        )
    shape = (len(rows), width)
    fed, present = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    read, answers = torch.zeros_like(present), torch.full((*shape, 1), -1)
    rivals = torch.full((*shape, len(label_ids) - 1), -1)
    named = {name: torch.zeros_like(present) for name in ("query", "demonstrated", "same class", "last")}
    for i, row in enumerate(rows):
        fed[i, : len(row)], fed[i, len(row) :] = torch.tensor(row), row[0]
        present[i, : len(row)] = True
        at, own = int(places[i, -1]), label_ids[classes[i, -1]]
        read[i, at] = True
        answers[i, at], rivals[i, at] = own, torch.tensor([token for token in label_ids if token != own])
        named["query"][i, at - 1] = named["last"][i, at - 1] = True
        named["demonstrated"][i, places[i, :-1]] = True
        named["same class"][i, places[i, :-1][classes[i, :-1] == classes[i, -1]]] = True
    unique, inverse = np.unique(fed.numpy(), return_inverse=True)
    texts = np.array(token_texts(model, unique.tolist()), dtype=object)[inverse.reshape(shape)]
    name = f"{task.name}, {kind}"
    source = np.arange(1, len(rows) + 1)
    tokens = Prompts(fed, read, answers, rivals, present, named, name, None, texts, source, first)
    return Demonstrations(task, kind, tokens.to(model.cfg.device), np.array(label_ids), classes, shown, places)


def _check_text(tokenizer: Any, task: Task, ids: list[int], words: list[str], shown: np.ndarray) -> None:
    """Raise `InterpError` if the tokens differ from those of the prompt encoded as one text."""
    parts = [f"{word}{task.between}{task.labels[c]}" for word, c in zip(words, shown, strict=True)]
    if encoded(tokenizer, task.behind.join(parts)) != ids:
        raise InterpError(
            f"task '{task.name}': this tokenizer encodes an item and its label differently when they are "
            "together: give a task with another between or behind"
        )
