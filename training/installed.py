"""A package that is not installed: one line with the command that installs it, and no traceback.

Commands import this file before all others, because most packages are imported at the top of files:
it answers an import that fails there. `training.command` answers those that fail later.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import TracebackType

OWN = ("shards", "pipeline", "model", "training", "evaluation", "tools", "train", "viewrank")
EXTRAS = {
    "report": ("jinja2", "plotly", "umap"),
    "disc21": ("h5py",),
    "detection": ("pycocotools",),
    "export": ("onnx", "onnxscript", "onnxruntime", "transformers"),
    "peers": ("matplotlib", "kornia", "lightly"),
}
"""Packages of an optional group of pyproject.toml, by the group, as they are imported."""
TRACEBACK = "VIEWRANK_TRACEBACK"
"""The environment variable that asks for tracebacks."""


def require(*names: str) -> None:
    """Refuse to begin without packages that are imported later.

    Args:
        names: as they are imported.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # nor is the package that it is in
            found = None
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def remedy(error: BaseException | None) -> str:
    """Return which package is missing and how to get it; "" if the error says nothing of that."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    if error.name.partition(".")[0] in OWN:  # a defect of ours
        return ""
    missing = f"the package {error.name} is not installed here ({sys.executable}). In viewrank's "
    for extra, names in EXTRAS.items():
        if error.name.partition(".")[0] in names:
            return f"{missing}folder, uv pip install -e '.[{extra}]' installs it."
    return (
        f"{missing}folder, uv pip install -e '.[cuda13]' installs all that it needs (cuda12 for "
        "drivers of CUDA 12); where make demo or make test ran, source .venv/bin/activate."
    )


def _answer(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an error that nothing has caught; Python's `sys.excepthook`."""
    line = remedy(error)
    if not line or os.environ.get(TRACEBACK):
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stderr.write(f"error: {line}\n")
    raise SystemExit(2)


sys.excepthook = _answer
