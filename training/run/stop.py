"""When to leave the loop early: a signal or the time limit, agreed between all ranks."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TIME = 1  # beside signals' numbers: 1 is SIGHUP, which is not caught here


class Stop:
    """Turns signals into a request, on which the ranks agree through `training.run.agreement`.

    The first signal asks for a checkpoint and a clean end; a second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self._signal = 0
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def request(self, *, out_of_time: bool) -> int:
        """Return 0 to go on, the number of a signal to obey, or TIME; a signal goes first.

        Args:
            out_of_time: the time limit is over, by the one clock that counts.
        """
        return self._signal or (TIME if out_of_time else 0)

    def message(self, number: int, step: int, run: Path) -> str:
        """Return for people, after a signal, what was saved and how to go on."""
        name = signal.Signals(number).name
        return f"{name}: saved step {step:,} in {run}; the same command continues it"

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number
