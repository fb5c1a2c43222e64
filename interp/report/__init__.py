"""What is known of one model? One page, to read from top to bottom: gap, vocabulary, tokens, heads, causes.

- `sections`: which experiments, in which order, with which words; `run`: running what is not there yet.
- `tokens`: the table of glitch tokens, and what is known of each.
- `page`: the HTML that holds it all and needs nothing else.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.report.run import report as report

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"run": ["report"]})
