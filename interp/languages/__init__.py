"""Which formal languages are models trained and measured on, in which what is right is known at every position?"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.languages.register import FlipFlop as FlipFlop, flip_flop as flip_flop

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"register": ["FlipFlop", "flip_flop"]})
