r"""All that a GPU has to prove, in one command and a given time.

    python -m benchmarks.gpu --minutes 9.5 --out results                       on the GPU
    python -m benchmarks.gpu --minutes 9 --out results --only feeding ranking
    python -m benchmarks.gpu --minutes 3 --out /tmp/rehearsal --rehearse       on the CPU, tiny

First comes what tells most: the GPU's tests, decoded pixels, a fed, compiled ViT, ranking 32,768
embeddings, the JPEG engine's use: five minutes, by estimate; and one method learning, six more, in
the next command where this one has not as many. Then stages run in the order of their value, each
in its own share of the time; what one leaves over the next ones have. Every figure is in
OUT/STAGE.json as soon as it is there, so that whatever cuts the command off loses only the one in
the making; the same command makes what is missing, that day or on another machine with such a GPU.
OUT/log.txt has what they print. Nothing is installed: a checkout, and the packages on PYTHONPATH.

Images travel there as files of 64 MB at most, one a call, each unpacked as it comes; what was there
is kept as long as the machine is:

    python3 -m zipfile -e stl10-train.zip /tmp/images      and stl10-test.zip: 30 and 48 MB
    python3 -m zipfile -e coco-train-0.zip /tmp/images     and coco-train-1.zip: 36 MB each
    cp cifar10.tar.xz /tmp/images                          18 MB; needs no xz
    tar -xf coco256.tar -C /tmp/images --one-top-level     43 MB, of which photos are cut
    python -m benchmarks.gpu --minutes 9.5 --out results --cifar10 /tmp/images/cifar10.tar.xz \
        --coco /tmp/images/coco256 --stl10 /tmp/images/stl10 --coco2014 /tmp/images/coco

What lends a machine may kill the command at its limit, bring back few files, of one folder, and
empty that before each command. So take results along, write into that folder, eight files at most,
and say how many seconds the command has spent before, on unpacking:

    cp -r results "$OUT"
    python -m benchmarks.gpu --minutes 9.5 --spent $SECONDS --out "$OUT/results"

`python -m benchmarks.report OUT` shows what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Imported here once for all the processes that are forked; none of it may touch the GPU yet.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from benchmarks.gpu import captured, feeding, host_side, learning, loading, ranking, sound
from benchmarks.gpu.box import BoxedMeasurement, Clock, Row, Sizes, fill, needed
from pipeline.dali import driver_begun
from training.surroundings import surroundings

SPARE = 20.0
"""Seconds before the end in which nothing is begun and the command has ended."""
SHARED = Path("../shared/data")
PACKAGES = ("torch", "torchvision", "triton", "accelerate", "nvidia-dali-cuda130", "kornia")


class Stage(NamedTuple):
    """A file of results."""

    name: str
    measurements: Callable[[Sizes], Sequence[BoxedMeasurement]]
    share: float
    """Of the whole time."""


STAGES = [
    Stage("sound", sound.measurements, 0.12),
    Stage("feeding", feeding.measurements, 0.22),
    Stage("host_side", host_side.measurements, 0.08),
    Stage("ranking", ranking.measurements, 0.08),
    Stage("captured", captured.measurements, 0.12),
    Stage("loading", loading.measurements, 0.13),
    Stage("learning", learning.measurements, 0.25),
]


def main() -> None:
    """Make what is missing, as long as there is time."""
    arguments = _arguments()
    left = 60 * arguments.minutes - arguments.spent - _age() - SPARE
    clock = Clock(time.monotonic() + left)
    place = Sizes(
        data=arguments.data.resolve(),
        coco=arguments.coco,
        cifar10=arguments.cifar10,
        out=arguments.out,
        stl10=_given(arguments.stl10, "stl10-train.zip", "stl10-test.zip"),
        coco2014=_given(arguments.coco2014, "coco-train-0.zip", "coco-train-1.zip"),
        rehearsal=arguments.rehearse,
    )
    head = around(arguments)
    if not place.rehearsal and head["gpu"] is None:
        sys.exit(
            "error: nvidia-smi finds no GPU, which this measures; --rehearse runs without one."
        )
    if driver_begun():
        sys.exit("error: an import has begun to use CUDA; in forked processes nothing would run.")
    place.data.mkdir(parents=True, exist_ok=True)
    place.out.mkdir(parents=True, exist_ok=True)
    chosen = [stage for stage in STAGES if not arguments.only or stage.name in arguments.only]
    for stage in chosen:
        _refuse_other_gpu(place.out / f"{stage.name}.json", head)

    for name, given in (("STL-10", place.stl10), ("COCO", place.stl10 and place.coco2014)):
        if not given:
            say(f"nothing is learned from {name}: its images are not here")

    def make(stage: Stage, box: Clock, *, first: bool) -> bool:
        path, named = place.out / f"{stage.name}.json", {"stage": stage.name, **head}
        record = fill(path, named, stage.measurements(place), box, first=first, say=say)
        return record.get("complete", False)

    for number, stage in enumerate(chosen):
        files = [
            (place.out / f"{each.name}.json", each.measurements(place)) for each in chosen[number:]
        ]
        while len(files) > 1 and needed(files) > clock.left:
            files.pop()  # nothing is kept for what has no time in this command
        own = needed(files[:1])
        # What hangs leaves the others their time.
        make(stage, clock.box(max(own, clock.left - (needed(files) - own))), first=True)
    shares = sum(stage.share for stage in chosen)
    complete = True
    for stage in chosen:
        box = clock.box(clock.left * stage.share / shares)
        shares -= stage.share
        say(f"{stage.name}: {box.left:.0f} s")
        complete = make(stage, box, first=False) and complete
    say("complete" if complete else "not complete; the same command makes what is missing")


def _refuse_other_gpu(path: Path, head: Row) -> None:
    """End if a file has figures of another GPU: one table would hold both."""
    if path.exists():
        there, here = (str(of["gpu"]).split(",")[0] for of in (json.loads(path.read_text()), head))
        if there != here:
            sys.exit(f"error: {path} has figures of {there}, this is {here}; give another --out.")


def _given(paths: Sequence[Path] | None, *usual: str) -> tuple[Path, ...]:
    """Return paths that were given; or the usual files, if all of them are there."""
    if paths is None:
        here = tuple(SHARED / name for name in usual)
        return here if all(path.exists() for path in here) else ()
    for path in paths:
        if not path.exists():
            sys.exit(f"error: {path} is not there; give a folder, or all of its zips.")
    return tuple(paths)


def _age() -> float:
    """Return the seconds since this process was started: imports take many on a new machine."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    now = float(Path("/proc/uptime").read_text().split()[0])
    # Some sandboxes count one of the two from elsewhere.
    return min(120.0, max(0.0, now - started / os.sysconf("SC_CLK_TCK")))


def say(line: str) -> None:
    """Show a line at once."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def around(arguments: argparse.Namespace) -> Row:
    """Return what figures depend on: the GPU and its driver, versions, commit."""
    found = surroundings(*PACKAGES)
    found["commit"] = arguments.commit or found["commit"]
    gpu = None
    with suppress(OSError, subprocess.SubprocessError):
        ask = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True)
        gpu = asked.stdout.strip().splitlines()[0]
    command = f"python -m benchmarks.gpu --minutes {arguments.minutes:g}"
    command += " --rehearse" if arguments.rehearse else ""
    return {"command": command, "gpu": gpu, "surroundings": {**found, "system": platform.release()}}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, required=True, help="when it has ended")
    parser.add_argument(
        "--spent",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="that have passed of them before it is started, such as bash's $SECONDS",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", nargs="+", choices=names, help="these stages alone")
    parser.add_argument("--data", type=Path, default=Path("/tmp/viewrank-gpu"), help="made there")
    parser.add_argument("--coco", type=Path, default=SHARED / "coco256.tar", help="folder or tar")
    parser.add_argument(
        "--cifar10", type=Path, default=SHARED / "cifar10.tar.xz", help="folder or tar"
    )
    for data in ("--stl10", "--coco2014"):
        parser.add_argument(data, type=Path, nargs="+", help="folder, or zips; left out if absent")
    parser.add_argument("--commit", help="of this tree, where there is no git to ask")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
