"""What should stand before a block of tokens? Tried on ordinary ones: behind which token are they copied best?"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.first_token.trial import FirstToken as FirstToken, facts_of as facts_of, first_token as first_token

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"trial": ["FirstToken", "facts_of", "first_token"]}
)
