"""The control groups of this process (Linux), which let it have a part of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limiting(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[Path, int]]:
    """Yield the folder and version, 1 or 2, of each group that may limit this process.

    From the innermost out; a folder need not exist, or hold limits: a container may see its own
    group as the root.

    Args:
        controller: of what they limit, such as memory or cpu.
        root: where the groups are mounted.
        own: file that names this process's.
    """
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, version = root, 2
        elif controller in controllers.split(","):
            base, version = root / controller, 1
        else:
            continue
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield folder, version
            if folder == base:
                break


def cores(root: Path = ROOT, own: Path = OWN) -> int:
    """Return how many cores this process may keep busy: by its affinity, and its groups' quotas.

    Of a quota such as one and a half, that is two.
    """
    found = len(os.sched_getaffinity(0))
    for folder, version in limiting("cpu", root, own):
        names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
        except OSError:  # no such group here, or the root, which has no limit
            continue
        if quota not in ("max", "-1"):
            found = min(found, max(1, math.ceil(int(quota) / int(period))))
    return found
