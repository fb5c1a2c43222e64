"""Does an experiment find what is true by construction? Studies of small models whose training is known.

- `lexinvariance`: a model with no token-specific weights has no deficit on any token, whatever table of rows it gets.
- `findings_over_seeds`: models trained from other seeds, for which the findings about the bundled ones should hold.
- `unembedding_ranks`: output layers of few dimensions, in which some tokens can never be the arg-max.
- `training_over_time`: kept checkpoints of one training, at which it is known how often each token had been trained on.

`interp organism study NAME --out DIR` runs one, and `interp show FILE` shows a stored result.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.controls.drawn_tables.study import lexinvariance as lexinvariance, redraw as redraw
    from interp.controls.factorised_unembedding.study import unembedding_ranks as unembedding_ranks
    from interp.controls.kept_checkpoints.study import training_over_time as training_over_time
    from interp.controls.training_seeds.study import findings_over_seeds as findings_over_seeds

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "drawn_tables.study": ["lexinvariance", "redraw"],
        "factorised_unembedding.study": ["unembedding_ranks"],
        "kept_checkpoints.study": ["training_over_time"],
        "training_seeds.study": ["findings_over_seeds"],
    },
)
