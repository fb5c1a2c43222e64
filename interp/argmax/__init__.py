"""Which classes of an output layer can ever be the arg-max? Every answer comes with a state or a proof, and both are checked.

- `table`: `argmaxable`, the verdicts; stages of a search, each for what the last left open.
- `problem`: the classes as points in coordinates in which scale, shift and rotation do not count.
- `witness`: states that may put a class first; `nearest`, `inside`, `programs`: exact answers, one class at a time.
- `norm`: the same question for the states that a model's last norm can produce.
- `of_model`: a model's output layer, with its norm and its dtypes; `saved`: tables and results as files.
- `check`: the judge, which knows nothing of the search.
"""

from interp.argmax.norm import Ball, reach
from interp.argmax.saved import from_file, save, summary
from interp.argmax.table import VERDICTS, argmaxable

__all__ = ["VERDICTS", "Ball", "argmaxable", "from_file", "reach", "save", "summary"]
