"""What a measurement depends on: machine, versions, commit; part of every result."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from training.run.origin import commit, installed


def surroundings(*packages: str) -> dict[str, Any]:
    """Return date, commit, hardware and load, with the versions of these packages, if installed."""
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(int(total[1]) / 2**20, 1) if total else None,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": installed(*packages),
    }


def _cpu() -> str:
    """Return the processor's name and generation: "AMD EPYC" alone may be of any year."""
    text = Path("/proc/cpuinfo").read_text()
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    name = facts.get("model name", platform.processor())
    more = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in facts if key != "model name"]
    return f"{name} ({', '.join(more)})" if more else name


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
