"""Where the files of a comparison lie, how long its runs are, and the commands that make them.

OUT/random/VARIANT-seed0.json   figures of the encoder before it is trained
    pilots/RECIPE-HASH.json     seconds of a step
    runs/VARIANT-seed0/         as train.py leaves it, without checkpoints
    logs/*.log                  output of the child processes
    comparison.json, .md, .png  the result
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.compare import run
from tools.compare.variants import EVALUATION_SETS, Variant, terms
from training import run_length
from training.run_length import RunLength, StepTime

CHECKPOINTS = 10  # of a run: a kill costs at most a tenth of it
ENDLESS = 10**9  # steps


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison: what is compared, and under which budget."""

    out: Path
    compared: Sequence[Variant]
    samples: dict[str, int]
    """{shard set: number of samples}."""
    seeds: Sequence[int]
    budget: RunLength
    points: int
    """Evaluations in a run, the last included."""
    processes: int
    """Number of them in each run."""
    more: Sequence[str]
    """Flags of train.py for all runs."""
    allowed: dict[str, list[str]]
    """Differences that were allowed, by name."""
    command: str
    """Command line of the comparison."""

    # ── files ───────────────────────────────────────────────────────────────────────────────────

    def run(self, variant: Variant, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / f"{variant.name}-seed{seed}"

    def random(self, variant: Variant, seed: int) -> Path:
        """Return the JSON with the figures of a random encoder."""
        return self.out / "random" / f"{variant.name}-seed{seed}.json"

    def pilot(self, variant: Variant) -> Path:
        """Return the JSON with the step time of a variant; variants with equal steps share one."""
        return self.out / "pilots" / f"{variant.cost_key(self.processes)}.json"

    # ── lengths ─────────────────────────────────────────────────────────────────────────────────

    def encoders(self) -> list[Variant]:
        """Return one variant for each kind of random encoder and of evaluation."""
        kinds: dict[str, Variant] = {}
        for variant in self.compared:
            agreed, size = terms(variant.resolved), variant.resolved["views"]["size"]
            kind = [agreed[name] for name in ("encoder", "evaluation", "precision")]
            kinds.setdefault(json.dumps([*kind, size]), variant)
        return list(kinds.values())

    def step_time(self, variant: Variant) -> dict[str, Any] | None:
        """Return what the pilot of a variant found, None before it."""
        path = self.pilot(variant)
        return json.loads(path.read_text()) if path.exists() else None

    def length(self, variant: Variant) -> int | None:
        """Return the number of steps of a run, None before its pilot.

        Raises:
            ValueError: no step fits into the budget, or none after the warm-up.
        """
        found = self.step_time(variant) if self.budget.seconds else None
        if self.budget.seconds and found is None:
            return None
        time = StepTime(found["seconds_per_step"], found["start_up"]) if found else None
        try:
            steps = self.budget.steps(variant.image_views, time)
        except ValueError as error:
            raise ValueError(f"{variant.name}: {error}") from error
        warmup = round(variant.resolved["warmup_epochs"] * self._epoch(variant))
        if warmup >= steps:
            raise ValueError(
                f"{variant.name}: its warm-up takes {warmup:,} steps, but only {steps:,} fit into "
                "the budget. Give more, or all a shorter warm-up: -- --warmup_epochs 0."
            )
        return steps

    # ── commands ────────────────────────────────────────────────────────────────────────────────

    def random_command(self, variant: Variant, seed: int) -> list[str]:
        """Return the command that evaluates the encoder with which a run begins."""
        settings, found = variant.resolved, self.random(variant, seed)
        words = [str(found.with_suffix("")), "--random_init", "true", "--json", str(found)]
        words += ["--device", settings["device"], "--mixed_precision", settings["mixed_precision"]]
        return [sys.executable, "-m", "tools.evaluate", *words]

    def pilot_command(self, variant: Variant, *, log_every: int) -> list[str]:
        """Return the command that measures the seconds of a step."""
        assert self.budget.seconds is not None
        seconds = min(run_length.SECONDS, self.budget.seconds / 4)
        words = ["--steps", str(ENDLESS), "--max_seconds", f"{seconds:g}"]
        for name in (*EVALUATION_SETS, "evaluate_every"):
            words += [f"--{name}", "null"]
        words += ["--log_every", str(log_every), "--checkpoint_every", str(ENDLESS)]
        return self._train(variant, self.seeds[0], self.pilot(variant).with_suffix(""), words)

    def run_command(self, variant: Variant, seed: int, steps: int) -> list[str]:
        """Return the command that trains a run."""
        between = -(-steps // self.points)
        words = ["--steps", str(steps), "--max_seconds", f"{self.budget.seconds or 'null'}"]
        words += ["--evaluate_every", repr(between / self._epoch(variant))]
        words += ["--checkpoint_every", str(max(1, steps // CHECKPOINTS))]
        return self._train(variant, seed, self.run(variant, seed), words)

    def _train(self, variant: Variant, seed: int, folder: Path, words: Sequence[str]) -> list[str]:
        mine = ["--config", str(variant.recipe), *self.more, *variant.flags]
        fixed = ["--epochs", "null", "--profile_seconds", "0", "--keep_checkpoints", "1"]
        fixed += ["--trackers", "[]", "--seed", str(seed), "--run", str(folder)]
        return [*run.launch(self.processes), *mine, *fixed, *words]

    def _epoch(self, variant: Variant) -> int:
        """Return the number of steps in an epoch."""
        return self.samples[variant.resolved["shards"]] // variant.resolved["batch_size"]
