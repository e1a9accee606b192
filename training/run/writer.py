"""Checkpoints written beside training: the step loop pays for a copy in host memory, no more.

    step loop        copy ─▶ next steps …                          ┐ every rank its own part
    a thread              └▶ serialise ─▶ write ─▶ fsync ─▶ done   ┘
    all ranks, with every step                              └▶ all done? ─▶ rank 0: record, rename

A full or lost disk does not end training: the checkpoint is given up, training goes on, and the
next checkpoint tries again. Only the last one, of a run or before a stop, must succeed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from training.run import checkpoint, state_file
from training.run.agreement import Agreement

_NOT_SAVED = (
    "step {:,} could not be saved; training goes on, and what was saved before is untouched"
)


class Writer:
    """Writes a run's checkpoints, one at a time.

    Args:
        run: the run's folder, which this run has for itself.
        rank: this process.
        facts: for the record of every checkpoint: world_size, machine, versions.
        keep: how many of the newest stay.
        keep_every: those of steps that this divides stay too; 0, no others.
    """

    def __init__(
        self, run: Path, *, rank: int, facts: Mapping[str, Any], keep: int, keep_every: int = 0
    ) -> None:
        self._run, self._rank, self._facts = run, rank, dict(facts)
        self._keep, self._keep_every = keep, keep_every
        self._open = 0  # the step that is being saved, 0 for none
        self._seconds = 0.0
        self._finished, self._failed, self._committed = 0, 0, 0  # steps
        self._thread: Thread | None = None
        self._news: list[str] = []
        self._refused: OSError | None = None  # why this process's last save failed
        self._defect: Exception | None = None

    def save(
        self, step: int, seconds: float, parts: Mapping[str, Any], agreement: Agreement
    ) -> None:
        """Copy the parts of this process, and start to write them.

        Every rank calls this at the same step. If the checkpoint before is not on the disk yet,
        this waits for it: there is memory for one.

        Args:
            step: number of updates done, above 0.
            seconds: training time so far.
            parts: nested state by file name.
            agreement: how the processes agree.
        """
        self.settle(agreement)
        self._open, self._seconds, self._refused = step, seconds, None
        copies = {name: state_file.to_host(state) for name, state in parts.items()}
        copied = None
        if torch.cuda.is_initialized():  # a CPU's run leaves the GPU alone
            copied = torch.cuda.Event()
            copied.record()
        self._start(self._write, step, copies, copied)

    def status(self) -> tuple[int, int]:
        """Return what the other ranks must know at the next step; see `advance`."""
        return -self._finished, self._failed

    def advance(self, statuses: Sequence[int]) -> list[str]:
        """Complete or give up the open checkpoint, and return news for people.

        Args:
            statuses: the largest of each number of `status`, over all ranks.
        """
        finished, failed = -statuses[0], statuses[1]
        if self._open and failed >= self._open:
            self._wait()
            if self._rank == 0:
                checkpoint.abandon(self._run, self._open)
                self._news.append(_NOT_SAVED.format(self._open))
            self._open = 0
        elif self._open and finished >= self._open:
            step, self._open = self._open, 0
            if self._rank == 0:
                self._wait()
                self._start(self._commit, step)
        news, self._news = self._news, []
        return news

    def settle(self, agreement: Agreement) -> int:
        """Wait until what is being saved is on the disk; return the newest step that is.

        Every rank calls this at the same step.
        """
        self._wait()
        if self._open:
            self._news = self.advance(agreement.agree(self.status()))
            self._wait()
        return agreement.agree([self._committed])[0]  # rank 0 knows

    def finish(self, step: int, agreement: Agreement) -> None:
        """Wait for the last checkpoint. Every rank calls this at the same step.

        Raises:
            OSError: it could not be saved.
        """
        if self.settle(agreement) != step:
            why = self._refused or OSError(errno.EIO, "another process could not write its part")
            remedy = "Free space" if why.errno in (errno.ENOSPC, errno.EDQUOT) else "See to it"
            raise OSError(
                why.errno,
                f"step {step:,} could not be saved ({why}); earlier checkpoints are untouched. "
                f"{remedy}, and run the same command again",
                str(self._run),
            )

    def _write(self, step: int, copies: dict[str, Any], copied: torch.cuda.Event | None) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            for name in list(copies):
                checkpoint.write_part(self._run, step, name, state_file.pieces(copies.pop(name)))
            self._finished = step
        except OSError as error:
            self._failed, self._refused = step, error
            self._news.append(f"rank {self._rank}: {error}")

    def _commit(self, step: int) -> None:
        try:
            checkpoint.commit(self._run, step, {"seconds": self._seconds, **self._facts})
        except OSError as error:
            self._refused = error
            self._news.append(f"{error}; {_NOT_SAVED.format(step)}")
            checkpoint.abandon(self._run, step)
            return
        self._committed = step
        try:
            checkpoint.drop_old(self._run, step=step, keep=self._keep, keep_every=self._keep_every)
        except OSError as error:
            self._news.append(f"an old checkpoint could not be removed: {error}")

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:  # a defect of ours: raised where training can be ended
                self._defect = error

        self._thread = Thread(target=guarded, name="checkpoint")
        self._thread.start()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._defect is not None:
            raise self._defect
