"""On which device does a model run, and how do sequences get there? `model(ids)` takes ids from any device."""

from __future__ import annotations

import os
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


def default_device() -> str:
    """Describe the device that models are loaded onto by default.

    Returns:
        What INTERP_DEVICE says; without it CUDA where there is a device, MPS where TransformerLens is told to take it,
        else the CPU. In parentheses the name of the accelerator, or the number of threads.
    """
    import torch

    device = os.environ.get("INTERP_DEVICE")
    if not device:
        mps = os.environ.get("TRANSFORMERLENS_ALLOW_MPS") == "1" and torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device == "cpu" else device
