"""The contract between work and workers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Report = Callable[[int, int], None]
"""Called before each sample of a task with how many are done, and the bytes written for them; with
-1 for how many while the task is at something else, such as an upload, that may take its time."""

Progress = Callable[[int, int, int], None]
"""Called now and then with a task's number, how many of its samples are done, and their bytes."""


class Totals:
    """Adds up what all tasks have done, by the progress of each."""

    def __init__(self) -> None:
        self.samples, self.bytes = 0, 0
        self._of_task: dict[int, tuple[int, int]] = {}

    def add(self, task: int, samples: int, size: int | None) -> None:
        """Take in a task's progress; its bytes stay as they were if the size is None."""
        samples_before, size_before = self._of_task.get(task, (0, 0))
        size = size_before if size is None else size
        self._of_task[task] = samples, size
        self.samples += samples - samples_before
        self.bytes += size - size_before


class Job(ABC):
    """What is to be done, apart from the tasks: picklable, and read by many workers at once.

    A task is a function of its arguments. It may be run again after its worker died, even while
    the first one still runs, so what it leaves behind must be complete or not there.
    """

    @abstractmethod
    def __call__(self, task: Any, report: Report) -> Any:
        """Do one task and return what is small enough to send."""

    def without(self, task: Any, done: int) -> Any:
        """Return the task without the sample that kills every worker, its number `done`.

        Raises:
            ValueError: There is no such task.
        """
        raise ValueError(f"sample {done} of task {task} stops every worker that reads it.")


class Engine(ABC):
    """Runs the tasks of a job."""

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Any], progress: Progress) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, result), as they are done.

        Raises:
            OSError, ValueError: What a task raised; no further task is begun.
        """


class Serial(Engine):
    """One task after the other in this process."""

    def run(self, job: Job, tasks: Sequence[Any], progress: Progress) -> Iterator[tuple[int, Any]]:
        for number, task in enumerate(tasks):

            def report(done: int, size: int, number: int = number) -> None:
                if done >= 0:
                    progress(number, done, size)

            yield number, job(task, report)
