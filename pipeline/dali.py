"""DALI as the rest of this package sees it: its stubs miss constants and widen every result."""

from typing import Any

import nvidia.dali
import nvidia.dali.math
from nvidia.dali.data_node import DataNode as DataNode
from nvidia.dali.pipeline import Pipeline as Pipeline

fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types
math: Any = nvidia.dali.math
