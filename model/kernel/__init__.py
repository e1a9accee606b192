"""Fused GPU kernels behind an objective, each with a form in PyTorch's operators that defines it.

The only place of `model` that imports Triton, and nothing imports its files before a GPU is used.
"""

from importlib.util import find_spec

import torch


def runs_on(device: torch.device) -> bool:
    """Return whether the kernels run on this device: an NVIDIA GPU from 2020 on, and Triton.

    They are also taken for the fake tensors of a GPU that is not there.
    """
    if device.type != "cuda" or torch.version.hip or find_spec("triton") is None:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
