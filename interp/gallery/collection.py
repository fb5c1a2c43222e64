"""Which figures are in the gallery, what does each show, what is its published counterpart, and which request makes it?

`entries` collects the `GALLERY` of every view of this package. Nothing is registered.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from interp.exhibits import CHAPTERS, GalleryEntry

PACKAGE = Path(__file__).resolve().parents[1]


def entries() -> tuple[GalleryEntry, ...]:
    """Every entry of the gallery, sorted as on its page: by chapter, then by order."""
    modules = (
        importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("view.py"))
    )
    found = [entry for module in modules for entry in getattr(module, "GALLERY", ())]
    return tuple(sorted(found, key=lambda entry: (CHAPTERS.index(entry.chapter), entry.order)))
