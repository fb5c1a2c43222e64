"""How much work may a run do? One word sets the number of sequences and draws; no budget changes a definition.

An experiment's own defaults are the budget `standard`. Its module may define `BUDGETS`, the defaults for the other two:
`BUDGETS = {"quick": {"batch": 8, "windows": 20}, "thorough": {"batch": 256}}`. Options given explicitly are kept, and a
result records which of its options come from a budget.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import InterpError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Budget = Literal["auto", "quick", "standard", "thorough"]
LARGE = 50_000_000  # parameters above which the quick budget is the default on a CPU
SEQUENCES = {"quick": 16, "thorough": 256}  # per pool, unless the experiment says otherwise


def budget_in_force(asked: str, model: TransformerBridge) -> str:
    """The budget of a run: as asked or, for "auto", quick for models of more than 50 million parameters on a CPU.

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
    """What a budget sets instead of an experiment's own defaults.

    Args:
        experiment: its function; `BUDGETS` is looked up in the module that defines it.
        budget: quick, standard or thorough.

    Returns:
        Values by name, for the experiment's parameters and for the options of drawing sequences.

    Raises:
        InterpError: `BUDGETS` has no mapping for a budget.
    """
    if budget == "standard":
        return {}
    found = getattr(sys.modules.get(experiment.__module__), "BUDGETS", {})
    values = found.get(budget, {}) if isinstance(found, Mapping) else None
    if not isinstance(values, Mapping):
        raise InterpError(f"BUDGETS of {experiment.__module__}: give a mapping from quick and thorough to options")
    return {"batch": SEQUENCES[budget], **values}
