"""What of a protocol is done, and the state of what is under way: it goes on after a kill.

A protocol is a list of tasks with names and small results, such as one training with one rate:

    resumption = Resumption(trial)
    for rate in rates:
        accuracy = resumption.result(f"rate {rate:g}", lambda task: train(rate, task))

What is done is not done again. A task under way is told the state that it saved last; it goes on
there, so the results do not depend on when it was saved, or whether.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, TypeVar

import torch

from evaluation.protocol import Trial
from model.gather import gather_rows

SAVE_SECONDS = 30.0
"""Between two saves; a kill loses no more."""
_NAME = "state"
T = TypeVar("T")


class Task:
    """A part of a protocol that may take long.

    Args:
        state: what an earlier process saved of it; None begins at the beginning.
        due: whether to save now.
        save: saves.
    """

    def __init__(self, state: Any, due: Callable[[], bool], save: Callable[[Any], object]) -> None:
        self.state, self._due, self._save = state, due, save

    def after_step(self, state: Callable[[], Any]) -> None:
        """Save if it is time; every rank calls this after the same steps.

        Args:
            state: makes what is saved: nested state of tensors and plain values.
        """
        if self._due():
            self._save(state())


class Resumption:
    """The tasks of a protocol that are done, and the one under way.

    With one process Ctrl-C waits for the end of a step, which is then saved; a second one does not.

    Args:
        trial: keeps the states.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        saved = trial.kept.load(_NAME) or {"done": {}, "under_way": None, "state": None}
        self._done: dict[str, Any] = saved["done"]
        self._under_way: tuple[str | None, Any] = saved["under_way"], saved["state"]
        self._clock = _Clock(trial)

    def result(self, name: str, compute: Callable[[Task], T]) -> T:
        """Return what a task found, now or in an earlier process.

        Args:
            name: of the task; no other one has it.
            compute: does it. Its result is made of plain values.
        """
        if name in self._done:
            return self._done[name]
        (before, state), self._under_way = self._under_way, (None, None)
        with _HeldInterrupt(held=self._trial.world_size == 1) as interrupt:

            def due() -> bool:
                return self._clock.due() or interrupt.asked

            def save(state: Any) -> None:
                self._save(name, state)
                interrupt.obey()

            found = compute(Task(state if before == name else None, due, save))
            self._done[name] = found
            self._save(None, None)
        return found

    def _save(self, name: str | None, state: Any) -> None:
        self._trial.kept.save(_NAME, {"done": self._done, "under_way": name, "state": state})
        self._clock.saved()


class _Clock:
    """Tells when to save, alike on all ranks, which are seldom asked: that waits for all of them.

    Args:
        trial: whose ranks agree.
    """

    def __init__(self, trial: Trial) -> None:
        self._device, self._alone = trial.device, trial.world_size == 1
        self.saved()

    def saved(self) -> None:
        """Begin to wait again."""
        self._since, self._steps, self._look_at = time.monotonic(), 0, 1

    def due(self) -> bool:
        """Count a step, and return whether to save after it."""
        self._steps += 1
        if self._steps < self._look_at:
            return False
        seconds = self._agreed(time.monotonic() - self._since)
        left = SAVE_SECONDS - seconds
        if left <= 0:
            return True
        # As many steps as fit the time that is left; at most twice as many, if steps take longer.
        fit = int(left / max(seconds, 1e-9) * self._steps)
        self._look_at = self._steps + max(1, min(fit, self._steps))
        return False

    def _agreed(self, seconds: float) -> float:
        if self._alone:
            return seconds
        return gather_rows(torch.tensor([seconds], device=self._device)).min().item()


class _HeldInterrupt(AbstractContextManager["_HeldInterrupt"]):
    """Notes a first Ctrl-C instead of raising it, where one can be held.

    Args:
        held: whether to.
    """

    def __init__(self, *, held: bool) -> None:
        # Python has signals in the main thread alone; what others do with them stays theirs.
        main = threading.current_thread() is threading.main_thread()
        free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._held = held and main and free
        self.asked = False

    def __enter__(self) -> _HeldInterrupt:
        if self._held:
            self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._held:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.obey()

    def obey(self) -> None:
        """Raise it now, if there was one."""
        if self.asked:
            raise KeyboardInterrupt

    def _receive(self, _: int, __: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
