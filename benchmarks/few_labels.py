"""Linear probes of few labels, of every run of a comparison: a table of docs/ranking.md.

    python -m benchmarks.few_labels runs/mine --train data/stl10/train --test data/stl10/test
                                    [--out benchmarks/results/ranking-labels-stl10-cpu-seed0.json]

`runs/mine` is a folder of tools.compare. Each run's encoder is frozen; tools.embed makes its
features once, and `evaluation.linear` learns from so many labels of each class, chosen anew in each
draw. All runs have the same draws.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.record import write
from evaluation import linear
from evaluation.features import Features
from evaluation.label_draw import some_of_each_class
from training.surroundings import surroundings

SHARES, DRAWS = (0.01, 0.1, 1.0), 5


def few_labels(
    train: Features, test: Features, *, shares: Sequence[float] = SHARES, draws: int = DRAWS
) -> dict[str, list[float]]:
    """Return {share: the probe's accuracy in each draw}; all labels are drawn once.

    Args:
        train: features with a label each, of which shares of every class are learned from.
        test: features that are asked about.
        shares: of the labels, 0 to 1.
        draws: how many are made of each share.
    """
    _, class_N = train.label_N.unique(return_inverse=True)
    found: dict[str, list[float]] = {}
    for share in shares:
        some_K = (class_N.bincount() * share).round().long()
        if int(some_K.min()) < 1:
            raise ValueError(
                f"of a class with {int(class_N.bincount().min())} labels, {share:g} is none."
            )
        parts = [
            train.rows(some_of_each_class(class_N, train.id_N, some_K, seed=seed))
            for seed in range(draws if share < 1 else 1)
        ]
        found[f"{share:g}"] = [linear.run(part, test)["linear_top1"] for part in parts]
    return found


def _features(encoder: Path, shards: str, scratch: Path) -> Features:
    """Return what tools.embed says of a shard set's labelled images."""
    file = scratch / "features.npz"
    file.unlink(missing_ok=True)
    words = [sys.executable, "-m", "tools.embed", str(encoder), shards, "--out", str(file)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with np.load(file) as held:
        columns = (torch.from_numpy(held[name]) for name in ("feature", "label", "id"))
        h_NF, label_N, id_N = columns
    return Features(h_NF=h_NF, label_N=label_N, id_N=id_N).labelled()


def measure(folder: Path, run: Mapping[str, Any], train: str, test: str) -> dict[str, Any]:
    """Return the figures of one run of a comparison."""
    encoder = folder / "runs" / f"{run['variant']}-seed{run['seed']}" / "encoder.safetensors"
    with tempfile.TemporaryDirectory() as scratch:
        learned, asked = (_features(encoder, shards, Path(scratch)) for shards in (train, test))
    return {"variant": run["variant"], "seed": run["seed"], "top1": few_labels(learned, asked)}


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = json.loads((arguments.folder / "comparison.json").read_text())["runs"]
    found = []
    for run in (each for each in runs if "final" in each):
        found.append(measure(arguments.folder, run, arguments.train, arguments.test))
        shown = ", ".join(f"{k}: {100 * mean(v):.1f} %" for k, v in found[-1]["top1"].items())
        print(f"{run['variant']}, seed {run['seed']}: {shown}", file=sys.stderr)
    record = {
        "command": " ".join(["python -m benchmarks.few_labels", *sys.argv[1:]]),
        "surroundings": surroundings("torch"),
        "runs": found,
    }
    write(record, arguments.out)


if __name__ == "__main__":
    main()
