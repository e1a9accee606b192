"""Training time and throughput: evaluations and checkpoints stop the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Lap:
    """Steps and time since the lap before."""

    steps: int
    seconds: float
    data_wait: float
    """Share of that time in which training waited for data, 0 to 1."""
    loader_host: float
    """Share of it that this process spent in the loader: the same on the CPU, little on a GPU."""


class Stopwatch:
    """A stopwatch for training that can pause.

    Args:
        step: where the run starts.
        seconds: training time before that, of a run that is continued.
    """

    def __init__(self, *, step: int, seconds: float) -> None:
        self._begin = time.perf_counter() - seconds
        self._paused: float | None = None
        self._lap_step, self._lap_seconds = step, seconds
        self._lap_wait, self._lap_host = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        now = time.perf_counter() if self._paused is None else self._paused
        return now - self._begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        self._paused = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - self._paused
            self._paused = None

    def lap(self, *, step: int, wait: float, host: float) -> Lap:
        """End a lap.

        Args:
            step: steps done in all.
            wait: seconds that training has waited for data in all.
            host: seconds that this process has spent in the loader in all.
        """
        seconds = self.seconds
        lap = Lap(
            steps=step - self._lap_step,
            seconds=seconds - self._lap_seconds,
            data_wait=(wait - self._lap_wait) / (seconds - self._lap_seconds),
            loader_host=(host - self._lap_host) / (seconds - self._lap_seconds),
        )
        self._lap_step, self._lap_seconds = step, seconds
        self._lap_wait, self._lap_host = wait, host
        return lap
