"""When to leave the loop early: a signal or the time limit, agreed between all ranks."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist

from .launch import launched

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TIME = -1


class Stop:
    """Turns signals into a decision that all ranks take at the same step.

    The first signal asks for a checkpoint and a clean end; a second Ctrl-C ends at once. Ranks
    agree through a small message between the hosts, sent at one step and read at the next, so that
    neither the device nor the step waits for it.
    """

    def __init__(self) -> None:
        self._wish = 0  # a signal's number, TIME, or 0
        distributed = dist.is_available() and dist.is_initialized()
        self._group: Any = dist.new_group(backend="gloo") if distributed else None
        self._message = torch.zeros(1, dtype=torch.int32)
        self._sent: dist.Work | None = None
        for number in SIGNALS:
            signal.signal(number, self._receive)
        if launched():
            _follow_parent()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._wish == signal.SIGINT:
            raise KeyboardInterrupt
        if self._wish <= 0:
            self._wish = number

    def after_step(self, *, out_of_time: bool) -> int:
        """Return 0 to go on, TIME, or the number of the signal to obey; alike on every rank.

        Args:
            out_of_time: the time limit is over, by this rank's clock; rank 0's is what counts.
        """
        if out_of_time and not self._wish:
            self._wish = TIME
        if self._group is None:
            return self._wish
        decision = 0
        if self._sent is not None:
            self._sent.wait()
            decision = int(self._message[0])
            if decision:
                return TIME if decision == 1 else decision
        # A signal to any rank counts; 1 is no signal that is caught here.
        mine = self._wish if self._wish > 0 else int(self._wish == TIME and dist.get_rank() == 0)
        self._message[0] = mine
        self._sent = dist.all_reduce(
            self._message,
            op=cast(dist.ReduceOp, dist.ReduceOp.MAX),
            group=self._group,
            async_op=True,
        )
        return 0


def _follow_parent() -> None:
    """Have the kernel send SIGTERM when the launcher dies: no run outlives it unseen."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
