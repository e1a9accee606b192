"""A protocol goes on from what it saved; when it saves changes nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from evaluation import resumption
from evaluation.protocol import Trial
from evaluation.resumption import Resumption, Task


class InMemory:
    """Implements `Kept`; ends the process, as it were, after some saves."""

    def __init__(self, folder: Path, *, killed_after: int | None = None) -> None:
        self.folder, self.left = folder, killed_after
        self.states: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        return self.states.get(name)

    def save(self, name: str, state: Any) -> None:
        self.states[name] = state
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise Killed


class Killed(Exception):
    pass


class Alone:
    """As much of a trial as keeping states asks for."""

    world_size, device = 1, None

    def __init__(self, kept: InMemory) -> None:
        self.kept = kept


def counted(upto: int, done: list[int], *, at: Callable[[int], object] = lambda _: None) -> Any:
    """Return a task that counts, and notes each number that it counts."""

    def compute(task: Task) -> int:
        number = task.state or 0
        while number < upto:
            number += 1
            done.append(number)
            at(number)
            task.after_step(lambda reached=number: reached)
        return number

    return compute


def both(kept: InMemory, done: list[int], **more: Any) -> list[int]:
    found = Resumption(cast(Trial, Alone(kept)))
    return [found.result("a", counted(3, done)), found.result("b", counted(4, done, **more))]


def test_no_step_is_done_twice_wherever_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumption, "SAVE_SECONDS", 0.0)
    for saves in range(1, 9):
        kept = InMemory(tmp_path, killed_after=saves)
        done: list[int] = []
        with pytest.raises(Killed):
            both(kept, done)
        assert both(kept, done) == [3, 4]
        assert done == [1, 2, 3, 1, 2, 3, 4]
        assert both(kept, done) == [3, 4] and len(done) == 7, "all of it is kept"


def test_it_saves_as_seldom_as_it_is_told_though_steps_become_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved = [0.0], []
    monkeypatch.setattr(resumption.time, "monotonic", lambda: clock[0])

    def pass_time(number: int) -> None:
        clock[0] += 0.01 if number < 1000 else 10.0

    class Timed(InMemory):
        def save(self, name: str, state: Any) -> None:
            super().save(name, state)
            saved.append(clock[0])

    found = Resumption(cast(Trial, Alone(Timed(tmp_path))))
    found.result("slow", counted(1060, [], at=pass_time))
    gaps = [after - before for before, after in zip([0.0, *saved], saved, strict=False)]
    assert len(saved) > 10 and min(gaps[:-1]) >= resumption.SAVE_SECONDS
    assert sorted(gaps)[-2] < 3 * resumption.SAVE_SECONDS


def test_ctrl_c_ends_after_the_step_which_is_saved(tmp_path: Path) -> None:
    kept, done = InMemory(tmp_path), []

    def press(number: int) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        both(kept, done, at=press)
    assert done == [1, 2, 3, 1, 2]
    assert both(kept, done) == [3, 4] and done == [1, 2, 3, 1, 2, 3, 4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
