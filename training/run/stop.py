"""When to leave the loop early: a signal or the time limit, agreed between all ranks."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TIME = 1  # beside signals' numbers: 1 is SIGHUP, which is not caught here


class Stop:
    """Turns signals into a request, on which the ranks agree through `training.run.agreement`.

    The first signal asks for a checkpoint and a clean end; a second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._interrupted = False
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

    def end_at_once(self) -> None:
        """End the process at any signal from here on, and now if one came that nobody obeyed.

        That is for the time after the last checkpoint, when nothing would be lost.

        Raises:
            SystemExit: with 128 + the signal's number.
        """
        for number in SIGNALS:
            signal.signal(number, _leave)
        if self._signal:
            _leave(self._signal, None)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self._signal = self._signal or number


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
