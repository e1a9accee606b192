"""What checkpoints cost: in the step loop, until they are on the disk, and to come back from.

    python -m benchmarks.checkpoint_cost --out benchmarks/results/checkpoint-cpu.json
    python -m benchmarks.checkpoint_cost --folder /scratch --rounds 60

A ResNet-50 under MoCo with a queue of 65,536 takes real steps on random views. Short stretches with
one checkpoint stand between stretches without any: what a checkpoint costs is what a stretch took
longer than its steps took in the two beside it, waiting included. So a machine whose speed drifts
does little harm; the median of many is given, with its quartiles, and the overhead is that of one
every 30 seconds. Without a GPU it is measured twice: with training on every core, so that whoever
writes takes time from it, and with one core left.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.record import write
from model.random_numbers import random_state
from pipeline.profile import synchronize
from training.run import checkpoint
from training.run.agreement import Agreement
from training.run.writer import Writer
from training.settings import parse
from training.step import Step
from training.surroundings import surroundings

SELDOM = 30
"""Seconds between checkpoints for which the overhead is given."""
WORDS = ["--shards", "x", "--run", "r", "--steps", "9", "--method", "MoCo"]
WORDS += ["--method.encoder", "ResNet", "--method.encoder.depth", "50"]
WORDS += ["--method.queue_size", "65536"]
WORDS += ["--optimizer", "sgd", "--learning_rate", "1e-4"]


class Training:
    """A run without a data pipeline: its steps cost what the networks cost.

    Args:
        run: folder of its checkpoints.
        batch_size: samples of a step, two views each.
        size: of the views, in pixels.
    """

    def __init__(self, run: Path, *, batch_size: int, size: int) -> None:
        config = parse([*WORDS, "--batch_size", str(batch_size), "--views.size", str(size)]).config
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=config.precision()
        )
        self.train, self.device = Step(config, accelerator), accelerator.device
        shape = (batch_size, 2, size, size, 3)
        self.views = torch.randn(shape, device=self.device).permute(1, 0, 4, 2, 3)
        self.run, self.agreement, self.step = run, Agreement(3), 0
        facts = {"world_size": 1, "machine": "benchmark"}
        self.writer = Writer(run, rank=0, facts=facts, keep=2)

    def save(self) -> float:
        """Start a checkpoint; return the seconds that the step loop waits for it."""
        synchronize(self.device)
        begin = time.perf_counter()
        parts: dict[str, Any] = {
            checkpoint.METHOD: self.train.method.state_dict(),
            checkpoint.OPTIMIZER: {"optimizer": self.train.optimizer.state_dict()},
            checkpoint.rank_file(0): {"random": random_state()},
        }
        self.writer.save(step=self.step, seconds=0.0, parts=parts, agreement=self.agreement)
        return time.perf_counter() - begin

    def stretch(self, seconds: float, *, save: bool) -> tuple[float, int]:
        """Take steps for so long, after a checkpoint or none; return seconds and steps."""
        synchronize(self.device)
        begin, steps = time.perf_counter(), 0
        if save:
            self.save()
        while time.perf_counter() - begin < seconds:
            self.train((self.views,), learning_rate=1e-4)
            self.step, steps = self.step + 1, steps + 1
            self.writer.advance(self.agreement.exchange([0, *self.writer.status()])[1:])
        self.writer.settle(self.agreement)  # what is still being written is this stretch's
        synchronize(self.device)
        return time.perf_counter() - begin, steps


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what saving, restoring and training beside both cost."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        training = Training(Path(folder), batch_size=arguments.batch_size, size=arguments.size)
        training.stretch(2 * arguments.seconds, save=False)  # warm-up

        waits, saves, restores = [], [], []
        for _ in range(5):
            training.step += 1
            begin = time.perf_counter()
            waits.append(training.save())
            assert training.writer.settle(training.agreement) == training.step
            saves.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            saved = checkpoint.newest(training.run)
            assert saved is not None
            training.train.method.load_state_dict(saved.method())
            training.train.optimizer.load_state_dict(saved.optimizer()["optimizer"])
            synchronize(training.device)
            restores.append(time.perf_counter() - begin)
        root = training.run / checkpoint.FOLDER
        size = sum(f.stat().st_size for f in next(iter(sorted(root.iterdir()))).iterdir())
        free = shutil.disk_usage(folder).free
        cores = torch.get_num_threads()
        left = [0] if torch.cuda.is_available() or cores == 1 else [0, 1]
        beside = []
        for spare in left:
            torch.set_num_threads(cores - spare)
            beside.append({"cores_left": spare, **_beside(training, arguments)})
    return {
        "command": "python -m benchmarks.checkpoint_cost",
        "surroundings": surroundings("torch", "safetensors", "accelerate"),
        "checkpoint_mib": round(size / 2**20, 1),
        "free_gib": round(free / 2**30, 1),
        "loop_waits_seconds": round(median(waits), 4),
        "saved_after_seconds": round(median(saves), 3),
        "restored_after_seconds": round(median(restores), 3),
        "beside_training": beside,
    }


def _beside(training: Training, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a checkpoint costs the steps, of stretches with and without, in turns."""
    without, costs = [training.stretch(arguments.seconds, save=False)], []
    for _ in range(arguments.rounds):
        seconds, steps = training.stretch(arguments.seconds, save=True)
        without.append(training.stretch(arguments.seconds, save=False))
        costs.append(seconds - steps * fmean(took / count for took, count in without[-2:]))
    lower, middle, upper = quantiles(costs, n=4)
    steps = [took / count for took, count in without]
    return {
        "checkpoints_written": len(costs),
        "step_seconds_without": {
            "median": round(median(steps), 5),
            "least": round(min(steps), 5),
            "most": round(max(steps), 5),
        },
        "seconds_lost_by_a_checkpoint": [round(cost, 3) for cost in costs],
        "quartiles": [round(lower, 3), round(middle, 3), round(upper, 3)],
        f"overhead_every_{SELDOM}_seconds": round(middle / SELDOM, 4),
        "overhead_quartiles": [round(lower / SELDOM, 4), round(upper / SELDOM, 4)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where checkpoints go; else a temporary one")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a stretch")
    parser.add_argument("--rounds", type=int, default=9, help="checkpoints")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="of the views, in pixels")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds} have no quartiles; take 2 or more")
    found = measure(arguments)
    write(found, None)
    if arguments.out:
        write(found, arguments.out)


if __name__ == "__main__":
    main()
