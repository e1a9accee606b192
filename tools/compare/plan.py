"""Where the files of a comparison lie, how long its runs are, and the commands that make them.

OUT/random/VARIANT-seed0.json   figures of the encoder before it is trained
    runs/VARIANT-seed0/         as train.py leaves it, without checkpoints
    evaluations/VARIANT-seed0-3f2a9c0d.json, and random-VARIANT-…   what --evaluate found out
    logs/*.log                  output of the child processes
    loads/VARIANT-seed0.json    what other programs took of the processor while a run was trained
    machines/VARIANT-seed0.json where, and by which commit, a run was trained
    comparison.json, .md, .png  the result
"""

from __future__ import annotations

import glob
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.compare import run
from tools.compare.budget import Budget
from tools.compare.variants import Variant, terms
from training import exported
from training.config import SHARD_SETS
from training.run import checkpoint

CHECKPOINTS = 10  # of a run: a kill costs at most a tenth of it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison: what is compared, and under which budget."""

    out: Path
    compared: Sequence[Variant]
    samples: dict[str, int]
    """{shard set: number of samples}."""
    digests: dict[str, str]
    """{shard set: digest of its manifest}."""
    seeds: Sequence[int]
    budget: Budget
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
    evaluate: Sequence[str] = ()
    """Flags of tools.evaluate, for what is evaluated after each run besides."""

    # ── files ───────────────────────────────────────────────────────────────────────────────────

    def run(self, variant: Variant, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / f"{variant.name}-seed{seed}"

    def random(self, variant: Variant, seed: int) -> Path:
        """Return the JSON with the figures of a random encoder."""
        return self.out / "random" / f"{variant.name}-seed{seed}.json"

    def evaluation(self, variant: Variant, seed: int, *, random: bool = False) -> Path:
        """Return the JSON with what `evaluate` found out about a run, or a random encoder.

        Other flags have another file, so that none answers for others.
        """
        digest = hashlib.sha256(shlex.join(self.evaluate).encode()).hexdigest()[:8]
        begin = "random-" if random else ""
        return self.out / "evaluations" / f"{begin}{variant.name}-seed{seed}-{digest}.json"

    def about(self, variant: Variant, seed: int, *, random: bool = False) -> list[Path]:
        """Return the files outside its folder that were found out about a run, by any flags."""
        begin = "random-" if random else ""
        name = glob.escape(f"{begin}{variant.name}-seed{seed}-")
        found = list((self.out / "evaluations").glob(f"{name}????????.json"))
        own = () if random else (self.load(variant, seed), self.made_on(variant, seed))
        return [*found, *(path for path in own if path.exists())]

    def load(self, variant: Variant, seed: int) -> Path:
        """Return the JSON that says how busy other programs were; see `tools.compare.load`."""
        return self.out / "loads" / f"{variant.name}-seed{seed}.json"

    def made_on(self, variant: Variant, seed: int) -> Path:
        """Return the JSON that says where a run was trained; see `tools.compare.earlier`."""
        return self.out / "machines" / f"{variant.name}-seed{seed}.json"

    def manifests(self) -> dict[str, dict[str, list[str]]]:
        """Return {variant: {setting: [shard set, digest of its manifest]}}."""
        return {
            variant.name: {
                name: [root, self.digests[root]]
                for name in SHARD_SETS
                if (root := variant.resolved[name]) is not None
            }
            for variant in self.compared
        }

    # ── lengths ─────────────────────────────────────────────────────────────────────────────────

    def encoders(self) -> list[Variant]:
        """Return one variant for each kind of random encoder and of evaluation."""
        kinds: dict[str, Variant] = {}
        for variant in self.compared:
            agreed, size = terms(variant.resolved), variant.resolved["views"]["size"]
            kind = [agreed[name] for name in ("encoder", "weights", "evaluation", "precision")]
            kinds.setdefault(json.dumps([*kind, size]), variant)
        return list(kinds.values())

    def length(self, variant: Variant) -> int | None:
        """Return the number of steps of a run; None if it is as long as its seconds.

        Raises:
            ValueError: no step fits into the budget, or none after the warm-up.
        """
        try:
            steps = self.budget.steps(variant.image_views)
        except ValueError as error:
            raise ValueError(f"{variant.name}: {error}") from error
        epoch = self.samples[variant.resolved["shards"]] // variant.resolved["batch_size"]
        warmup = round(variant.resolved["warmup_epochs"] * epoch)
        if steps is not None and warmup >= steps:
            raise ValueError(
                f"{variant.name}: its warm-up takes {warmup:,} steps, but only {steps:,} fit into "
                "the budget. Give more, or all a shorter warm-up: -- --warmup_epochs 0."
            )
        return steps

    # ── commands ────────────────────────────────────────────────────────────────────────────────

    def random_command(self, variant: Variant, seed: int) -> list[str]:
        """Return the command that evaluates the encoder with which a run begins."""
        found = self.random(variant, seed)
        return self._evaluate(variant, found.with_suffix(""), ["--random_init", "true"], found)

    def evaluate_command(self, variant: Variant, seed: int, *, random: bool = False) -> list[str]:
        """Return the command that evaluates a run, or a random encoder, as `evaluate` says.

        Of a run whose checkpoints are gone, the exported encoder is evaluated, by the recipe that
        lies beside it.
        """
        folder, words = self.run(variant, seed), list(self.evaluate)
        if random:
            folder = self.random(variant, seed).with_suffix("")
            words += ["--random_init", "true"]
        elif not (folder / checkpoint.FOLDER).exists():
            folder /= exported.NAME
        found = self.evaluation(variant, seed, random=random)
        return self._evaluate(variant, folder, words, found)

    def _evaluate(self, variant: Variant, subject: Path, words: list[str], out: Path) -> list[str]:
        settings = variant.resolved
        how = ["--device", settings["device"], "--mixed_precision", settings["mixed_precision"]]
        words = [str(subject), *words, "--json", str(out), *how]
        return [sys.executable, "-m", "tools.evaluate", *words]

    def run_command(self, variant: Variant, seed: int) -> list[str]:
        """Return the command that trains a run.

        Raises:
            ValueError: see `length`.
        """
        steps, folder = self.length(variant), self.run(variant, seed)
        words = ["--config", str(variant.recipe), *self.more, *variant.flags]
        words += ["--epochs", "null", "--steps", f"{steps or 'null'}"]
        words += ["--max_seconds", f"{self.budget.seconds or 'null'}"]
        words += ["--evaluate_every", "null", "--evaluations", str(self.points)]
        if steps is not None:  # else there is a checkpoint after each evaluation
            words += ["--checkpoint_every", str(max(1, steps // CHECKPOINTS))]
        words += ["--profile_seconds", "0", "--keep_checkpoints", "1", "--keep_every", "0"]
        words += ["--trackers", "[]", "--seed", str(seed), "--run", str(folder)]
        return [*run.launch(self.processes), *words]
