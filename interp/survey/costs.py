"""How long will each cell take? An estimate, and where it comes from: nothing is run for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from interp.models import weight_bytes
from interp.places import Place
from interp.request import Request
from interp.survey.cells import DONE
from interp.survey.driver import finished, tickets_of
from interp.survey.spec import Cell, Spec

# seconds on `organism`, with the defaults, on two cores of a server
_MEASURED = {
    "argmaxability": 20.5,
    "glitch_attribution": 17.9,
    "induction_heads": 5.6,
    "massive_activations": 3.5,
    "repeated_token": 1.5,
    "repeated_tokens": 2.1,
    "undertrained": 11.6,
}


@dataclass(frozen=True)
class Price:
    """What a cell is expected to cost.

    Attributes:
        cell: the cell.
        seconds: on one worker; None: unknown.
        source: "there" (nothing is to be done), "measured" (the same cell took so long), "scaled" (the same experiment
            with the same options took so long on other models of this folder, times the ratio of the sizes of the
            weights), "guessed" (that from a table of what the defaults take on `organism`), or "unknown".
        weights: bytes of the model's files; None: not on this machine.
    """

    cell: Cell
    seconds: float | None
    source: str
    weights: int | None


def priced(spec: Spec, out: str | Path) -> list[Price]:
    """Estimate what each cell of a survey costs.

    Forward passes take time in proportion to the weights, which is what scaling assumes; sweeps over heads, and what
    asks every token of a vocabulary, grow faster. So an estimate for a much larger model is a lower bound.

    Args:
        spec: what is asked.
        out: the survey's folder, whose finished cells say how long they took.

    Returns:
        A price for each cell, in order.

    Raises:
        InterpError: a model does not exist.
    """
    place, cells = Place(out), spec.cells()
    there = set(finished(place, tickets_of(cells, place, spec.share_after)))
    known = [json.loads(text) for text in place.read_all(f"cells/*/{DONE}").values()]
    took = [(Request.from_json(one["request"]), float(one["seconds"])) for one in known]
    return [_price(cell, cell.name in there, took) for cell in cells]


def _price(cell: Cell, there: bool, took: Sequence[tuple[Request, float]]) -> Price:
    model = cell.request.model
    weights = weight_bytes(model.name, model.revision)
    if there:
        return Price(cell, 0.0, "there", weights)
    alike = [(request, seconds) for request, seconds in took if _question(request) == _question(cell.request)]
    same = [seconds for request, seconds in alike if request.model == model]
    if same:
        return Price(cell, median(same), "measured", weights)
    sizes = [(weight_bytes(request.model.name, request.model.revision), seconds) for request, seconds in alike]
    rates = [seconds / size for size, seconds in sizes if size]
    if rates and weights:
        return Price(cell, median(rates) * weights, "scaled", weights)
    reference = weight_bytes("organism")
    if cell.request.experiment in _MEASURED and weights and reference:
        return Price(cell, _MEASURED[cell.request.experiment] * max(1.0, weights / reference), "guessed", weights)
    return Price(cell, None, "unknown", weights)


def _question(request: Request) -> dict[str, Any]:
    """What is asked, whatever the model and the seed."""
    return request.model_dump(exclude={"model", "seed"})
