"""The contract between work and workers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Report = Callable[[int, int], None]
"""A task calls it before each sample with the number of samples done and the bytes written for
them. The number is -1 during other work that may take long, such as an upload."""

Progress = Callable[[int, int, int], None]
"""Called now and then with a task's number, the number of its samples done, and their bytes."""


class Totals:
    """Adds up what all tasks have done, by the progress of each."""

    def __init__(self) -> None:
        self.samples, self.bytes = 0, 0
        self._of_task: dict[int, tuple[int, int]] = {}

    def add(self, task: int, samples: int, size: int | None) -> None:
        """Take in a task's progress; a size of None leaves its bytes unchanged."""
        samples_before, size_before = self._of_task.get(task, (0, 0))
        size = size_before if size is None else size
        self._of_task[task] = samples, size
        self.samples += samples - samples_before
        self.bytes += size - size_before


class Job(ABC):
    """The work of all tasks: picklable, and read by many workers at once.

    The result of a task depends on its arguments alone. A task may run again after its worker died,
    even while the first run still goes on. So each file that it leaves must be complete.
    """

    @abstractmethod
    def __call__(self, task: Any, report: Report) -> Any:
        """Do one task and return a result that is small enough to send."""

    def without(self, task: Any, done: int) -> Any:
        """Return the task without its sample number `done`, which kills every worker.

        Raises:
            ValueError: the job cannot leave a sample out.
        """
        raise ValueError(
            f"sample {done} of {task!s:.40} ends every worker that reads it: the decoder does not "
            "survive it. Take it out of the source."
        )


class Engine(ABC):
    """Runs the tasks of a job."""

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Any], progress: Progress) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, result), in the order in which tasks end.

        Raises:
            OSError, ValueError: A task raised it; no further task is begun.
        """


class Serial(Engine):
    """One task after the other in this process."""

    def run(self, job: Job, tasks: Sequence[Any], progress: Progress) -> Iterator[tuple[int, Any]]:
        for number, task in enumerate(tasks):

            def report(done: int, size: int, number: int = number) -> None:
                if done >= 0:
                    progress(number, done, size)

            yield number, job(task, report)
