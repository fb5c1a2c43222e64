"""How are all figures under `figures/` made again, and are those that are committed what the code makes?

`collection` lists them, `regeneration` makes them, `comparison` says where two of a kind differ, `verification`
compares what is there with what is made, `page` shows them.
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
