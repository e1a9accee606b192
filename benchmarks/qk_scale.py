"""QK iteration with up to a million cached keys: seconds a step, memory, and what filling takes.

    python -m benchmarks.qk_scale --shards data/cifar10-train20k [--keys 10000 100000 1000000]
                                  [--out benchmarks/results/qk-scale-cpu.json]

The recipe is recipes/cifar10_cpu_qk.yaml. Each case has a process of its own:

    bfloat16, by number of keys   a phase is begun as a run does: its views are made and embedded
    float16, float32              of the largest number; the keys are random, only steps are timed
    a tenth                       --method.fill_parts 10: a later phase's fill, among random keys
    by steps                      --method.fill_parts 0 --method.step_keys true: no fills

"share" is the part of a phase of so many steps that its fill takes. Memory is of this process's own
pages, above what it held before the method was made. The machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory_use import MIB, Peak, anonymous
from benchmarks.record import write

RECIPE = "recipes/cifar10_cpu_qk.yaml"
WARM, STEPS = 2, 6
PHASES = (200, 500, 5000)  # steps: the recipe's, the default, and long ones


def cases(keys: Sequence[int]) -> list[dict[str, Any]]:
    """Return what is measured."""
    most = max(keys)
    found = [{"name": "bfloat16", "keys": each, "fill": "views"} for each in sorted(keys)]
    for name in ("float16", "float32"):
        words = ["--method.memory_type", name]
        found.append({"name": name, "keys": most, "fill": "random", "words": words})
    words = ["--method.fill_parts", "10"]
    found.append({"name": "a tenth", "keys": most, "fill": "tenth", "words": words})
    words = ["--method.fill_parts", "0", "--method.step_keys", "true"]
    found.append({"name": "by steps", "keys": most, "fill": "random", "words": words})
    return found


def measure(case: dict[str, Any], shards: str) -> dict[str, Any]:
    """Measure one case in this process."""
    import torch
    from accelerate import Accelerator

    from model.method import MemoryRequest, QKIteration
    from pipeline.loader import Loader
    from pipeline.tuning import default_threads, float_type
    from shards import durable
    from shards.layout import open_shards
    from training.memory_pass import fill
    from training.run import state_file
    from training.settings import parse
    from training.step import Step

    torch.set_num_threads(default_threads(1))
    before, row = anonymous(), dict(case)
    with tempfile.TemporaryDirectory() as scratch, Peak() as peak:
        words = ["--config", RECIPE, "--shards", shards, "--run", f"{scratch}/run"]
        words += ["--method.start_steps", str(WARM + STEPS), "--method.keys", str(case["keys"])]
        config = parse([*words, "--device", "cpu", *case.get("words", [])]).config
        accelerator = Accelerator(cpu=True, mixed_precision=config.precision())
        loader = Loader(
            open_shards(shards),
            config.groups,
            batch_size_per_rank=config.batch_size,
            dtype=float_type(accelerator.device, config.autocast()),
        )
        with loader:
            step = Step(config, accelerator)
            method = step.method
            assert isinstance(method, QKIteration)
            batches = loader.endless()
            row["step_without_memory_s"] = _steps(step, batches)
            request = method.memory_due(WARM + STEPS)
            assert isinstance(request, MemoryRequest)
            if case["fill"] == "views":
                row["fill_s"] = _timed(lambda: fill(method, request, config, loader))
            else:
                whole = MemoryRequest(group=-1, keys=case["keys"], phase=0)
                _remember_random(method, whole)
            if case["fill"] == "tenth":
                later = method.memory_due(WARM + STEPS + 2 * method.phase_steps)
                assert later is not None
                row["fill_s"] = _timed(lambda: fill(method, later, config, loader))
            row["step_s"] = _steps(step, batches)
            state = step.method.state_dict()
            pieces = state_file.pieces(state_file.to_host(state))
            row["checkpoint_mib"] = round(sum(map(len, pieces)) / MIB, 1)
            path = Path(scratch) / "method.safetensors"
            row["checkpoint_s"] = _timed(lambda: durable.write(path, pieces))
    fill_s = row.setdefault("fill_s", 0.0)
    row["share"] = {n: round(fill_s / (fill_s + n * row["step_s"]), 3) for n in PHASES}
    row["peak_mib"] = round((peak.peak - before) / MIB)
    row["precision"] = config.precision()
    return row


def _steps(step: Any, batches: Iterator[Any]) -> float:
    """Return the median seconds of a step, its batch included."""
    seconds = []
    for number in range(WARM + STEPS):
        begin = time.perf_counter()
        for batch in islice(batches, 1):
            step(batch.views, id_B=batch.id_B, learning_rate=1e-3, progress=0.5)
        if number >= WARM:
            seconds.append(time.perf_counter() - begin)
    return round(median(seconds), 4)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return round(time.perf_counter() - begin, 3)


def _remember_random(method: Any, request: Any) -> None:
    """Begin the first phase with unit vectors at random, as if views had been embedded."""
    import torch
    import torch.nn.functional as F

    def batches() -> Iterator[Any]:
        for number in range(1 << 62):
            yield torch.empty(1, 4096, 0), torch.arange(4096) + 4096 * number

    def embed(views_VBX: torch.Tensor) -> torch.Tensor:
        return F.normalize(torch.randn(*views_VBX.shape[:2], method.embedding_size), dim=-1)

    method.embed_reference = embed
    method.remember(request, batches())
    del method.embed_reference


def main(words: Sequence[str]) -> None:
    """Measure all cases and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qk_scale", description=__doc__)
    parser.add_argument("--shards", required=True, help="Shard set of the recipe.")
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, help="JSON to write.")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case), arguments.shards)))
        return
    from training.surroundings import surroundings

    rows = []
    for case in cases(arguments.keys):
        command = [sys.executable, "-m", "benchmarks.qk_scale", "--shards", arguments.shards]
        done = subprocess.run(
            [*command, "--case", json.dumps(case)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr)
    record = {
        "surroundings": surroundings("torch", "nvidia-dali-cuda130"),
        "command": " ".join(["python -m benchmarks.qk_scale", *words]),
        "cases": rows,
    }
    write(record, arguments.out)


if __name__ == "__main__":
    main(sys.argv[1:])
