"""Check a shard set against what was written, and repair it on request.

    python -m tools.verify data/mine --deep true

Nothing is changed unless --repair says so.
"""

from __future__ import annotations

import os
import shlex
import sys
import time

import rich.progress
from rich.console import Console

from shards.engine import LocalWorkers
from shards.health import repair as repairs
from shards.health.verification import verify
from shards.one_line import one_line
from training.command_line import run_function

SHOWN = 20  # problems that are listed one by one


def main(
    folder: str, *, deep: bool = False, repair: bool = False, workers: int | None = None
) -> None:
    """Check counts, sizes, hashes and index offsets of a shard set.

    Exit code 0: as it was written; 1: damaged, or only partly repaired; 2: wrong input.

    Args:
        folder: shard set: a folder, or a URL such as s3://…
        deep: also decode every image as training does, and compare labels and ids.
        repair: rebuild indexes, tables and manifest, and quarantine samples whose bytes changed
            (with --deep, also those that do not decode); good samples keep their bytes.
        workers: number of processes; by default, one for each core of this machine.
    """
    if repair:
        _repair(folder, deep=deep)
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    begin = time.monotonic()
    with rich.progress.Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=None)

        def advance(samples: int, total: int, _bytes: int) -> None:
            bar.update(task, completed=samples, total=total)

        found = verify(folder, deep=deep, engine=LocalWorkers(workers), progress=advance)
    seconds = time.monotonic() - begin
    for problem in found.problems[:SHOWN]:
        print(one_line(str(problem)))
    if len(found.problems) > SHOWN:
        print(f"… and {len(found.problems) - SHOWN:,} more")
    checked = "sizes, hashes and indexes" + (", every image decoded" if deep else "")
    print(
        f"{one_line(folder)}: {found.shards:,} shards, {found.samples:,} samples, "
        f"{found.bytes / 1e6:,.1f} MB in {seconds:,.1f} s ({checked}): "
        + (f"{len(found.problems):,} problems" if found.problems else "as it was written")
    )
    if found.problems:
        if not repair:
            more = " --deep true" if deep else ""
            where = one_line(shlex.quote(folder))
            print(f"to repair: python -m tools.verify {where} --repair true{more}")
        sys.exit(1)


def _repair(folder: str, *, deep: bool) -> None:
    """Repair a shard set, and print what was done."""
    with rich.progress.Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("repairing", total=None)

        def advance(shards: int, total: int) -> None:
            bar.update(task, completed=shards, total=total)

        repaired = repairs.repair(folder, deep=deep, progress=advance)
    for problem in repaired.quarantined:
        print(f"quarantined: {one_line(str(problem))}")
    for name in repaired.rebuilt:
        print(f"made again:  {name}")
    for problem in repaired.unrepaired:
        print(f"unrepaired:  {one_line(str(problem))}")
    if not (repaired.quarantined or repaired.rebuilt or repaired.unrepaired):
        print("nothing to repair")


if __name__ == "__main__":
    run_function(main)
