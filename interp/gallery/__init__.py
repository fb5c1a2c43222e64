"""How are all figures under `figures/` made again, and are those that are committed what the code makes?

`entries` lists them, `making` makes them, `comparing` says where two of a kind part, `checking` compares what is there with what is
made, `page` shows them.
"""

from __future__ import annotations

from interp.gallery.checking import check
from interp.gallery.comparing import Tolerance
from interp.gallery.entries import GALLERY, Entry, Figure
from interp.gallery.making import regenerate
from interp.gallery.page import readme

__all__ = ["GALLERY", "Entry", "Figure", "Tolerance", "check", "readme", "regenerate"]
