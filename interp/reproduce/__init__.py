"""Do published values come out here, too? A file of values with their sources, a run for each experiment they need.

`values` reads and checks the file (`gpt2.json` is bundled), `checks` runs the experiments and compares, `readers` take
the number that is compared off a result, `view` shows what came out.
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
