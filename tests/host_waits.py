"""Finds operators for whose result the host would wait for a GPU, where there is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh"}
WAIT |= {"_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}


class HostWaits(TorchDispatchMode):
    """Notes operators for which a GPU's host waits, or that leave the device.

    On tensors of the CPU too: so that a wait is found where there is no GPU.

    Args:
        refuse: raise an AssertionError at the first one instead.
    """

    def __init__(self, *, refuse: bool = False) -> None:
        super().__init__()
        self._refuse = refuse
        self.operators: list[str] = []
        """All so far."""
        self.found: list[str] = []
        """What waits, in words."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        self.operators.append(str(func))
        if wait := _wait(func, args, kwargs):
            assert not self._refuse, wait
            self.found.append(wait)
        return func(*args, **kwargs)


def _wait(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return why the host would wait for this operator; empty if it would not."""
    name = func.__name__.partition(".")[0]
    if name in WAIT:
        return f"{func} waits for the device"
    by_index = name in ("index", "index_put", "index_put_", "_index_put_impl_")
    if by_index and any(each is not None and each.dtype == torch.bool for each in args[1]):
        return f"{func} by a mask: its size is a value"
    if name in ("_to_copy", "copy_"):
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        places = {each.device.type for each in tensors}
        if kwargs.get("device") is not None:
            places.add(torch.device(kwargs["device"]).type)
        if len(places) > 1:
            return f"{func} moves a tensor between {places}"
    return ""
