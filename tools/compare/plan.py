"""Where everything of a comparison lies, and the exact commands that make it.

OUT/random/VARIANT-seed0.json   what the encoder can before it is trained
    pilots/RECIPE-HASH.json     seconds a step
    runs/VARIANT-seed0/         as train.py leaves it, without checkpoints
    logs/*.log                  what the child processes said
    comparison.json, .md, .png  the result
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.compare import run_length, trial
from tools.compare.run_length import RunLength, StepTime
from tools.compare.variants import EVALUATION_SETS, Variant, terms

CHECKPOINTS = 10  # of a run: a tenth of it is the most that a kill can cost
ENDLESS = 10**9  # steps


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is going to be done."""

    out: Path
    compared: Sequence[Variant]
    samples: dict[str, int]
    """{shard set: number of samples}."""
    seeds: Sequence[int]
    budget: RunLength
    points: int
    """Evaluations in a run, the last included."""
    processes: int
    """Of each run."""
    more: Sequence[str]
    """Flags of train.py for all runs."""
    allowed: dict[str, list[str]]
    """Differences that were allowed, by name."""
    command: str
    """Of the comparison."""

    # ── places ──────────────────────────────────────────────────────────────────────────────────

    def run(self, variant: Variant, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / f"{variant.name}-seed{seed}"

    def random(self, variant: Variant, seed: int) -> Path:
        """Return the JSON with the figures of an encoder that was not trained."""
        return self.out / "random" / f"{variant.name}-seed{seed}.json"

    def pilot(self, variant: Variant) -> Path:
        """Return the JSON with the pace of a variant; those with equal steps share one."""
        return self.out / "pilots" / f"{variant.cost_key(self.processes)}.json"

    # ── lengths ─────────────────────────────────────────────────────────────────────────────────

    def floors(self) -> list[Variant]:
        """Return one variant for each kind of encoder and of evaluation."""
        kinds: dict[str, Variant] = {}
        for variant in self.compared:
            agreed, size = terms(variant.resolved), variant.resolved["views"]["size"]
            kind = [agreed[name] for name in ("encoder", "evaluation", "precision")]
            kinds.setdefault(json.dumps([*kind, size]), variant)
        return list(kinds.values())

    def pace(self, variant: Variant) -> dict[str, Any] | None:
        """Return what the pilot found, or none if there was none yet."""
        path = self.pilot(variant)
        return json.loads(path.read_text()) if path.exists() else None

    def length(self, variant: Variant) -> int | None:
        """Return the number of steps, or none while the pilot is missing.

        Raises:
            ValueError: no step fits into the budget, or none after the warm-up.
        """
        facts = self.pace(variant) if self.budget.seconds else None
        if self.budget.seconds and facts is None:
            return None
        pace = StepTime(facts["seconds_per_step"], facts["start_up"]) if facts else None
        try:
            steps = self.budget.steps(variant.image_views, pace)
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
        """Return how the encoder is evaluated that a run begins with."""
        settings, found = variant.resolved, self.random(variant, seed)
        words = [str(found.with_suffix("")), "--random_init", "true", "--json", str(found)]
        words += ["--device", settings["device"], "--mixed_precision", settings["mixed_precision"]]
        return [sys.executable, "-m", "tools.evaluate", *words]

    def pilot_command(self, variant: Variant, *, log_every: int) -> list[str]:
        """Return how the seconds of a step are measured."""
        assert self.budget.seconds is not None
        seconds = min(run_length.SECONDS, self.budget.seconds / 4)
        words = ["--steps", str(ENDLESS), "--max_seconds", f"{seconds:g}"]
        for name in EVALUATION_SETS:
            words += [f"--{name}", "null"]
        words += ["--evaluate_every", "null", "--log_every", str(log_every)]
        words += ["--checkpoint_every", str(ENDLESS)]
        return self._train(variant, self.seeds[0], self.pilot(variant).with_suffix(""), words)

    def run_command(self, variant: Variant, seed: int, steps: int) -> list[str]:
        """Return how a run is trained."""
        between = -(-steps // self.points)
        words = ["--steps", str(steps), "--max_seconds", f"{self.budget.seconds or 'null'}"]
        words += ["--evaluate_every", repr(between / self._epoch(variant))]
        words += ["--checkpoint_every", str(max(1, steps // CHECKPOINTS))]
        return self._train(variant, seed, self.run(variant, seed), words)

    def _train(self, variant: Variant, seed: int, run: Path, words: Sequence[str]) -> list[str]:
        mine = ["--config", str(variant.recipe), *self.more, *variant.flags]
        fixed = ["--epochs", "null", "--profile_seconds", "0", "--keep_checkpoints", "1"]
        fixed += ["--trackers", "[]", "--seed", str(seed), "--run", str(run)]
        return [*trial.launch(self.processes), *mine, *fixed, *words]

    def _epoch(self, variant: Variant) -> int:
        """Return steps an epoch."""
        return self.samples[variant.resolved["shards"]] // variant.resolved["batch_size"]
