"""The free memory of a device, within the limits of this process's control groups."""

from __future__ import annotations

from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can still be had, once tensors that are alive are left as they are."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *cgroups_free()])


def cgroups_free(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Return the free bytes of each control group (v1 or v2) that limits this process.

    A group's usage includes the page cache, which gives way.
    """
    free: list[int] = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, usage, prefix = root, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):  # a container may see its own group as the root
            try:
                allowed, used = ((folder / name).read_text().strip() for name in (limit, usage))
                rows = (folder / "memory.stat").read_text().splitlines()
            except OSError:  # no such group here, or the root, which has no limit
                allowed, used, rows = "max", "", []
            if allowed != "max":
                bytes_of = {name: int(value) for name, value in (row.split() for row in rows)}
                cached = bytes_of[f"{prefix}active_file"] + bytes_of[f"{prefix}inactive_file"]
                free.append(int(allowed) - int(used) + cached)
            if folder == base:
                break
    return free
