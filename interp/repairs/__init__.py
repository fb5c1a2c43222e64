"""What would repair copying, and what does each repair gain? In a run, stage by stage, and by other embedding rows.

A *glitch* run is on a pool's sequences, its *paired* run on the same sequences with ordinary tokens in their place.
What is read is the tested token where context can tell it; `PredictionSites` lists these. All reading is done on the
final residual stream behind the last norm, x, as the unembedding sees it; logits are x . u_t + b_t.

- `near_duplicates`: which tokens does the model hardly tell apart, by their rows?
- `final_residuals`: x, and what each component writes, of one run, with the attention of another if wanted.
- `FittedReadout`: rows that read a pool's tokens, fitted on other sequences; their own where these are as good.
- `swap_token_directions`: x with what it says of one token said of another.
- `shapley`: what each of several repairs contributes, whatever their order.
- `RepairStudy`: all of these on a pool, in every combination, with whole runs transplanted.
- `MinimalRepair`: as little as possible repaired, in the heads of the copying circuit alone
  (`interp.repairs.ordinary_heads`: what these do on ordinary tokens).
- `MinimalStudy`: every combination of minimal repairs on a pool.
- `interp.repairs.head_changes`: the same of single heads, each to a degree, with gradients.
- `interp.repairs.health`: which of them leave ordinary tokens as they are, so that a stage can be tested.
- `shapley_bounds`: what each contributes at least and at most, where some are not testable.
- `new_rows`, `rows_replaced`: other embedding rows for a pool's tokens, and the model with these.
- `save_repaired`: the model with such rows, as a Hugging Face directory.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.repairs.fitted_readout import FittedReadout
    from interp.repairs.minimal import MinimalRepair
    from interp.repairs.minimal_study import MinimalStudy
    from interp.repairs.probes import probe_accuracy
    from interp.repairs.readout import best_source_token, readout_scores
    from interp.repairs.repaired_model import save_repaired
    from interp.repairs.rows import ROW_REPAIRS, new_rows, repairable_pools, rows_replaced
    from interp.repairs.shapley_values import shapley, shapley_bounds, subsets
    from interp.repairs.sites import FinalResidual, PredictionSites, component_names, final_residuals
    from interp.repairs.study import QUANTITIES, REPAIRS, ROLES, RepairStudy, combination_name
    from interp.repairs.suppression import suppressing_writes
    from interp.repairs.unembedding import Unembedding, near_duplicates, swap_token_directions

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fitted_readout": ["FittedReadout"],
        "minimal": ["MinimalRepair"],
        "minimal_study": ["MinimalStudy"],
        "probes": ["probe_accuracy"],
        "readout": ["best_source_token", "readout_scores"],
        "repaired_model": ["save_repaired"],
        "rows": ["ROW_REPAIRS", "new_rows", "repairable_pools", "rows_replaced"],
        "shapley_values": ["shapley", "shapley_bounds", "subsets"],
        "sites": ["FinalResidual", "PredictionSites", "component_names", "final_residuals"],
        "study": ["QUANTITIES", "REPAIRS", "ROLES", "RepairStudy", "combination_name"],
        "suppression": ["suppressing_writes"],
        "unembedding": ["Unembedding", "near_duplicates", "swap_token_directions"],
    },
)
