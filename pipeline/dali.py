"""DALI as the rest of this package sees it: its stubs miss constants and widen every result."""

from typing import Any

import nvidia.dali
import nvidia.dali.backend
import nvidia.dali.math
from nvidia.dali.data_node import DataNode as DataNode
from nvidia.dali.pipeline import Pipeline as Pipeline

fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types
math: Any = nvidia.dali.math
backend: Any = nvidia.dali.backend


def driver_begun() -> bool:
    """Whether this process has begun to use CUDA: one that it forks could not use it then."""
    return backend.IsDriverInitialized()
