"""What encoders are worth: every protocol of tools.evaluate on STL-10, CIFAR-10, COCO and VOC.

    python -m benchmarks.protocols --data DATA --random RUN --encoders s2r2=RUN simclr=RUN swav=RUN
                                   --out benchmarks/results/protocols-cpu.json

DATA holds shard sets stl10/train and test, cifar10/train and test, coco/train and val (`tools.shard
coco`), voc/train and test (`tools.shard voc`). A RUN is a run's folder or its encoder.safetensors;
--random is a run's folder, whose weights from before training are evaluated.

Each protocol of each encoder is a process of its own and is in the JSON when it ends; the same
command goes on with what is missing. Seconds are of a machine that is otherwise idle only if
nothing runs beside it: `taskset -c N` gives a process a core of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.tables import table
from benchmarks.record import write

RANDOM = "random"
TUNED = ["--protocol", "fine_tuning", "--fine_tuning.draws", "1", "--fine_tuning.labels"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "frozen": (["stl10", "cifar10"], ["--protocol", "knn", "linear", "few_shot"]),
    "multi_label": (["coco", "voc"], ["--protocol", "multi_label", "multi_label_linear"]),
    "augmented_probe": (
        ["stl10"],
        ["--protocol", "augmented_probe", "--augmented_probe.epochs", "10"],
    ),
    "few_labels": (["stl10"], [*TUNED, "0.01", "0.1"]),
    "all_labels": (["stl10"], [*TUNED, "1", "--fine_tuning.rates", "0.05"]),
    "detection": (
        ["voc"],
        ["--protocol", "detection", "--detection.recipe", "recipes/detection/voc_cpu.yaml"],
    ),
}
"""{case: (sets, flags)}."""
ROWS = {
    "k-NN, STL-10": ("frozen", "stl10", "knn_top1"),
    "linear probe, STL-10": ("frozen", "stl10", "linear_top1"),
    "linear probe on random crops, STL-10": ("augmented_probe", "stl10", "augmented_probe_top1"),
    "few-shot, 1 image a class, STL-10": ("frozen", "stl10", "few_shot_1_top1"),
    "few-shot, 5 images a class, STL-10": ("frozen", "stl10", "few_shot_5_top1"),
    "few-shot, 10 images a class, STL-10": ("frozen", "stl10", "few_shot_10_top1"),
    "fine-tuned on 1 % of the labels, STL-10": ("few_labels", "stl10", "fine_tuned_1_top1"),
    "fine-tuned on 10 %, STL-10": ("few_labels", "stl10", "fine_tuned_10_top1"),
    "fine-tuned on 100 %, STL-10": ("all_labels", "stl10", "fine_tuned_100_top1"),
    "k-NN, CIFAR-10": ("frozen", "cifar10", "knn_top1"),
    "linear probe, CIFAR-10": ("frozen", "cifar10", "linear_top1"),
    "multi-label probe, mAP, COCO": ("multi_label", "coco", "multi_label_map"),
    "multi-label k-NN, mAP, COCO": ("multi_label", "coco", "multi_label_knn_map"),
    "multi-label probe, mAP, VOC": ("multi_label", "voc", "multi_label_map"),
    "detection, AP50, VOC": ("detection", "voc", "detection_voc_ap50"),
}
"""{what people call a figure: where it is}."""


def markdown(record: Mapping[str, Any]) -> str:
    """Return a row for each figure and a column for each encoder, with the seconds of the first."""
    encoders = record["encoders"]
    timed = record["timed"]
    names = sorted(encoders, key=lambda name: name != RANDOM)  # it first, the others as they are
    rows, told = [], set[str]()
    for title, (case, where, figure) in ROWS.items():
        found = [encoders[name].get(case, {}).get("sets", {}).get(where, {}) for name in names]
        cells = [f"{100 * each[figure]:.1f}" if figure in each else "" for each in found]
        seconds = encoders[timed].get(case, {}).get("seconds")
        shown = "" if seconds is None or case in told else f"{seconds:.0f}"
        told.add(case)
        rows.append([title, *cells, shown])
    return table(["%", *names, f"seconds of {timed}"], rows)


def evaluate(words: Sequence[str], case: str, data: Path) -> dict[str, Any]:
    """Return the figures of a case by set, and its seconds.

    Raises:
        SystemExit: it failed; what it printed is shown.
    """
    folders, flags = CASES[case]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        sets = ["--sets", *(str(data / each) for each in folders)]
        command = [sys.executable, "-m", "tools.evaluate", *words, *sets, *flags]
        begin = time.perf_counter()
        done = subprocess.run([*command, "--json", str(out)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seconds = time.perf_counter() - begin
        found = json.loads(out.read_text())["sets"]
    figures = {
        name: {key: value for key, value in each.items() if isinstance(value, float)}
        for name, each in found.items()
    }
    return {"sets": figures, "seconds": round(seconds, 1)}


def main(words: Sequence[str]) -> None:
    """Evaluate what is missing in the JSON, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.protocols",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the shard sets")
    parser.add_argument("--random", help="run whose weights from before training are evaluated")
    parser.add_argument("--encoders", nargs="+", default=[], metavar="NAME=RUN")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, required=True, help="JSON; it goes on there")
    arguments = parser.parse_args(words)
    from training.surroundings import surroundings

    asked = {name: [run] for name, _, run in (e.partition("=") for e in arguments.encoders)}
    if arguments.random:
        asked[RANDOM] = [arguments.random, "--random_init", "true"]
    if arguments.out.exists():
        record = json.loads(arguments.out.read_text())
    else:
        record = {"surroundings": surroundings("torch", "torchvision"), "encoders": {}}
    for name, run in asked.items():
        found = record["encoders"].setdefault(name, {})
        record.setdefault("timed", name)
        for case in arguments.cases:
            if case not in found:
                print(f"{name}, {case} …", file=sys.stderr)
                found[case] = evaluate(run, case, arguments.data)
                write(record, arguments.out)
    print(markdown(record))


if __name__ == "__main__":
    main(sys.argv[1:])
