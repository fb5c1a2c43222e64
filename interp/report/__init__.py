"""What is known about one model? One page, read from top to bottom: gap, vocabulary, tokens, heads, causes.

- `sections`: which experiments, in which order, with which introductions; `run`: running what is missing.
- `tokens`: the table of glitch tokens, and what is known about each.
- `page`: the self-contained HTML page.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.report.run import report as report

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"run": ["report"]})
