"""When to leave the loop early: a signal or the time limit, agreed between all ranks."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from types import FrameType

from ..launch import launched

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TIME = 1  # among signals' numbers: 1, SIGHUP, is none that is caught here


class Stop:
    """Turns signals into a wish, on which the ranks agree through `training.run.ranks`.

    The first signal asks for a checkpoint and a clean end; a second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self._signal = 0
        for number in SIGNALS:
            signal.signal(number, self._receive)
        if launched():
            _follow_parent()

    def wish(self, *, out_of_time: bool) -> int:
        """Return 0 to go on, the number of a signal to obey, or TIME; a signal goes first.

        Args:
            out_of_time: the time limit is over, by the one clock that counts.
        """
        return self._signal or (TIME if out_of_time else 0)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number


def _follow_parent() -> None:
    """Have the kernel send SIGTERM when the launcher dies: no run outlives it unseen."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
