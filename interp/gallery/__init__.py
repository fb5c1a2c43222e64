"""How are the figures under `figures/` regenerated, and do the committed ones match the code?

`collection` lists them, `regeneration` makes them, `comparison` reports where two results or figures differ,
`verification` compares the committed ones with regenerated ones, `page` shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.gallery.collection import entries
    from interp.gallery.page import readme
    from interp.gallery.regeneration import regenerate
    from interp.gallery.verification import check

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "collection": ["entries"],
        "page": ["readme"],
        "regeneration": ["regenerate"],
        "verification": ["check"],
    },
)
