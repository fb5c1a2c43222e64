"""Which tokens of a vocabulary are under-trained? Three kinds of evidence, each beside its control.

`indicators` reads embedding rows, `calls` turns them into p-values and calls, `verification` asks the model to repeat the
token, with the `prompts` of the literature, and `truth` compares with exposure counts where these are known.
"""

from interp.undertrained.calls import FDR, Calls, called, calls, populations
from interp.undertrained.indicators import DEFAULT, INDICATORS, Indicator, Reference, embeddings, indicators, reference
from interp.undertrained.prompts import ARTICLE, PUBLISHED, Prompt
from interp.undertrained.verification import STEPS, THRESHOLD, max_probability, verify

__all__ = [
    "ARTICLE", "DEFAULT", "FDR", "INDICATORS", "PUBLISHED", "STEPS", "THRESHOLD", "Calls", "Indicator", "Prompt",
    "Reference", "called", "calls", "embeddings", "indicators", "max_probability", "populations", "reference", "verify",
]  # fmt: skip
