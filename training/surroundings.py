"""What a measurement depends on: machine, versions, commit; part of every result."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.run.origin import commit


def surroundings(*packages: str) -> dict[str, Any]:
    """Return date, commit, hardware and load, with the versions of these packages."""
    cpu = re.search(r"model name\s+: (.*)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(int(total[1]) / 2**20, 1) if total else None,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def without_absolute_paths(value: Any) -> Any:
    """Return it with paths below the working folder relative, and only the end of all others."""
    if isinstance(value, dict):
        return {name: without_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    return " ".join(_relative(word) for word in value.split(" "))


def _relative(word: str) -> str:
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
