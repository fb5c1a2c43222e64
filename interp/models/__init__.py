"""Which model is it, where did it come from, and what is known about its training?

`load` turns a bundled or fetched name, a hub name, a local Hugging Face directory or a GGUF file into TransformerLens's
`TransformerBridge`.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.models.devices import default_device
    from interp.models.identity import LOADED, exposure_of, facts, location, model_name, origin, weights_state
    from interp.models.loading import Weights, load, version_of
    from interp.models.networks import folded, is_folded, plain_network
    from interp.models.package_index import PUBLIC, clear, fetch, kept
    from interp.models.reference import published_network
    from interp.models.rounding import row_rounding
    from interp.models.sources import TOKENIZER_FILES, hub_source, located, split_revision, weight_bytes
    from interp.models.tokenizers import (
        added_by_template,
        bos_id,
        boundary_ids,
        encoded,
        encoded_inside,
        entry,
        eos_id,
        load_tokenizer,
        needed_tokenizer,
        published_tokenizer,
        single_token,
        token_text,
        token_texts,
        tokenizer_state,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "devices": ["default_device"],
        "identity": ["LOADED", "exposure_of", "facts", "location", "model_name", "origin", "weights_state"],
        "loading": ["Weights", "load", "version_of"],
        "networks": ["folded", "is_folded", "plain_network"],
        "package_index": ["PUBLIC", "clear", "fetch", "kept"],
        "reference": ["published_network"],
        "rounding": ["row_rounding"],
        "sources": ["TOKENIZER_FILES", "hub_source", "located", "split_revision", "weight_bytes"],
        "tokenizers": [
            "added_by_template",
            "bos_id",
            "boundary_ids",
            "encoded",
            "encoded_inside",
            "entry",
            "eos_id",
            "load_tokenizer",
            "needed_tokenizer",
            "published_tokenizer",
            "single_token",
            "token_text",
            "token_texts",
            "tokenizer_state",
        ],
    },
)
