"""Names of classes in files: those of a checkout, so that runs of a wheel and a checkout are alike.

In a wheel model.method.MoCo is viewrank.model.method.MoCo (setup.py); in a checkout nothing is
different.
"""

from __future__ import annotations

from typing import Any

PREFIX = (__package__ or "").removesuffix("training")
"""What stands before our packages' names here: "viewrank." in a wheel, "" in a checkout."""
_PACKAGES = ("model", "pipeline", "training")
_KEY = "class_path"


def here(path: str) -> str:
    """Return the dotted name of a class, from a file, as Python imports it."""
    return PREFIX + path if path.partition(".")[0] in _PACKAGES else path


def stored(settings: Any) -> Any:
    """Return settings with classes' names as files have them.

    Args:
        settings: plain values; classes are below `class_path`.
    """
    if isinstance(settings, dict):
        return {
            key: value.removeprefix(PREFIX) if key == _KEY else stored(value)
            for key, value in settings.items()
        }
    return [stored(each) for each in settings] if isinstance(settings, list) else settings
