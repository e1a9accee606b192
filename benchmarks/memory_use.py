"""Host memory of the loader and of training, beside the forecast of `training.memory_forecast`.

    python -m benchmarks.memory_use loader [--shards data/coco256] [--out FILE.json]
    python -m benchmarks.memory_use budget [--shards data/coco256] [--out FILE.json]
    python -m benchmarks.memory_use flat [--batches 5000] [--out FILE.json]
    python -m benchmarks.memory_use shards [--counts 1000 10000] [--samples 2] [--ranks 1] [--out F]

Every measurement has a process of its own and counts anonymous pages: mapped tars, which are the
page cache's, are not in it. "measured" is the peak above what the process held once everything was
imported. `loader` and `budget` compare it with the formula; `flat` looks for a leak in a long
epoch; `shards` opens sets of very many small tars, which are links to one: what the start and the
memory of one rank cost by shards, samples and ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.record import write

MIB = 2**20
POLL = 0.002  # seconds between two looks
# Views × size, images a batch, batches ahead.
LOADERS = [
    {"groups": [[2, 224]], "batch": 64, "prefetch": 2},
    {"groups": [[8, 96]], "batch": 16, "prefetch": 2},
    {"groups": [[8, 96]], "batch": 64, "prefetch": 2},
    {"groups": [[8, 96]], "batch": 128, "prefetch": 2},
    {"groups": [[8, 96]], "batch": 128, "prefetch": 4},
    {"groups": [[4, 224]], "batch": 64, "prefetch": 2},
    {"groups": [[8, 224]], "batch": 64, "prefetch": 2},
    {"groups": [[2, 224], [6, 96]], "batch": 64, "prefetch": 2},
    {"groups": [[32, 96]], "batch": 64, "prefetch": 2},
    {"groups": [[8, 96]], "batch": 64, "prefetch": 2, "resampling": "supersample"},
]
TRAININGS = [
    ("SmallResNet", 16),
    ("SmallResNet", 32),
    ("ResNet", 16),
    ("ResNet", 32),
    ("ResNet", 64),
]
STEPS = 4


def loader(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare a loader's memory with the formula."""
    return {"loader": [_child("loader", case, arguments) for case in LOADERS]}


def one_loader(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Take some batches, as training does: the last one is held while the next is made."""
    from pipeline.augment import SimCLRViews
    from pipeline.graph import ViewGroup
    from pipeline.loader import Loader
    from pipeline.tuning import Tuning
    from shards.layout import open_shards
    from training.memory_forecast import loader_bytes

    resampling = case.get("resampling", "auto")
    groups = [
        ViewGroup(policy=SimCLRViews(), count=count, size=size, resampling=resampling)
        for count, size in case["groups"]
    ]
    shard_set = open_shards(arguments.shards)
    batches = Loader(
        shard_set,
        groups,
        batch_size_per_rank=case["batch"],
        tuning=Tuning(prefetch=case["prefetch"]),
    )
    predicted, held = loader_bytes(batches), None
    with Peak() as peak, batches:
        for batch in islice(batches.endless(), 8):
            held = batch
            time.sleep(0.05)  # a step, in which the queue fills up
    del held
    return case | _compared(predicted, peak)


def budget(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the memory of training's first steps with the budget."""
    cases = [{"encoder": encoder, "batch": batch} for encoder, batch in TRAININGS]
    return {"budget": [_child("budget", case, arguments) for case in cases]}


def one_budget(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for some steps, 8 views at 96 px."""
    import torch
    from accelerate import Accelerator

    from pipeline.loader import Loader
    from pipeline.tuning import float_type
    from shards.layout import open_shards
    from training.memory_forecast import forecast
    from training.settings import parse
    from training.step import Step

    with Peak() as peak, tempfile.TemporaryDirectory() as run:
        flags = {
            "shards": arguments.shards,
            "run": run,
            "views.count": "8",
            "views.size": "96",
            "batch_size": str(case["batch"]),
            "method.encoder": case["encoder"],
            "steps": str(STEPS),
            "device": "cpu",
        }
        config = parse([f"--{name}={value}" for name, value in flags.items()]).config
        accelerator = Accelerator(cpu=True, mixed_precision=config.precision())
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        with Loader(
            open_shards(arguments.shards),
            config.groups,
            batch_size_per_rank=case["batch"],
            dtype=float_type(accelerator.device, config.autocast()),
        ) as batches:
            step = Step(config, accelerator)
            begin = time.perf_counter()
            found = forecast(config, step.method, batches)
            seconds = time.perf_counter() - begin
            for batch in islice(batches.endless(), STEPS):
                step(batch.views, learning_rate=1e-3)
    row = case | {"precision": config.precision(), "seconds": round(seconds, 2)}
    return row | {"budget": found.describe()} | _compared(found.total, peak)


def flat(arguments: argparse.Namespace) -> dict[str, Any]:
    """Follow a loader of small batches for long."""
    return {"flat": [_child("flat", {"batches": arguments.batches}, arguments)]}


def one_flat(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Take batches of 8 images, 2 views of 32 px, and look at memory every 10."""
    from pipeline.augment import SimCLRViews
    from pipeline.graph import ViewGroup
    from pipeline.loader import Loader
    from shards.layout import open_shards

    group = ViewGroup(policy=SimCLRViews(), count=2, size=32)
    held: list[float] = []
    with Loader(open_shards(arguments.shards), [group], batch_size_per_rank=8) as batches:
        steps = len(batches)
        every = batches.endless()
        for index, _ in enumerate(islice(every, case["batches"])):
            if index % 10 == 0:
                held.append(anonymous() / MIB)
    quarter = len(held) // 4
    slope = np.polyfit(np.arange(len(held)) / 100, held, 1)[0]  # 100 looks are 1,000 batches
    late = np.polyfit(np.arange(2 * quarter) / 100, held[-2 * quarter :], 1)[0]
    return case | {
        "steps_an_epoch": steps,
        "first_quartile_mib": round(mean(held[:quarter]), 1),
        "last_quartile_mib": round(mean(held[-quarter:]), 1),
        "slope_mib_per_1000_batches": round(float(slope), 3),
        "slope_of_the_second_half": round(float(late), 3),
    }


def shards(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a rank's loader of many small tars."""
    rows = []
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(prefix="many-", dir=arguments.scratch) as scratch:
            _many(Path(scratch), count, arguments.samples)
            case = {"shards": count, "samples": count * arguments.samples}
            case |= {"ranks": arguments.ranks, "descriptors": arguments.descriptors}
            case["root"] = scratch
            row = _child("shards", case, arguments)
            del row["root"]
            rows.append(row)
    return {"shards": rows}


def one_shards(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Open a set, take the first batch, count descriptors and memory."""
    del arguments
    from pipeline.augment import SimCLRViews
    from pipeline.graph import ViewGroup
    from pipeline.loader import Loader
    from shards.layout import open_shards

    if case["descriptors"]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (case["descriptors"], hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    group = ViewGroup(policy=SimCLRViews(), count=2, size=16)
    begin = time.perf_counter()
    failure = None
    with Peak() as peak:
        shard_set = open_shards(case["root"])
        opened = time.perf_counter()
        with Loader(
            shard_set, [group], batch_size_per_rank=64, world_size=case["ranks"]
        ) as batches:
            try:
                next(iter(batches))
            except Exception as error:  # what then appears to a user is the finding
                failure = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            first = time.perf_counter()
            descriptors = len(os.listdir("/proc/self/fd"))
            maps = len(Path("/proc/self/maps").read_text().splitlines())
    return case | {
        "limit": limit,
        "seconds_to_open": round(opened - begin, 2),
        "seconds_to_first_batch": round(first - opened, 2),
        "descriptors_open": descriptors,
        "mapped_regions": maps,
        "measured_mib": round(peak.growth / MIB, 1),
        "failure": failure,
    }


def _many(root: Path, count: int, samples: int) -> None:
    """Write a set of one shard of tiny images, then pretend that there are `count` of it."""
    from dataclasses import replace

    from shards.layout import Manifest
    from shards.source.source import Sample, Source
    from shards.writing.write import write

    class Tiny(Source):
        name, split, classes = "tiny", "", ["one"]

        def __len__(self) -> int:
            return samples

        def __getitem__(self, index: int) -> Sample:
            pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            return Sample(f"{index:06d}", pixels, 0, index, {})

    one = write(Tiny(), root / "one", samples_per_shard=samples)
    (shard,) = one.manifest.shards
    copies = []
    for index in range(count):
        name = f"{index:05d}"
        copies.append(replace(shard, name=name))
        for extension in ("tar", "idx", "jsonl"):
            path = root / f"{name}.{extension}"
            if index % 50_000:
                os.link(root / f"{index // 50_000 * 50_000:05d}.{extension}", path)
            else:  # file systems limit the links to a file
                shutil.copyfile(root / "one" / f"{shard.name}.{extension}", path)
    manifest = replace(one.manifest, shards=copies, samples=samples * count)
    assert isinstance(manifest, Manifest)
    (root / "manifest.json").write_text(manifest.to_json())


def anonymous() -> int:
    """Return the bytes of this process's own pages."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


class Peak:
    """Follows this process's own pages while its `with` block runs."""

    def __enter__(self) -> Peak:
        self.begin = self.peak = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes between the beginning and the peak."""
        return self.peak - self.begin

    def _follow(self) -> None:
        while not self._stop.wait(POLL):
            self.peak = max(self.peak, anonymous())


def _compared(predicted: int, peak: Peak) -> dict[str, Any]:
    return {
        "predicted_mib": round(predicted / MIB),
        "measured_mib": round(peak.growth / MIB),
        "ratio": round(predicted / peak.growth, 2),
    }


def _child(stage: str, case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory_use", "one", stage, json.dumps(case)]
    done = subprocess.run([*command, str(arguments.shards)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{stage} {case} failed:\n{done.stderr[-2000:]}")
    row = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(row), file=sys.stderr)
    return row


def one(stage: str, case: str, shards: str) -> None:
    """Measure one case here, once everything is imported."""
    import pipeline.loader
    import training.config
    import training.memory_forecast
    import training.step

    del pipeline, training
    measure: Callable[..., dict[str, Any]] = {
        "loader": one_loader,
        "budget": one_budget,
        "flat": one_flat,
        "shards": one_shards,
    }[stage]
    print(json.dumps(measure(json.loads(case), argparse.Namespace(shards=shards))))


def main(words: Sequence[str]) -> None:
    """Run a stage and write its JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_use", description=__doc__)
    parser.add_argument("stage", choices=["loader", "budget", "flat", "shards"])
    parser.add_argument("--shards", default="data/coco256", help="Shard set to read.")
    parser.add_argument("--batches", type=int, default=5000, help="Of flat.")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000], help="Of shards.")
    parser.add_argument("--samples", type=int, default=2, help="A shard, of shards.")
    parser.add_argument("--ranks", type=int, default=1, help="The first of so many, of shards.")
    parser.add_argument("--descriptors", type=int, help="Soft limit of open files, of shards.")
    parser.add_argument("--scratch", type=Path, help="Folder for what is written meanwhile.")
    parser.add_argument("--out", type=Path, help="JSON to write.")
    arguments = parser.parse_args(words)
    from training.surroundings import surroundings

    record = {
        "surroundings": surroundings("torch", "nvidia-dali-cuda130"),
        "command": " ".join(["python -m benchmarks.memory_use", *words]),
    }
    stages = {"loader": loader, "budget": budget, "flat": flat, "shards": shards}
    record |= stages[arguments.stage](arguments)
    write(record, arguments.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
    else:
        main(sys.argv[1:])
