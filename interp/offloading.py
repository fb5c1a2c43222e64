"""Where are the weights of a model that accelerate has spread over devices, and what do they hold?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_spread(network: torch.nn.Module) -> bool:
    """Whether a network is spread over several devices, or partly on disk."""
    places = {str(place) for place in (getattr(network, "hf_device_map", None) or {}).values()}
    return len(places) > 1 or "disk" in places


def loaded_weights(network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by name, one module at a time; those on disk are read."""
    if not is_spread(network):
        yield from network.named_parameters()
        return
    from accelerate.utils import align_module_device

    seen: set[int] = set()
    for path, part in network.named_modules():
        own = {id(weight) for weight in part.parameters(recurse=False)}
        if not own <= seen:
            seen |= own
            with align_module_device(part):
                yield from part.named_parameters(path, recurse=False)
