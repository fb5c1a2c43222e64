"""Which classes of an output layer can ever be the arg-max?

Every answer comes with a hidden state or a proof, and both are verified.

- `verdict_table`: `argmaxability`, one row for each class, for matrices and for models.
- `search`: the stages of the search, each for the classes that the previous ones left undecided.
- `points`: the classes as points in coordinates that are invariant to scale, shift and rotation.
- `reflections`: states that put a class first, by braid reflection.
- `min_norm_point`, `maxent`, `linear_program`: exact answers, one class at a time.
- `norm_ball`: the same question for the states that a model's last norm can produce; `ball_search`: for all classes.
- `passes`: leads of all classes, part by part.
- `verification`: verification, which shares no code with the search.
- `storage`: matrices and tables as files, and the labelled result.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.argmax.norm_ball import NormBall as NormBall, margin_in_ball as margin_in_ball
    from interp.argmax.storage import (
        dataset as dataset,
        load_matrix as load_matrix,
        matrix_provenance as matrix_provenance,
        save as save,
    )
    from interp.argmax.verdict_table import VERDICTS as VERDICTS, argmaxability as argmaxability

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "norm_ball": ["NormBall", "margin_in_ball"],
        "storage": ["dataset", "load_matrix", "matrix_provenance", "save"],
        "verdict_table": ["VERDICTS", "argmaxability"],
    },
)
