"""Do published values come out here, too? A file of values with their sources, a run for each experiment they need.

`values` reads and checks the file (`gpt2.json` is bundled), `checks` runs the experiments and compares, `readers` take
the number that is compared off a result, `report` shows what came out.
"""

from interp.reproduce.checks import reproduce
from interp.reproduce.report import is_reproduction, published_and_ours as figure, table
from interp.reproduce.values import Check, Run, Source, Values, bundled, read_values

__all__ = [
    "Check", "Run", "Source", "Values", "bundled", "figure", "is_reproduction", "read_values", "reproduce", "table",
]  # fmt: skip
