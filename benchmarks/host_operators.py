"""What a GPU waits for: the operators of the CPU in its graph, and how long a batch takes them.

    python -m benchmarks.host_operators --coco SHARDS --cifar10 SHARDS [--before CHECKOUT]

The graph is described as for a GPU, and everything that a GPU would do is left out of it: what runs
are reading, drawing and reckoning, by DALI's executor, which needs no GPU for it. DALI runs these
operators one after the other, so their sum bounds the feed: 256 samples in 10 ms are 25,600 a
second. What the reader alone takes is measured too. With --before, another checkout of this project
is measured in turn with this one, in processes of their own. The machine should be otherwise idle.
Results go to benchmarks/results/host-operators-cpu.json, and from there into docs/pipeline.md by
`python -m benchmarks.report`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported late: a checkout that is measured beside this one has its own
    from pipeline.graph import ViewGroup

RESULTS = Path(__file__).parent / "results" / "host-operators-cpu.json"
CASES: dict[str, tuple[str, list[tuple[int, int, str]]]] = {  # data; views, pixels, resampling
    "2 × 224, resize": ("coco", [(2, 224, "resize")]),
    "8 × 96, resize": ("coco", [(8, 96, "resize")]),
    "32 × 96, supersample": ("coco", [(32, 96, "supersample")]),
    "32 × 96, resize": ("coco", [(32, 96, "resize")]),
    "2 × 32 and 6 × 20, auto": ("cifar10", [(2, 32, "auto"), (6, 20, "auto")]),
}
BATCHES = (256, 512)


def on_the_cpu(pipeline: Any) -> tuple[list[Any], list[Any]]:
    """Return the operators of a described graph that run on the CPU, and what is read of them.

    Args:
        pipeline: `views_pipeline` of a GPU, not built; nothing of it runs.

    Returns:
        The operators, and those of their outputs that others read. What depends on the GPU, as the
        shape of what it made does, is counted, and not run.
    """
    pipeline._build_graph()
    operators = [op for op in pipeline._ops if "device: cpu" in str(op.spec)]
    run: list[Any] = []
    for op in pipeline._ops:  # in the order of their inputs
        if op in operators and all(node.source in run for node in op.inputs):
            run.append(op)
    others = [op for op in pipeline._ops if op not in run]
    read = [node for op in others for node in op.inputs] + list(pipeline._graph_outputs)
    nodes = {node.name: node for node in read if node.source in run}
    return operators, [type(n)(n.name, "cpu", n.source) for n in nodes.values()]


def described_for_gpu(groups: Sequence[ViewGroup], shards: str | Path, batch: int) -> Any:
    """Return the graph of a GPU that need not be there; it is not built.

    Args:
        groups: the views of every sample.
        shards: shard set.
        batch: samples.
    """
    import torch

    from pipeline.graph import GraphSettings, views_pipeline
    from pipeline.tuning import Tuning
    from shards.layout import open_shards

    settings = GraphSettings(
        batch_size=batch,
        rank=0,
        device=torch.device("cuda", 0),
        seed=0,
        dtype=torch.float16,
        shuffle_buffer=batch,
        tuning=Tuning().filled(batch_size=batch),
    )
    return views_pipeline(open_shards(shards), groups, settings, checkpoint=None)


def measure(
    groups: Sequence[ViewGroup], shards: str, batch: int, *, seconds: float, threads: int = 1
) -> dict[str, float]:
    """Return the number of operators, and the milliseconds of a batch.

    Args:
        groups: the views of every sample.
        shards: shard set.
        batch: samples.
        seconds: of each of two measurements: all operators, the reader alone.
        threads: of DALI's pool, which the work inside an operator may be shared by.
    """
    from pipeline.dali import Pipeline

    operators, outputs = on_the_cpu(described_for_gpu(groups, shards, batch))
    reader = next(op for op in operators if op.name == "reader")
    found: dict[str, float] = {"operators": len(operators)}
    for name, read in (("ms", outputs), ("reader_ms", list(reader.outputs))):
        runs = Pipeline(
            batch_size=batch, num_threads=threads, device_id=None, prefetch_queue_depth=2
        )
        with runs:
            runs.set_outputs(*read)
        runs.build()
        for _ in range(3):
            runs.run()
        begin, batches = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            runs.run()
            batches += 1
        found[name] = 1000 * (time.perf_counter() - begin) / batches
    return found


def markdown(record: dict[str, Any]) -> str:
    """Return the table of docs/pipeline.md."""
    from benchmarks.gpu.tables import table

    where, rounds = record["surroundings"], record["rounds"]
    command = (
        f"python -m benchmarks.host_operators --coco SHARDS --cifar10 SHARDS --rounds {rounds}"
    )
    command += " --before CHECKOUT" if any("before" in row for row in record["rows"]) else ""
    heading = ["views, resampling", "batch", "operators before", "now", "ms a batch before", "now"]
    rows = []
    for row in record["rows"]:
        before, now = row.get("before", {}), row["now"]
        cells = [row["case"], str(row["batch"])]
        cells += [f"{before['operators']:.0f}" if before else "–", f"{now['operators']:.0f}"]
        cells += [f"{before['ms']:.1f}" if before else "–"]
        rows.append([*cells, f"{now['ms']:.1f}", f"{now['reader_ms']:.1f}"])
    return (
        f"{table([*heading, 'of it the reader'], rows)}\n\n"
        f"`{command}`, {where['date'][:10]}, one thread of "
        f"{where['cpu']}, images of COCO (in the last rows of CIFAR-10), all in the page cache; "
        f"medians of {rounds} rounds in turn."
    )


def groups_of(case: str) -> list[ViewGroup]:
    """Return the views of a case."""
    from pipeline.augment import SimCLRViews
    from pipeline.graph import ViewGroup

    return [
        ViewGroup(policy=SimCLRViews(), count=count, size=size, resampling=resampling)  # pyright: ignore[reportArgumentType]
        for count, size, resampling in CASES[case][1]
    ]


def main() -> None:
    """Measure all cases in turn, in processes of their own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--coco", help="shard set of COCO's images")
    parser.add_argument("--cifar10", help="shard set of CIFAR-10's images")
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, batch = arguments.one
        shards = getattr(arguments, CASES[case][0])
        one = measure(groups_of(case), shards, int(batch), seconds=arguments.seconds)
        print(json.dumps(one))
        return
    if not (arguments.coco or arguments.cifar10):
        parser.error("name what is read: --coco SHARDS, --cifar10 SHARDS or both.")
    from training.surroundings import surroundings

    record: dict[str, Any] = {"surroundings": surroundings("nvidia-dali-cuda130"), "rows": []}
    record["rounds"] = arguments.rounds
    versions = {"now": Path(__file__).parents[1]}
    if arguments.before:
        versions = {"before": arguments.before} | versions
    for case, (data, _) in CASES.items():
        if not getattr(arguments, data):
            continue
        for batch in BATCHES:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
            for _ in range(arguments.rounds):
                for name, root in versions.items():
                    command = [sys.executable, __file__, *sys.argv[1:], "--one", case, str(batch)]
                    path = {**os.environ, "PYTHONPATH": str(root)}
                    output = subprocess.run(command, env=path, stdout=subprocess.PIPE, check=True)
                    found[name].append(json.loads(output.stdout.splitlines()[-1]))
            row: dict[str, Any] = {"case": case, "batch": batch}
            for name, rounds in found.items():
                row[name] = {
                    key: round(median(each[key] for each in rounds), 2) for key in rounds[0]
                }
            record["rows"].append(row)
            print(row, flush=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
