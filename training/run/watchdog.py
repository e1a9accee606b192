"""Ends a job that hangs, and says which rank hangs and where.

A rank that is stopped, or waits for a disk for ever, leaves all others waiting in a collective
operation until its timeout. Here every rank writes small files that say how far it is. When its own
step takes too long, a rank reads the files of the others, writes down which rank all wait for and
where its own threads are, and ends. The launcher then ends the others and, with --max_restarts,
starts the job again from the last checkpoint. While one rank reads all of the shard set, to find
samples that cannot be read, or shows a record elsewhere, the others wait.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from shards import durable
from training.command import AGAIN
from training.run import failure

TRACKERS = "trackers"
"""The phase in which rank 0 sends a record through a network, which may keep it."""
_ALONE = (failure.SEARCH, TRACKERS)  # what one rank does while the others wait
_PERIOD = 5.0  # seconds between two looks
_PATIENCE = 10.0  # seconds for the last message; a lost disk never takes it


class Watchdog:
    """Watches a run from its start to its end; used as a context around it.

    Before the run's folder is this run's (`Phase.prepared`) nothing is read or written there: a
    process that waits for the others then speaks for itself alone.

    Args:
        run: the run's folder, which all ranks see.
        phase: what this process is doing.
        rank: this process.
        world_size: number of processes.
        limit: seconds that a phase of a step may take; 0, for ever.
    """

    def __init__(
        self, run: Path, phase: failure.Phase, *, rank: int, world_size: int, limit: float
    ) -> None:
        self._run, self._phase = run, phase
        self._rank, self._world_size, self._limit = rank, world_size, limit
        self._period = min(_PERIOD, limit / 4) if limit else _PERIOD
        self._seen: dict[int, tuple[str, float]] = {}  # what a rank wrote last, and since when
        self._end = Event()
        # Two threads: the one that counts the seconds must not wait for a lost disk.
        self._watching, self._beating = (
            Thread(target=work, name="watchdog", daemon=True) for work in (self._watch, self._beat)
        )

    def __enter__(self) -> Watchdog:
        if self._limit:
            self._watching.start()
            self._beating.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        if not self._phase.prepared:
            return
        if self._beating.is_alive():  # its last file would look like that of a killed process
            self._beating.join(_PATIENCE)
        with suppress(OSError):  # a file that stays means that this was killed
            self._path(self._rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._end.wait(self._period):
            now = time.monotonic()
            # Of a process that was stopped and goes on (Ctrl-Z, a suspended job) no time went by.
            self._phase.since += max(0.0, now - before - 2 * self._period)
            before = now
            if self._waits_for_one():
                self._phase.since = now
            elif now - self._phase.since > self._limit * self._phase.patience:
                self._give_up()

    def _beat(self) -> None:
        beats = 0
        while not self._end.wait(self._period):
            beats += 1
            if self._phase.prepared:
                self._tell(beats)
                self._look()

    def _tell(self, beats: int) -> None:
        told = {"beat": beats, "step": self._phase.step, "phase": self._phase.name}
        told |= {"process": os.getpid(), "host": socket.gethostname()}
        path = self._path(self._rank)
        try:
            path.parent.mkdir(exist_ok=True)  # not the run's: if that was deleted, it stays so
            with durable.replaced(path) as partial:
                partial.write_text(json.dumps(told))
        except OSError:  # a full disk is no hang
            return

    def _look(self) -> None:
        """Note when each rank last wrote something new: clocks of two hosts cannot be compared."""
        for rank in range(self._world_size):
            try:
                told = self._path(rank).read_text()
            except OSError:
                told = ""
            if rank not in self._seen or self._seen[rank][0] != told:
                self._seen[rank] = (told, time.monotonic())

    def _waits_for_one(self) -> bool:
        """Whether another rank lives, and does what is done alone; it has its own limit."""
        others = (seen for rank, seen in list(self._seen.items()) if rank != self._rank)
        return any(
            self._lives(since) and _read(told).get("phase") in _ALONE for told, since in others
        )

    def _lives(self, since: float) -> bool:
        return time.monotonic() - since <= 2.5 * self._period

    def _give_up(self) -> None:
        """End this process, whatever the disk, stderr or memory are like."""
        try:
            report = Thread(target=self._report, daemon=True)
            report.start()
            report.join(_PATIENCE)
        finally:
            os._exit(AGAIN)

    def _report(self) -> None:
        what, phase = self._culprit(), self._phase
        more = f"; see {self._run / failure.NAME}" if phase.prepared else ""
        with suppress(OSError, ValueError):
            sys.stderr.write(f"error: {what}{more}\n")
            sys.stderr.flush()
        if not phase.prepared:
            return
        with suppress(OSError), failure.log_path(self._run, self._rank).open("a") as log:
            log.write(f"the threads of rank {self._rank}:\n")
            log.flush()
            faulthandler.dump_traceback(log, all_threads=True)
        failure.write(
            self._run,
            phase,
            what=what,
            where=f"rank {self._rank} has been in {phase.name!r} for "
            f"{time.monotonic() - phase.since:.0f} s",
            rank=self._rank,
            remedy="look at that process and its host; the same command, or the launcher with "
            "--max_restarts, continues from the last checkpoint. If steps are meant to take that "
            "long, raise --hang_seconds.",
        )
        self._end.set()
        with suppress(OSError):  # it was not killed: it has said why
            self._path(self._rank).unlink(missing_ok=True)

    def _culprit(self) -> str:
        """Return whom the others wait for: a process that is silent, or the one furthest behind."""
        silent, behind = [], []
        for rank, (told, since) in sorted(self._seen.items()):
            found = _read(told)
            who = f"rank {rank} (process {found.get('process')} on {found.get('host')})"
            if not self._lives(since):
                silent.append(f"{who} has stopped or lost its disk, at step {found.get('step')}")
            elif rank != self._rank:
                behind.append((found.get("step", 0), f"{who} is in {found.get('phase')!r}"))
        if silent:
            return "; ".join(silent)
        least = min((step for step, _ in behind), default=self._phase.step)
        if least > self._phase.step or not behind:
            return f"rank {self._rank} hangs in {self._phase.name!r} at step {self._phase.step}"
        latest = ", ".join(text for step, text in behind if step == least)
        return f"no step since {least}: {latest}"

    def _path(self, rank: int) -> Path:
        return failure.beat_path(self._run, rank)


def _read(told: str) -> dict[str, Any]:
    try:
        found = json.loads(told)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
