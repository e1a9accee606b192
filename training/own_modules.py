"""A user's own classes: modules that the environment names are imported, so recipes may name them.

    VIEWRANK_MODULES=mine.py accelerate launch train.py --config … --method.objective mine.TopAP

A recipe may be anybody's, so that it can name only classes that are imported already; what is
imported besides is said by who starts the program. All commands read the variable: a run whose
encoder is a user's own is evaluated, exported and continued with it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

MODULES = "VIEWRANK_MODULES"
"""The environment variable: files ending in .py, or modules' dotted names, parted by commas."""


def import_own() -> list[ModuleType]:
    """Import the modules that the environment names, once, and return them.

    Raises:
        ValueError: one cannot be imported; why.
    """
    names = (each.strip() for each in os.environ.get(MODULES, "").split(","))
    return [_import(name) for name in names if name]


def _import(name: str) -> ModuleType:
    module = name
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise ValueError(f"{MODULES} names {name}, but there is no such file.")
        module = path.stem
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # behind ours: its model.py is not to hide our model
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None or Path(found.origin).resolve() != path:
            raise ValueError(
                f"{MODULES} names {name}, but import {module} finds another module of that name. "
                "Give the file another one."
            )
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"{MODULES} names {name}, which cannot be imported: {type(error).__name__}: {error}. "
            "It takes files ending in .py and modules' dotted names, parted by commas."
        ) from error
