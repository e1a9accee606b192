"""How busy other programs kept the processor's cores while a child process ran; Linux only."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards import durable

DISTURBED = 0.05
"""Share of the cores' time, taken by other programs, from which on a run was disturbed."""
_STAT = Path("/proc/stat")


@contextmanager
def measured(path: Path) -> Iterator[None]:
    """Measure while children run inside and end, and add what is found to a JSON file.

    Args:
        path: of the file; one entry for each time that a run was begun or continued.
    """
    begin, busy, own = time.monotonic(), _busy_seconds(), _children_seconds()
    try:
        yield
    finally:
        mine = _children_seconds() - own
        entry = {
            "core_seconds": (time.monotonic() - begin) * len(os.sched_getaffinity(0)),
            "others": max(0.0, _busy_seconds() - busy - mine),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_json(path, [*_entries(path), entry])


def others(path: Path) -> float | None:
    """Return the share of the cores' time that other programs took, 0 to 1; None if not known."""
    entries = _entries(path)
    whole = sum(entry["core_seconds"] for entry in entries)
    return sum(entry["others"] for entry in entries) / whole if whole else None


def _entries(path: Path) -> list[dict[str, float]]:
    try:
        return json.loads(durable.read(path))
    except (FileNotFoundError, ValueError):  # none yet, or one that was cut off
        return []


def _busy_seconds() -> float:
    """Return the seconds that this process's cores have worked for any program, or for the host."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in _STAT.read_text().splitlines() if _STAT.exists() else ():
        name, *values = line.split()
        if name in mine:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, values)
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    """Return the processor time of all descendants that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
