"""How much of a device a run uses; each of these waits for it."""

from __future__ import annotations

import resource
from contextlib import suppress

import torch

GIB = 2**30


def memory_gib(device: torch.device) -> float:
    """Return the memory in use: of the device, DALI's buffers included, or of this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def utilization(device: torch.device) -> dict[str, float]:
    """Return the share of the last second in which the GPU computed, where it can be asked."""
    if device.type == "cuda":
        with suppress(Exception):  # NVML has errors of its own, on MIG slices for one
            return {"gpu_utilization": torch.cuda.utilization(device) / 100}
    return {}
