"""Are published values reproduced here? A file of values with their sources, and a run for each experiment that they
need.

`values` reads and checks the file (`gpt2.json` is bundled), `checks` runs the experiments and compares, `readers`
extract the number to compare from a result, `view` shows the outcome.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.reproduce.checks import reproduce
    from interp.reproduce.values import Check, Source, Values, bundled, read_values

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks": ["reproduce"],
        "values": ["Check", "Source", "Values", "bundled", "read_values"],
    },
)
