"""DALI as the rest of this package sees it: its stubs miss constants and widen every result.

It is imported when it is first used, so that `--help` does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

PACKAGE = "nvidia.dali"

if TYPE_CHECKING:
    import torch
    from nvidia.dali.data_node import DataNode as DataNode
    from nvidia.dali.pipeline import Pipeline as Pipeline
else:
    DataNode = Any  # at run time, only annotations name it

    def Pipeline(**settings: Any) -> Any:
        """Return a pipeline; nothing subclasses it."""
        return import_module("nvidia.dali.pipeline").Pipeline(**settings)


class _Module:
    """A module that is imported when one of its attributes is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # jsonargparse asks every global of a module for some
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)


fn: Any = _Module("nvidia.dali.fn")
types: Any = _Module("nvidia.dali.types")
math: Any = _Module("nvidia.dali.math")
backend: Any = _Module("nvidia.dali.backend")


def number_of(device: torch.device) -> int | None:
    """Return which GPU a pipeline is to work on; None is the CPU. Accelerate's has no number."""
    if device.type != "cuda":
        return None
    import torch  # here: who only asks for the package's name does without

    return torch.cuda.current_device() if device.index is None else device.index


def driver_begun() -> bool:
    """Whether this process has begun to use CUDA: one that it forks could not use it then."""
    return backend.IsDriverInitialized()
