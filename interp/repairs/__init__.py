"""What would repair copying, and how much does each repair gain? In a run, stage by stage, and in the embedding rows.

A *glitch* run is on a pool's sequences; its *paired* run is on the same sequences with ordinary tokens substituted.
Scores are read at the tested tokens that the context determines (`PredictionSites`), from the final residual stream
after the last norm, x, as the unembedding sees it; logits are x . u_t + b_t.

- `near_duplicates`: which tokens can the model hardly distinguish, judged by their rows?
- `final_residuals`: x, and optionally what each component writes, in one run, optionally with another run's attention.
- `FittedReadout`: unembedding rows for a pool's tokens, fitted on other sequences; the tokens' own where as good.
- `swap_token_directions`: x with what it encodes about two tokens exchanged.
- `shapley`: what each of several repairs contributes, averaged over orders.
- `RepairStudy`: all of these on a pool, in every combination, with whole runs transplanted.
- `MinimalRepair`: the smallest possible repair, in the heads of the copying circuit only
  (`interp.repairs.ordinary_heads`: what these do on ordinary tokens).
- `MinimalStudy`: every combination of minimal repairs on a pool.
- `interp.repairs.head_changes`: the same for single heads, each to any degree, with gradients.
- `interp.repairs.health`: which repairs leave ordinary tokens unchanged, so that a stage can be tested.
- `shapley_bounds`: lower and upper bounds of each contribution where some repairs cannot be tested.
- `new_rows`, `rows_replaced`: new embedding rows for a pool's tokens, and the model with these rows.
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
