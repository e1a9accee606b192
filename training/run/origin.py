"""Which code made a checkpoint or a figure."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout; in a wheel, of the package."""
PACKAGES = ("torch", "accelerate", "nvidia-dali-cuda130", "safetensors", "numpy")


def commit() -> str | None:
    """Return the git commit of this checkout, if it is one and there is git."""
    if not shutil.which("git"):
        return None
    asked = subprocess.run(
        ["git", "rev-parse", "--show-toplevel", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    top, _, head = asked.stdout.strip().rpartition("\n")
    # An installed package may lie within a repository of its user's, which says nothing of it.
    return head if asked.returncode == 0 and Path(top).resolve() == ROOT else None


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of these packages; by default, what a run depends on."""
    return {"python": platform.python_version(), **installed(*(packages or PACKAGES))}


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
