"""How do sequences reach the model's device? `model(ids)` takes ids from the CPU on any device."""

from __future__ import annotations

from typing import Any

from interp.offloading import is_spread


def take_from_anywhere(network: Any) -> None:
    """Make a network move its inputs to its own device; one that is spread over several devices does so already."""
    if not is_spread(network):
        network.register_forward_pre_hook(_moved, with_kwargs=True)


def _moved(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    place = next(network.parameters()).device

    def here(value: Any) -> Any:
        return value.to(place) if isinstance(value, torch.Tensor) and value.device != place else value

    return tuple(map(here, args)), {name: here(value) for name, value in kwargs.items()}
