"""A few numbers that the processes of a run exchange at every step, without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist


class Agreement:
    """A small message between the hosts: sent at one step, read at the next.

    Neither the device nor the step waits for it, and all ranks read the same at the same step.

    Args:
        values: how many numbers it has.
        timeout: how long one rank waits for another; else the backend's own.
    """

    def __init__(self, values: int, timeout: timedelta | None = None) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self._group: Any = None
        if distributed:
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._message = torch.zeros(values, dtype=torch.int64)
        self._sent: dist.Work | None = None

    def exchange(self, mine: Sequence[int]) -> list[int]:
        """Return the largest of each number that any rank gave a step ago, at first zeros.

        A single process gets its own numbers. Numbers that are not given are zeros.
        """
        if self._group is None:
            return list(mine)
        said = self._receive()
        self._message.zero_()[: len(mine)] = torch.tensor(mine)
        self._sent = dist.all_reduce(
            self._message,
            op=cast(dist.ReduceOp, dist.ReduceOp.MAX),
            group=self._group,
            async_op=True,
        )
        return said

    def agree(self, mine: Sequence[int]) -> list[int]:
        """Return the largest of each number that any rank gives now; waits for all of them.

        An agreement that exchanges cannot agree too: it would take a message that is under way.
        """
        if self._group is None:
            return list(mine)
        assert self._sent is None, "a message is under way"
        self.exchange(mine)
        return self._receive()

    def _receive(self) -> list[int]:
        if self._sent is None:
            return [0] * len(self._message)
        self._sent.wait()
        self._sent = None
        return self._message.tolist()
