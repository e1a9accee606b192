"""Check a shard set against what was written: `python -m tools.verify DIR [--deep true]`."""

import os
import sys
import time

import rich.progress
from jsonargparse import ArgumentParser
from rich.console import Console

from shards.engine import LocalWorkers
from shards.health.repair import repair
from shards.health.verification import verify
from training.command import run_command

SHOWN = 20  # problems that are listed one by one


def main() -> None:
    """Verify, perhaps repair, and leave with 1 if something is damaged."""
    parser = ArgumentParser(
        prog="python -m tools.verify",
        description="Check counts, sizes, hashes and index offsets of a shard set. Exit code 0: "
        "as it was written; 1: damaged, or repaired only in part; 2: wrong input.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("folder", type=str, help="Shard set: a folder, or a URL such as s3://…")
    parser.add_argument(
        "--deep",
        type=bool,
        default=False,
        help="Also decode every image as training does, and compare labels and ids.",
    )
    parser.add_argument(
        "--repair",
        type=bool,
        default=False,
        help="Rebuild indexes, tables and manifest, and quarantine samples whose bytes changed "
        "(with --deep, also those that do not decode); good samples keep their bytes.",
    )
    parser.add_argument(
        "--workers", type=int, help="Processes; by default, one a core of this machine."
    )
    options = parser.parse_args()
    workers = options.workers if options.workers is not None else len(os.sched_getaffinity(0))

    if options.repair:
        with rich.progress.Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("repairing", total=None)

            def repairing(shards: int, total: int) -> None:
                bar.update(task, completed=shards, total=total)

            repaired = repair(options.folder, deep=options.deep, progress=repairing)
        for problem in repaired.quarantined:
            print(f"quarantined: {problem}")
        for name in repaired.rebuilt:
            print(f"made again:  {name}")
        for problem in repaired.unrepaired:
            print(f"unrepaired:  {problem}")
        if not (repaired.quarantined or repaired.rebuilt or repaired.unrepaired):
            print("nothing to repair")

    begin = time.monotonic()
    with rich.progress.Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=None)

        def advance(samples: int, total: int, _bytes: int) -> None:
            bar.update(task, completed=samples, total=total)

        found = verify(
            options.folder, deep=options.deep, engine=LocalWorkers(workers), progress=advance
        )
    seconds = time.monotonic() - begin
    for problem in found.problems[:SHOWN]:
        print(problem)
    if len(found.problems) > SHOWN:
        print(f"… and {len(found.problems) - SHOWN:,} more")
    checked = "sizes, hashes and indexes" + (", every image decoded" if options.deep else "")
    print(
        f"{options.folder}: {found.shards:,} shards, {found.samples:,} samples, "
        f"{found.bytes / 1e6:,.1f} MB in {seconds:,.1f} s ({checked}): "
        + (f"{len(found.problems):,} problems" if found.problems else "as it was written")
    )
    if found.problems:
        if not options.repair:
            deep = " --deep true" if options.deep else ""
            print(f"to repair: python -m tools.verify {options.folder} --repair true{deep}")
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
