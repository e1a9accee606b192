"""What an abnormal end leaves in the run's folder, for the person who looks in the morning.

    RUN/failure.json        the last abnormal end: what, where, rank, step, remedy
    RUN/ranks/rank-0.log …  what each process wrote to stderr, its last lines at least

A run that ends well removes the first, and keeps the others.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shards import durable
from shards.outage import is_outage
from training.command import LESS_MEMORY, out_of_memory
from training.stream import Lasting, Tee

NAME = "failure.json"
RANKS = "ranks"
SEARCH = "search for what cannot be read"
"""The phase in which a rank reads all of the shard set, as long as it gets on."""
# A longer log is cut to its last lines, once, when a run starts: they are what is wanted.
_LOG_BYTES = 1 << 20
_LINES = 50
_HEAD = re.compile(r"^── \S+, (process \d+ on .+)$", re.MULTILINE)  # as `keep_stderr` writes it
_FAULT = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)  # as faulthandler does


class Gone(ValueError):
    """The run's folder is not there any more, so nothing can be written there."""


@dataclass
class Phase:
    """What a run is doing, for those who watch it from outside the step loop."""

    prepared: bool = False
    """Whether the run's folder is this run's; before that nothing is written there."""
    earlier: tuple[int, int] | None = None
    """Which failure.json was there before this process began; see `_identity`."""
    step: int = 0
    """Number of updates done."""
    name: str = "start"
    patience: float = 10.0
    """How many times longer than others this phase may take."""
    since: float = field(default_factory=time.monotonic)

    def enter(self, name: str, *, step: int | None = None, patience: float = 1.0) -> None:
        """Say what is done now."""
        self.step = self.step if step is None else step
        self.name, self.patience, self.since = name, patience, time.monotonic()

    def search(self) -> None:
        """Say that the search gets on, for which the other ranks wait: another piece is read."""
        self.enter(SEARCH, patience=10)

    def wait(self, place: str) -> None:
        """Say that a place does not answer; the time that the phase may take goes on."""
        self.name = f"{self.name.partition(', ')[0]}, waiting for {place}"


@contextmanager
def reported(run: Path, *, rank: int) -> Iterator[Phase]:
    """Write failure.json into the run's folder if an error is raised inside.

    Args:
        run: the run's folder.
        rank: this process.
    """
    phase = Phase(earlier=_identity(run / NAME))
    try:
        yield phase
    except (Exception, KeyboardInterrupt) as error:
        if phase.prepared and not isinstance(error, Gone):
            write_error(run, error, phase, rank=rank)
        raise


def clear(run: Path) -> None:
    """Forget the abnormal end of a run that has ended well since."""
    (run / NAME).unlink(missing_ok=True)


def log_path(run: Path, rank: int) -> Path:
    """Return where a process's stderr is kept."""
    return run / RANKS / f"rank-{rank}.log"


def beat_path(run: Path, rank: int) -> Path:
    """Return where a process says every few seconds how far it is, while it trains."""
    return run / RANKS / f"rank-{rank}.json"


def silent_ends(run: Path) -> list[str]:
    """Return a line for each process that could not say why it ended; forget them.

    SIGKILL cannot be caught; the kernel sends it too when there is no memory left. A machine that
    fails leaves no message either. Of other signals, such as SIGSEGV, the log of the process tells.
    """
    lines = []
    for rank in sorted({path.stem for path in (run / RANKS).glob("rank-*.[jl]*")}):
        beat, log = (run / RANKS / f"{rank}.{kind}" for kind in ("json", "log"))
        killed, step = _last_beat(beat)
        who, fault = _last_fault(log)
        after = f" after step {step:,}" if killed else ""
        if who and killed in ("", who):
            lines.append(
                f"{who} ({rank}) was ended{after} by a signal, {fault}: {log} says where. That is "
                "a defect, or a file that changed under it: check the shard set with python -m "
                "tools.verify, and report it if that finds nothing"
            )
        elif killed:
            lines.append(
                f"{killed} ({rank}) ended without a word{after}: it was killed, perhaps because "
                "memory ran out, or its machine failed"
            )
    return lines


def keep_stderr(run: Path, rank: int) -> None:
    """From now on write what this process says on stderr to a file of the run, too."""
    path = log_path(run, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.write_bytes(path.read_bytes()[-_LOG_BYTES // 2 :])
        log = path.open("a", buffering=1)
    except OSError as error:  # a run that can train is not ended by this
        sys.stderr.write(f"warning: stderr is not kept in {path}: {error}\n")
        return
    sys.stderr = Tee(sys.stderr, log)
    Lasting(log).write(f"── {_now()}, process {os.getpid()} on {socket.gethostname()}\n")
    # Where it was, if a signal such as SIGBUS ends it: of a shard that was cut off.
    faulthandler.enable(log)


def write(
    run: Path, phase: Phase, *, what: str, where: str, rank: int, remedy: str, **more: Any
) -> None:
    """Write why the run ended, unless another rank has done so.

    The first message is the cause: the other ranks find afterwards only that one is missing.

    Args:
        run: the run's folder.
        phase: what this process was doing.
        what: what happened, in a sentence.
        where: the line of code, or the phase of the step.
        rank: the process that found it.
        remedy: what to do.
        more: what else may help.
    """
    if _identity(run / NAME) not in (None, phase.earlier):
        return
    record = {"what": what, "where": where, "rank": rank, "step": phase.step, "remedy": remedy}
    record |= {"time": _now(), "host": socket.gethostname(), "process": os.getpid(), **more}
    record["logs"] = {path.name: _tail(path) for path in sorted((run / RANKS).glob("rank-*.log"))}
    try:
        durable.replace_json(run / NAME, record, suffix=f"rank-{rank}.partial")
    except OSError as error:
        sys.stderr.write(f"warning: {run / NAME} could not be written: {error}\n")


def write_error(run: Path, error: BaseException, phase: Phase, *, rank: int) -> None:
    """Say that an exception ended the run; see `write`."""
    frames = traceback.extract_tb(error.__traceback__)
    write(
        run,
        phase,
        what=f"{type(error).__name__}: {error}",
        where=f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "",
        rank=rank,
        remedy=f"{_remedy(error)}; the same command continues from the last checkpoint",
        traceback=traceback.format_exception(error),
    )


def _remedy(error: BaseException) -> str:
    if out_of_memory(error):
        return LESS_MEMORY
    if is_outage(error):
        return "bring the place that does not answer back"
    return "the message says what to do"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from the one that takes its place; no clock is asked."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _last_beat(path: Path) -> tuple[str, int]:
    """Return which process was killed while it trained, and its step; forget it. "" if none was."""
    try:
        told = json.loads(durable.read(path))
        return f"process {told['process']} on {told['host']}", int(told["step"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return "", 0
    finally:
        path.unlink(missing_ok=True)


def _last_fault(log: Path) -> tuple[str, str]:
    """Return which process wrote a log last, and the signal that ended it; "" if none did."""
    try:
        with durable.open_regular(log) as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "", ""
    *_, head = [None, *_HEAD.finditer(text)]
    fault = _FAULT.search(text, head.end()) if head else None
    return (head[1], fault[1]) if head and fault else ("", "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            return file.read().decode(errors="replace").splitlines()[-_LINES:]
    except OSError as error:
        return [str(error)]
