"""How did the models of the flip-flop language learn, and what do they get wrong? The records of their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.organisms import folder

RECORD = "training.json"
RECORDS = Path(__file__).parent / "flipflop-records" / "training.json"  # of every recipe, three seeds each


def training_record(model: str | Path) -> dict[str, Any]:
    """The record that training wrote beside its model.

    Args:
        model: the name of a bundled flip-flop model, or the directory of a trained one.

    Returns:
        `recipe`, `device`, `versions`, `errors` by language (`sequences`, `sequences_wrong`, `reads`, `wrong`), and
        the `curve`: by step, the training loss (nats) and the share of wrong reads.

    Raises:
        InterpError: there is no record, or it is damaged.
    """
    path = folder(model) / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = {"recipe", "device", "versions", "errors", "curve"} - set(found)
    except (OSError, ValueError, TypeError) as error:
        raise InterpError(
            f"{path} holds no record: give a folder that 'interp organism train' made of a flip-flop recipe"
        ) from error
    if missing or "phases" not in found["recipe"] or "sparse" not in found["recipe"]:
        raise InterpError(
            f"{path} is no record of a flip-flop model: give a folder that 'interp organism train' made of one"
        )
    return dict(found)


def training_records() -> list[dict[str, Any]]:
    """The training records of all flip-flop recipes, three seeds each; `interp organism collect` made the file.

    Returns:
        One record each: `recipe` (its name), `seed`, and `device`, `versions`, `errors` and `curve` as in
        `training_record`.
    """
    return list(json.loads(RECORDS.read_text(encoding="utf-8")))
