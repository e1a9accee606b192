"""Measurements within a given time, each in a process of its own, kept as soon as it is made.

A process of its own is forked, so that it costs no imports, gives back all its memory, and takes
nothing along when it crashes, hangs or is out of memory. This process must not touch the GPU.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from shards import durable
from training.launch import end_with_parent

Row = dict[str, Any]
LOG = "log.txt"
MOST = 0.85
"""Share of its time with which a measurement is begun that can be cut off for good."""
SLACK = 1.0
"""Seconds between two measurements."""
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """Where and how large everything is."""

    data: Path
    """Folder for the sets that are made on the spot."""
    coco: Path | None
    """Folder or tar of COCO's JPEG files."""
    cifar10: Path | None
    """Folder or tar of CIFAR-10 as train/CLASS/*.jpg and test/CLASS/*.jpg."""
    out: Path
    """Where results go."""
    stl10: tuple[Path, ...] = ()
    """Folder of STL-10's labelled images as train/CLASS/*.jpg and test/CLASS/*.jpg, or zips of it
    as stl10/…; none: not learned from."""
    coco2014: tuple[Path, ...] = ()
    """Folder of squashed images of MS-COCO as train2014/*.jpg, or zips of it as coco/…; none."""
    rehearsal: bool = False
    """On the CPU, at sizes that show only that everything runs."""

    def of(self, real: T, rehearsed: T) -> T:
        """Return a size: the real one, or that of the rehearsal."""
        return rehearsed if self.rehearsal else real

    @property
    def device(self) -> str:
        """The device that is measured."""
        return "cpu" if self.rehearsal else "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The same for PyTorch."""
        return torch.device("cpu") if self.rehearsal else torch.device("cuda", 0)


@dataclass(frozen=True)
class BoxedMeasurement:
    """One figure, or several that belong together."""

    name: str
    run: Callable[[], Row]
    """Makes it, in a process of its own."""
    seconds: float
    """What it takes, about: with less left it is not begun."""
    kept: bool = True
    """Whether what it gave makes it needless the next time; false of data on this machine."""
    first: bool = False
    """Whether it is made before all that is not, of whatever stage."""
    rescue: Callable[[], Row] | None = None
    """Says what is known when it was not done in time, or failed."""
    whole: bool = False
    """Whether it is made again if it was not done in time; else what is known then will do."""


@dataclass
class Clock:
    """How much time there is."""

    end: float
    """By `time.monotonic`."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def box(self, seconds: float) -> Clock:
        """Return a part of what is left."""
        return Clock(min(self.end, time.monotonic() + seconds))


def fill(
    path: Path,
    head: Row,
    measurements: Sequence[BoxedMeasurement],
    clock: Clock,
    *,
    first: bool = False,
    say: Callable[[str], None],
) -> Row:
    """Make all measurements that are not in a file and for which there is time; return the file.

    A measurement that failed is tried again by the next call.

    Args:
        path: JSON file; what it has is kept.
        head: what the file says besides; that of the first call stays.
        measurements: the most telling first.
        clock: how long.
        first: only those that come first.
        say: shows a line to people.
    """
    record: Row = json.loads(path.read_text()) if path.exists() else {**head, "rows": {}}
    rows: dict[str, Row] = record["rows"]
    for number, each in enumerate(measurements, start=1):
        if _is_made(each, rows) or (first and not each.first):
            continue
        place = f"{path.stem} {number}/{len(measurements)} {each.name}"
        if clock.left < _least(each):
            say(f"{place}: not begun, {clock.left:.0f} s left of the {each.seconds:.0f} it takes")
            continue
        begin = time.monotonic()
        # Three times what it should take, for it is better late than never, but not beyond the box.
        log = path.with_name(LOG)
        row = apart(each.run, min(3 * each.seconds + 30, clock.left), log)
        late = row.pop("late", False)
        if "failed" in row and each.rescue is not None:
            known = apart(each.rescue, 30.0, log)
            if "failed" not in known:  # what failed stays failed, and is made again
                row = {**known, "cut_off": row["failed"]} if late else {**known, **row}
        if "failed" in row and "failed" not in rows.get(each.name, row):
            say(f"{place}: {row['failed']}; what was known before stays")
            continue
        row["took_seconds"] = round(time.monotonic() - begin, 1)
        row["commit"] = head["surroundings"]["commit"]  # a file may be filled over weeks
        rows[each.name] = row
        record["complete"] = all(_is_whole(each, rows) for each in measurements)
        durable.replace_json(path, record)
        say(f"{place}: {row.get('failed', 'done')} ({row['took_seconds']:.0f} s)")
    return record


def needed(files: Sequence[tuple[Path, Sequence[BoxedMeasurement]]]) -> float:
    """Return the seconds of what comes first and is not in its file, with some to spare.

    What several files have under one name, such as the making of a set, takes its time once.
    """
    left: dict[str, float] = {}
    for path, measurements in files:
        rows: dict[str, Row] = json.loads(path.read_text())["rows"] if path.exists() else {}
        for each in measurements:
            if each.first and not _is_made(each, rows):
                left[each.name] = SLACK + _least(each)
    return sum(left.values())


def _least(each: BoxedMeasurement) -> float:
    """Return the seconds with which it is begun: if what is known when cut off will do, of most."""
    return each.seconds * (1.0 if each.rescue is None or each.whole else MOST)


def _is_made(each: BoxedMeasurement, rows: dict[str, Row]) -> bool:
    return each.kept and _is_whole(each, rows)


def _is_whole(each: BoxedMeasurement, rows: dict[str, Row]) -> bool:
    row = rows.get(each.name, {"failed": "not begun"})
    return "failed" not in row and not (each.whole and "cut_off" in row)


def apart(run: Callable[[], Row], limit: float, log: Path) -> Row:
    """Return what a function gives in a forked process, or why it gave nothing.

    Args:
        run: gives what JSON can hold.
        limit: seconds after which it and all its processes are killed.
        log: what it prints is added to this file.
    """
    mine, its = multiprocessing.Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _in_child(run, its, log)
    its.close()
    try:
        told = mine.poll(max(0.0, limit))
        over: Row = {"failed": f"it was not done after {limit:.0f} s", "late": True}
        answer: Row = mine.recv() if told else over
    except EOFError:
        with suppress(ProcessLookupError):  # what it started may live on
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {"failed": f"its process ended with {code}; see {log.name}"}
    else:
        # Done or late, and all that it started with it.
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    finally:
        mine.close()
    return answer


def _in_child(run: Callable[[], Row], connection: Connection, log: Path) -> None:
    end_with_parent(signal.SIGKILL)
    os.setsid()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        answer = run()
        sys.stdout.flush()  # now: once it is sent, this process may be killed
        sys.stderr.flush()
        connection.send(answer)
        code = 0
    except BaseException as error:
        traceback.print_exc()
        connection.send({"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
