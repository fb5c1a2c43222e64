"""How much work may a run take? Fewer or more sequences and draws, by one word; no budget changes a definition.

An experiment's own defaults are the budget `standard`. Its module may hold `BUDGETS`, the defaults of the two others:
`BUDGETS = {"quick": {"batch": 8, "windows": 20}, "thorough": {"batch": 256}}`. Options that are asked for are left as
they are, and a result says which of its options come from a budget.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import InterpError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Budget = Literal["auto", "quick", "standard", "thorough"]
LARGE = 50_000_000  # parameters above which a CPU has the quick budget by default
SEQUENCES = {"quick": 16, "thorough": 256}  # per pool, where an experiment does not say otherwise


def budget_in_force(asked: str, model: TransformerBridge) -> str:
    """The budget of a run: as asked or, for "auto", quick on a CPU for models of more than 50 million parameters.

    Args:
        asked: auto, quick, standard or thorough.
        model: the model that is run.

    Returns:
        quick, standard or thorough.
    """
    if asked != "auto":
        return asked
    on_cpu = next(model.original_model.parameters()).device.type == "cpu"
    return "quick" if on_cpu and sum(p.numel() for p in model.original_model.parameters()) > LARGE else "standard"


def defaults(experiment: Callable[..., Any], budget: str) -> dict[str, Any]:
    """What a budget gives an experiment in the place of its own defaults.

    Args:
        experiment: its function; `BUDGETS` is looked up in the module that it stands in.
        budget: quick, standard or thorough.

    Returns:
        Values by the names of the experiment's parameters and of options of the drawing.

    Raises:
        InterpError: `BUDGETS` holds no mapping for a budget.
    """
    if budget == "standard":
        return {}
    found = getattr(sys.modules.get(experiment.__module__), "BUDGETS", {})
    values = found.get(budget, {}) if isinstance(found, Mapping) else None
    if not isinstance(values, Mapping):
        raise InterpError(f"BUDGETS of {experiment.__module__}: give a mapping from quick and thorough to options")
    return {"batch": SEQUENCES[budget], **values}
