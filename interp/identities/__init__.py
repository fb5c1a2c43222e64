"""Do the identities that an analysis rests on hold on this model? `tested.py` tests each when it is needed."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.identities.tested import (
        ATTENTION_DIFFERS as ATTENTION_DIFFERS,
        IDENTITIES as IDENTITIES,
        check as check,
        outcome as outcome,
        reason_against as reason_against,
        require as require,
        require_published as require_published,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tested": [
            "ATTENTION_DIFFERS",
            "IDENTITIES",
            "check",
            "outcome",
            "reason_against",
            "require",
            "require_published",
        ],
    },
)
