"""Kill small runs at random moments, again and again, and compare what they end with.

    python -m tests.torture --minutes 60 --out benchmarks/results/torture-cpu.json

Each case, a method on one or two processes, is trained once in peace. Then the same command is
started and killed (SIGKILL, launcher and all) until it has had its share of kills, at random
moments, and as soon as a checkpoint is seen being written; and then left to finish. After every
kill the newest checkpoint must load and be no older than before it; in the end every loss and every
weight must be that of the run in peace, to the bit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.layout import ShardSet, open_shards
from shards.writing.write import write
from tests.conftest import Pictures
from tests.program import BIN, CPU, TWO, finish, kill, losses, start, weights
from training.run import checkpoint
from training.run.origin import commit, versions

COMMON = """
batch_size: 8
learning_rate: 0.01
warmup_epochs: 0.5
clip_gradient_norm: 1.0
shuffle_buffer: 16
log_every: 1
checkpoint_every: 2
keep_checkpoints: 2
profile_seconds: 0
check_memory: false
"""
GROUPS = """
views: {count: 2, size: 24, policy: {class_path: SimCLRViews, init_args: {blur_window: 3}}}
"""
CROPS = """
more_views:
- {count: 2, size: 16, policy: {class_path: SwAVViews, init_args: {small: true, blur_window: 3}}}
"""
PAIR = """
views: {count: 1, size: 16, policy: {class_path: SimCLRViews, init_args: {blur_window: 3}}}
more_views:
- {count: 1, size: 16, policy: {class_path: SimCLRViews, init_args: {area: [0.8, 1.0], blur: 0.0}}}
"""
HEAD = "encoder: {class_path: SmallResNet, init_args: {width: 4}}, hidden_size: 16, "
METHODS = {
    "s2r2": GROUPS
    + CROPS
    + f"method: {{class_path: JointEmbedding, init_args: {{{HEAD} embedding_size: 8, "
    "objective: {class_path: SmoothAP}}}",
    "swav": GROUPS
    + CROPS
    + f"method: {{class_path: SwAV, init_args: {{{HEAD} embedding_size: 8, prototypes: 6, "
    "queue_size: 16, queue_start: 3, freeze_prototypes: 2}}",
    "moco": GROUPS
    + f"method: {{class_path: MoCo, init_args: {{{HEAD} embedding_size: 8, queue_size: 32}}}}",
    "byol": GROUPS + f"method: {{class_path: BYOL, init_args: {{{HEAD} embedding_size: 8}}}}",
    "simsiam": GROUPS + f"method: {{class_path: SimSiam, init_args: {{{HEAD} embedding_size: 8}}}}",
    "qk": PAIR + f"method: {{class_path: QKIteration, init_args: {{{HEAD} embedding_size: 8, "
    "start_steps: 1, phase_steps: 4, keys: 70}}",
}


@dataclass(frozen=True)
class TortureCase:
    """A method on so many processes."""

    method: str
    processes: int

    def command(self, shard_set: ShardSet, run: Path, steps: int) -> list[str]:
        """Return the command line of a run."""
        run.parent.mkdir(parents=True, exist_ok=True)
        recipe = run.parent / "recipe.yaml"
        recipe.write_text(COMMON + METHODS[self.method] + "\n")
        launch = [sys.executable] if self.processes == 1 else [str(BIN / "accelerate"), *TWO]
        files = ["--config", str(recipe), "--shards", str(shard_set.root), "--run", str(run)]
        return [*launch, "train.py", *files, "--steps", str(steps)]


class Torture:
    """One case: a run in peace, and one that is killed.

    Args:
        case: what is trained.
        shard_set: on what.
        folder: where the runs go.
        steps: length of both.
        chance: random moments.
    """

    def __init__(
        self,
        case: TortureCase,
        shard_set: ShardSet,
        folder: Path,
        *,
        steps: int,
        chance: random.Random,
    ) -> None:
        self.case, self._chance, self._steps = case, chance, steps
        self.peaceful, self.killed = folder / "peaceful" / "run", folder / "killed" / "run"
        self._commands = [case.command(shard_set, r, steps) for r in (self.peaceful, self.killed)]
        self.kills: Counter[str] = Counter()

    def begin(self) -> None:
        """Train in peace."""
        code, out, err = finish(self._commands[0], **CPU)
        assert code == 0, out + err

    def kill(self) -> bool:
        """Start the command and kill it; return whether it was still running."""
        before = _newest_step(self.killed)
        process = start(self._commands[1], **CPU)
        at_write = self._chance.random() < 0.4
        goal = before + self._chance.randint(0, 5)
        patience = time.monotonic() + (self._chance.uniform(0, 12) if not at_write else 60)
        # A moment in the start of the program, in a step, or in the writing of a checkpoint.
        while process.poll() is None and time.monotonic() < patience:
            if at_write and any((self.killed / checkpoint.FOLDER).glob(".*.partial")):
                time.sleep(self._chance.uniform(0, 0.01))
                break
            if not at_write and losses(self.killed) and losses(self.killed)[-1][0] > goal:
                time.sleep(self._chance.uniform(0, 0.3))
                break
            time.sleep(0.0005 if at_write else 0.01)
        alive = process.poll() is None
        writing = any((self.killed / checkpoint.FOLDER).glob(".*.partial"))
        kill(process)
        assert alive or process.returncode == 0, f"{self.case} ended with {process.returncode}"
        if alive:
            stepped = bool(losses(self.killed))
            self.kills["writing" if writing else "training" if stepped else "starting"] += 1
        after = _newest_step(self.killed)
        assert after >= before, f"{self.case}: step {before} was saved, now the newest is {after}"
        return alive

    def end(self) -> None:
        """Let the killed run finish, and compare."""
        code, out, err = finish(self._commands[1], **CPU)
        assert code == 0, out + err
        assert losses(self.killed) == losses(self.peaceful), self.case
        expected, found = weights(self.peaceful), weights(self.killed)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{self.case}: {name}"
        left = [p.name for p in (self.killed / checkpoint.FOLDER).iterdir() if p.name[0] == "."]
        assert not left, left


def _newest_step(run: Path) -> int:
    saved = checkpoint.newest(run)
    if saved is None:
        return 0
    for read in (saved.method, saved.optimizer):
        read()
    for rank in range(saved.world_size):
        saved.rank(rank)
    return saved.step


def torture(
    cases: Sequence[TortureCase], *, kills: int, steps: int, folder: Path, seed: int, minutes: float
) -> dict[str, Any]:
    """Kill every case so many times, or until the time is over; return what was done."""
    write(Pictures(42), str(folder / "shards"))
    shard_set = open_shards(str(folder / "shards"))
    chance = random.Random(seed)
    deadline = time.monotonic() + minutes * 60
    done: list[dict[str, Any]] = []
    for case in cases:
        each = Torture(
            case,
            shard_set,
            folder / f"{case.method}-{case.processes}",
            steps=steps,
            chance=chance,
        )
        each.begin()
        for _ in range(kills):
            if time.monotonic() > deadline or not each.kill():
                break
        each.end()
        counts = dict(each.kills)
        done.append({"method": case.method, "processes": case.processes, "kills": counts})
        print(f"{case.method:8} {case.processes} processes: killed {counts}, equal to the bit")
    return {"seed": seed, "steps": steps, "commit": commit(), "versions": versions(), "cases": done}


def main() -> None:
    """Torture all methods, on one and on two processes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=60, help="when no more is killed")
    arguments.add_argument("--kills", type=int, default=6, help="of each case")
    arguments.add_argument("--steps", type=int, default=30, help="length of the runs")
    arguments.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments.add_argument("--out", type=Path, help="where to write what was done, as JSON")
    given = arguments.parse_args()
    cases = [TortureCase(method, processes) for processes in (1, 2) for method in METHODS]
    with tempfile.TemporaryDirectory() as folder:
        done = torture(
            cases,
            kills=given.kills,
            steps=given.steps,
            folder=Path(folder),
            seed=given.seed,
            minutes=given.minutes,
        )
    total = sum(sum(case["kills"].values()) for case in done["cases"])
    print(f"{total} kills; every run ended as if nothing had happened")
    if given.out:
        given.out.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
