"""Which tokens of a vocabulary are under-trained? Three kinds of evidence, each beside its control.

`embedding_rows` has the indicators, `detection` turns them into p-values and detections, `verification` asks the
model to repeat the token, with the `prompts` of the literature, and `evaluation` compares with exposure counts, if
known.

Example:
    >>> found = interp.undertrained.detected(interp.load("organism"))
    >>> len(found) > 0
    True
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.undertrained.detection import (
        FDR as FDR,
        Detection as Detection,
        by_indicator as by_indicator,
        detect as detect,
        detected as detected,
        populations as populations,
        to_ask as to_ask,
    )
    from interp.undertrained.embedding_rows import (
        DEFAULT as DEFAULT,
        INDICATORS as INDICATORS,
        Indicator as Indicator,
        Reference as Reference,
        embeddings as embeddings,
        indicators as indicators,
        model_indicators as model_indicators,
        reference as reference,
    )
    from interp.undertrained.evaluation import MEASURES as MEASURES, detection_scores as detection_scores
    from interp.undertrained.glitch import (
        Asked as Asked,
        asked_already as asked_already,
        glitch_tokens as glitch_tokens,
    )
    from interp.undertrained.prompts import ARTICLE as ARTICLE, PUBLISHED as PUBLISHED, Prompt as Prompt
    from interp.undertrained.verification import (
        CHAT as CHAT,
        STEPS as STEPS,
        THRESHOLD as THRESHOLD,
        max_probability as max_probability,
        verify as verify,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "detection": ["FDR", "Detection", "by_indicator", "detect", "detected", "populations", "to_ask"],
        "embedding_rows": [
            "DEFAULT",
            "INDICATORS",
            "Indicator",
            "Reference",
            "embeddings",
            "indicators",
            "model_indicators",
            "reference",
        ],
        "evaluation": ["MEASURES", "detection_scores"],
        "glitch": ["Asked", "asked_already", "glitch_tokens"],
        "prompts": ["ARTICLE", "PUBLISHED", "Prompt"],
        "verification": ["CHAT", "STEPS", "THRESHOLD", "max_probability", "verify"],
    },
)
