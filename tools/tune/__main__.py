"""Find the settings of the pipeline that run best on this machine, for one recipe.

    python -m tools.tune --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

What counts is the speed of training itself, steps fed by the pipeline, not of the pipeline alone:
without a GPU both share the cores. One setting after the other is varied, beginning with the
defaults. Each value is measured beside the one in use, in alternating order, so that a busy minute
of the machine slows both. On a GPU, the fewest threads and batches ahead are taken that cost at
most 1 %: the rest of the cores is free for other processes. Settings given as flags are kept.
train.py uses what was found.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.live import Live

from pipeline.tuning import Tuning, default_threads
from shards import durable
from tools.tune.search import Groups, Search
from training import machine_settings
from training.command_line import run_function
from training.settings import Settings
from training.terminal import literal_console
from training.throughput import (
    Measurement,
    Workload,
    feed_turn,
    fill_cache,
    machine,
    measure,
)

CACHE_SHARE = 0.25  # of the GPU's free memory that decoded images may take


def main(settings: Settings, *, seconds: float = 150.0, out: Path | None = None) -> None:
    """Find settings of the pipeline for this machine and a recipe.

    Args:
        settings: the recipe.
        seconds: about how long to search.
        out: YAML to write; by default where train.py looks for it, in ~/.cache/viewrank.
    """
    config = settings.config
    if seconds <= 0:
        raise ValueError(f"seconds={seconds:g}, but the search needs more than 0.")
    durable.check_writable(out=out)
    console = literal_console()
    around = machine(torch.device("cuda" if config.on_gpu else "cpu"))
    workload = Workload(config)
    path = out or machine_settings.path_for(
        config, workload.shard_set, workload.device, config.batch_size, 1
    )
    search = Search(
        partial(measure_fed, workload, longest=seconds / 10),
        config.tuning.filled(batch_size=config.batch_size),
        seconds=seconds,
        gpu=workload.device.type == "cuda",
    )
    plan = [
        (name, values)
        for name, values in coordinates(workload)
        if getattr(config.tuning, name) is None
    ]
    with Live(console=console, get_renderable=search.table, refresh_per_second=2):
        search.run(plan)
        advice = search.advise(resamplings(workload))
        found = search.verify()
        remarks = {
            "made by": shlex.join(["python", "-m", "tools.tune", *sys.argv[1:]]),
            "date": around.get("date"),
            "machine": f"{around['gpu'] or around.get('cpu')}, {around['cores']} cores",
            "training": search.verdict,
        }
        # Before the table is printed: who reads it, such as head, may not read to its end.
        machine_settings.write(path, found, remarks=remarks)
    if not console.is_terminal:
        console.line()  # which rich leaves out there
    for line in (search.verdict, *advice):
        console.print(line, soft_wrap=True)

    quoted = shlex.quote(str(path))
    use = "where train.py finds it for such images, views and batches on this machine; its header "
    use += "says so"
    if out or config.tuned != "auto":
        console.print(f"written to {path}; train.py takes it with --tuned {quoted}", soft_wrap=True)
    else:
        console.print(f"written to {path}, {use}", soft_wrap=True)


# ── what is tried ─────────────────────────────────────────────────────────────────────────────────


def coordinates(workload: Workload) -> Iterator[tuple[str, list[Any]]]:
    """Yield the settings to vary and their values, those with the most effect first."""
    manifest, batch_size = workload.shard_set.manifest, workload.config.batch_size
    if workload.device.type == "cuda":
        if not manifest.raw:
            yield "decode", ["gpu", "cpu"]
            yield "hw_decoder_load", [0.0, 0.5, 0.75, 0.9, 1.0]
        yield "minibatch", [batch_size, *(n for n in (256, 64) if n < batch_size)]
    yield "finish", ["fused", "dali"]
    cores = default_threads()
    yield "threads", sorted({cores, *(2**n for n in range(cores.bit_length()))})
    yield "prefetch", [1, 2, 3, 4]
    if workload.device.type == "cuda" and not manifest.raw:
        # Last, because the cache is filled again for each measurement. The decoder reserves memory
        # as if every image were as large as the largest.
        largest = 3 * manifest.statistics.max_width * manifest.statistics.max_height
        free, _ = torch.cuda.mem_get_info(workload.device)
        if manifest.samples * largest <= CACHE_SHARE * free:
            yield "decode", ["cache"]


def resamplings(workload: Workload) -> dict[str, Groups]:
    """Return the recipe's view groups with each resampling that they do not have."""
    groups = workload.config.groups
    now = {g.resampling_for(workload.shard_set, workload.device)[0] for g in groups}
    others: dict[str, Groups] = {}
    for resampling in ("resize", "warp", "supersample"):
        if now != {resampling}:
            others[resampling] = tuple(replace(g, resampling=resampling) for g in groups)
    return others


def measure_fed(
    workload: Workload, tuning: Tuning, groups: Groups | None, seconds: float, *, longest: float
) -> Measurement:
    """Measure training with a new pipeline.

    Args:
        workload: the recipe.
        tuning: how its pipeline runs.
        groups: view groups instead of the recipe's.
        seconds: how long, including building and warming up.
        longest: how many more seconds filling a cache of decoded images may take.

    Raises:
        ValueError: filling the cache takes longer.
    """
    # A small shuffle buffer, because filling it takes time and makes no batch slower.
    buffer = min(workload.config.shuffle_buffer, 4 * workload.config.batch_size)
    begin = time.perf_counter()
    with workload.loader(tuning, groups=groups, shuffle_buffer=buffer) as loader:
        begin_filled = time.perf_counter()
        if not fill_cache(loader, longest):
            raise ValueError(f"decoding all images once takes more than {longest:g} s")
        begin += time.perf_counter() - begin_filled
        turn = feed_turn(loader, workload.step)
        left = seconds - (time.perf_counter() - begin)
        return measure(turn, left, loader.device, loader=loader)


if __name__ == "__main__":
    run_function(main)
