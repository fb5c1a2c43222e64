"""One page per model, made to be read from top to bottom and shared: the gap, the vocabulary, the tokens, the heads, the causes.

- `sections`: which experiments, in which order, with which words; `run`: running what is not there yet.
- `tokens`: the table of glitch tokens, and what is known of each.
- `compare`: several models side by side.
- `page`: the HTML that holds it all and needs nothing else.
"""

from interp.report.compare import compare
from interp.report.run import report

__all__ = ["compare", "report"]
