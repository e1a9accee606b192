"""Processes of this machine; the work goes on if one of them dies.

Not concurrent.futures: one death breaks its whole pool, and it does not tell which sample was being
decoded. Here the task runs again, and a sample that kills its worker twice is named and left out.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from ctypes import c_longlong
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from shards.engine.engine import Engine, Job, Progress

_POLL = 0.2  # seconds between two looks at the workers' counters
_STUCK = 300.0  # seconds over one image, after which a worker counts as dead
_DEATHS = 3  # of one task, each at another sample: then the samples are not the reason


class LocalWorkers(Engine):
    """Worker processes that share the job's memory with this one (fork).

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}; expected 1 or more.")
        self.workers = workers

    def run(self, job: Job, tasks: Sequence[Any], progress: Progress) -> Iterator[tuple[int, Any]]:
        waiting = deque(_Attempt(number, task) for number, task in enumerate(tasks))
        workers = [_Worker(job) for _ in range(min(self.workers, len(tasks)))]
        try:
            while waiting or any(worker.attempt for worker in workers):
                for worker in workers:
                    if worker.attempt is None and waiting:
                        worker.begin(waiting.popleft())
                handles = [handle for worker in workers for handle in worker.handles()]
                connection.wait(handles, timeout=_POLL)
                for i, worker in enumerate(workers):
                    attempt = worker.attempt
                    if attempt is None:
                        continue
                    done, size = worker.counters()
                    if done >= 0:
                        progress(attempt.number, done, size)
                    answer = worker.answer()
                    if answer is not None:
                        worker.attempt = None
                        error, result = answer
                        if error is not None:
                            raise error
                        yield attempt.number, result
                    elif worker.is_stuck() or not worker.process.is_alive():
                        worker.end()
                        waiting.appendleft(attempt.after_death(job, worker))
                        workers[i] = _Worker(job)
        finally:
            for worker in workers:
                worker.end()


@dataclass
class _Attempt:
    """A task, and the samples at which its workers died so far."""

    number: int
    task: Any
    deaths: list[int] = field(default_factory=list)

    def after_death(self, job: Job, worker: "_Worker") -> "_Attempt":
        done, _ = worker.counters()
        if done >= 0 and done in self.deaths:
            return _Attempt(self.number, job.without(self.task, done))
        if len(self.deaths) == _DEATHS:
            code = worker.process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            raise OSError(
                f"workers keep ending {how}, each at another image. If the machine is short of "
                "memory, use fewer --workers. Complete shards stay, and the same command goes on."
            )
        return _Attempt(self.number, self.task, [*self.deaths, done])


class _Worker:
    """One process, the pipe to it, and its counters in shared memory."""

    def __init__(self, job: Job) -> None:
        # Forked, so that the job's lists are shared, not copied.
        context = multiprocessing.get_context("fork")
        self._counters: Any = context.RawArray(c_longlong, 2)
        self._pipe, theirs = context.Pipe()
        self.attempt: _Attempt | None = None
        self._moved = ((0, 0), time.monotonic())
        self.process = context.Process(
            target=_work, args=(job, theirs, self._counters, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()

    def begin(self, attempt: _Attempt) -> None:
        self._counters[:] = [0, 0]
        self._moved = ((0, 0), time.monotonic())
        self.attempt = attempt
        with contextlib.suppress(OSError):  # if it has just died, that is seen next
            self._pipe.send(attempt.task)

    def counters(self) -> tuple[int, int]:
        done, size = self._counters
        return done, size

    def is_stuck(self) -> bool:
        """Whether it has been over the same image for too long."""
        counters = self.counters()
        if counters != self._moved[0]:
            self._moved = (counters, time.monotonic())
        return counters[0] >= 0 and time.monotonic() - self._moved[1] > _STUCK

    def handles(self) -> list[Any]:
        return [self._pipe, self.process.sentinel] if self.attempt else []

    def answer(self) -> tuple[BaseException | None, Any] | None:
        try:
            return self._pipe.recv() if self._pipe.poll() else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)  # a process that waits for a dead disk cannot be killed
        self._pipe.close()  # closing twice does no harm


def _work(job: Job, pipe: Any, counters: Any, parent: int) -> None:
    """Do tasks until the process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Decoders write about damaged images to the terminal, past Python. The table has the reasons.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def leave_with_parent() -> None:
        if os.getppid() != parent:  # killed: nobody is left to write for
            os._exit(1)

    def report(done: int, size: int) -> None:
        counters[0], counters[1] = done, size
        leave_with_parent()

    while True:
        while not pipe.poll(1.0):
            leave_with_parent()
        task = pipe.recv()
        try:
            answer = None, job(task, report)
        except BaseException as error:
            error.add_note(traceback.format_exc())
            answer = _sendable(error), None
        pipe.send(answer)


def _sendable(error: BaseException) -> BaseException:
    """Return the error itself if it survives the pipe, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
