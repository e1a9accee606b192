"""The free memory of a device, within the limits of this process's control groups."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.control_groups import OWN, ROOT, limiting


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can still be had, once tensors that are alive are left as they are."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *cgroups_free()])


def cgroups_free(root: Path = ROOT, own: Path = OWN) -> list[int]:
    """Return the free bytes of each control group (v1 or v2) that limits this process.

    A group's usage includes the page cache, which gives way.
    """
    free: list[int] = []
    for folder, version in limiting("memory", root, own):
        if version == 2:
            limit, usage, prefix = "memory.max", "memory.current", ""
        else:
            limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        try:
            allowed, used = ((folder / name).read_text().strip() for name in (limit, usage))
            rows = (folder / "memory.stat").read_text().splitlines()
        except OSError:  # no such group here, or the root, which has no limit
            continue
        if allowed != "max":
            bytes_of = {name: int(value) for name, value in (row.split() for row in rows)}
            cached = bytes_of[f"{prefix}active_file"] + bytes_of[f"{prefix}inactive_file"]
            free.append(int(allowed) - int(used) + cached)
    return free
