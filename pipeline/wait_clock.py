"""How long a device stood still for something, without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch


class WaitClock:
    """Adds up the time spent inside its `with` blocks, as the device sees it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._open: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._begin: Any = None

    def __enter__(self) -> None:
        self._begin = self._now()

    def __exit__(self, *_: object) -> None:
        end = self._now()
        if self._device.type == "cuda":
            self._open.append((self._begin, end))
        else:
            self._seconds += end - self._begin

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> float:
        """Return the time so far; on a GPU, of the blocks that it has passed."""
        # Only events that the device has passed: later ones would have to be waited for.
        while self._open and self._open[0][1].query():
            begin, end = self._open.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds
