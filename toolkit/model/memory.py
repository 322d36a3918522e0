"""Memory of this machine and of its accelerators, in bytes."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]
import torch


def accelerators() -> list[tuple[torch.device, int]]:
    """The accelerators of this machine, each with the memory that is free on it."""
    if torch.cuda.is_available():
        found = [torch.device("cuda", at) for at in range(torch.cuda.device_count())]
    else:
        found = [torch.device("mps")] if torch.backends.mps.is_available() else []
    return [(device, free_memory(device)) for device in found]


def free_memory(device: torch.device) -> int:
    """What is free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)


def all_memory(device: torch.device) -> int:
    """What a device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return int(psutil.virtual_memory().total)
