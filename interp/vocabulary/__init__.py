"""What is each entry of a vocabulary, and can any text produce it? `census` says so, with a witness or a proof.

`table` has the census, `anatomy` takes the tokenizer apart, `utf8` knows which bytes may stand where, `witness`
searches and proves, `roundtrip` has the six published categories.

Example:
    >>> interp.vocabulary.KINDS
    ('byte', 'fragment', 'text', 'special', 'added', 'beyond')
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.vocabulary.table import (
        KINDS as KINDS,
        census as census,
        load_tokenizer as load_tokenizer,
        provenance as provenance,
        published_tokenizer as published_tokenizer,
        save as save,
        summary as summary,
        survey as survey,
        text_ids as text_ids,
    )
    from interp.vocabulary.witness import IMPOSSIBLE as IMPOSSIBLE, REACHABLE as REACHABLE, UNKNOWN as UNKNOWN

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "table": [
            "KINDS",
            "census",
            "load_tokenizer",
            "provenance",
            "published_tokenizer",
            "save",
            "summary",
            "survey",
            "text_ids",
        ],
        "witness": ["IMPOSSIBLE", "REACHABLE", "UNKNOWN"],
    },
)
