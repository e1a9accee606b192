"""A comparison from its first random encoder to its last run; what exists is not done again.

random encoders ─▶ for every seed: for every variant: a run, and what --evaluate asks of it
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from rich.console import Console
from rich.status import Status

from shards import durable
from tools.compare import load, run
from tools.compare.cluster import Cluster
from tools.compare.earlier import Earlier, made_on
from tools.compare.plan import Plan
from tools.compare.result_tables import LEARNED, RANDOM, RESULT, main_of
from tools.compare.run import Failed
from tools.compare.variants import Variant, summary, terms
from training.config import gpu_available
from training.monitor import METRICS
from training.run import checkpoint, run_folder
from training.settings import Settings
from training.surroundings import without_absolute_paths
from training.throughput import machine


class Comparison:
    """Does what a plan says.

    Args:
        plan: what to do.
        console: where to report progress.
        earlier: finished runs of other comparisons, which are not trained again.
        cluster: where the runs are trained; None is this machine, one after the other.

    Raises:
        ValueError: the folder holds another comparison, or runs with other settings or data, or a
            part of the seconds was spent on another machine.
    """

    def __init__(
        self, plan: Plan, console: Console, earlier: Earlier, cluster: Cluster | None = None
    ) -> None:
        self.errors: dict[str, str] = {}
        """{what failed in this call: why}."""
        self._plan, self._console, self._earlier = plan, console, earlier
        self._cluster, self._writing = cluster, Lock()
        self._status: Status | None = None
        self._surroundings = _machine()  # before the runs: it includes the load of other programs
        self._here = made_on(self._surroundings)
        if cluster is not None:  # its machines train, and this one need be none of them
            self._here |= {"cpu": "machines of a Ray cluster", "cores": None, "gpu": None}
        check(plan, self._here)
        then = _values(plan.out / RESULT) or {}
        # A variant that this call leaves out keeps what it was trained on.
        self._manifests = then.get("manifests", {}) | plan.manifests()
        self._older = _older(then)

    def run(self) -> None:
        """Do what is missing, and write the result after each run.

        Raises:
            ValueError: the budget is too small for a variant.
            Stopped: a signal came; the running child has saved and ended.
        """
        plan = self._plan
        self.write()
        watched = self._console.status("") if self._console.is_terminal else nullcontext()
        with watched as self._status:
            for variant in plan.encoders():
                for seed in plan.seeds:
                    self._evaluate_random(variant, seed)
            # Recipes alternate, so that a busy hour of the machine slows all of them.
            todo = [(variant, seed) for seed in plan.seeds for variant in plan.compared]

            def train(numbered: tuple[int, tuple[Variant, int]]) -> None:
                number, (variant, seed) = numbered
                self._train(variant, seed, f"run {number} of {len(todo)}: ")
                with self._writing:
                    self.write()

            each = self._cluster.each if self._cluster else _one_by_one
            each(train, enumerate(todo, start=1))

    def write(self) -> dict[str, Any]:
        """Write all that is known to OUT/comparison.json, without absolute paths; return it."""
        plan = self._plan
        agreed = terms(plan.compared[0].resolved)
        record = without_absolute_paths(
            {
                "command": plan.command,
                "budget": plan.budget.facts(),
                "manifests": self._manifests,
                "seeds": list(plan.seeds),
                "points": plan.points,
                "processes": plan.processes,
                "agreed": {name: agreed[name] for name in agreed if name not in plan.allowed},
                "allowed": plan.allowed,
                "evaluate": list(plan.evaluate),
                "surroundings": self._surroundings,
                "variants": [self._variant(variant) for variant in plan.compared],
                "random": [self._random(v, seed) for v in plan.encoders() for seed in plan.seeds],
                "runs": [self._entry(v, seed) for v in plan.compared for seed in plan.seeds],
            }
        )
        _write_json(plan.out / RESULT, record)
        return record

    # ── the children ────────────────────────────────────────────────────────────────────────────

    def _evaluate_random(self, variant: Variant, seed: int) -> None:
        """Evaluate the weights that a variant begins with, unless that is done."""
        if self._earlier.random(variant, seed):
            return
        found = self._plan.random(variant, seed)
        folder = found.with_suffix("")
        text = with_values(variant, seed=seed, run=str(folder)).yaml()
        config = folder / run_folder.CONFIG
        done = _done(found)
        if found.exists() and not done:
            self._say(f"{found} holds no figures; it is made again")
        if not (done and config.exists() and config.read_text() == text):
            found.unlink(missing_ok=True)
            for old in self._plan.about(variant, seed, random=True):
                old.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            config.write_text(text)
            command = self._plan.random_command(variant, seed)
            if not self._child(_random_name(variant, seed), command, None):
                return
        self._evaluate(variant, seed, random=True)

    def _evaluate(
        self, variant: Variant, seed: int, *, random: bool = False, number: str = ""
    ) -> None:
        """Do what `--evaluate` asks of a run or a random encoder, unless that is done."""
        path = self._plan.evaluation(variant, seed, random=random)
        if not self._plan.evaluate or _done(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        name = (_random_name if random else _run_name)(variant, seed)
        command = self._plan.evaluate_command(variant, seed, random=random)
        self._child(f"evaluation of {name}", command, None, number)

    def _train(self, variant: Variant, seed: int, number: str) -> None:
        """Train a run, unless that is done."""
        if self._earlier.run(variant, seed):
            return
        folder, name = self._plan.run(variant, seed), _run_name(variant, seed)
        if not run.finished(folder):
            where = self._plan.made_on(variant, seed)
            if not (folder / checkpoint.FOLDER).exists():  # what is left of a run that was removed
                for old in self._plan.about(variant, seed):
                    old.unlink()
            if not where.exists():
                _write_json(where, self._here)
            command = self._plan.run_command(variant, seed)
            busy = load.measured(self._plan.load(variant, seed))
            with busy if self._cluster is None else nullcontext():
                trained = self._child(name, command, folder, number)
            if not trained:
                return
            if not run.finished(folder):
                self.errors[name] = "it ended without a final evaluation"
                return
        self._evaluate(variant, seed, number=number)
        if f"evaluation of {name}" not in self.errors:  # else it is tried again, on the same state
            run.drop_checkpoints(folder)
        figures = self._figures(variant, seed)
        end = f"{figures['steps']:,} steps in {figures['seconds']:.1f} s"
        main = main_of(figures["final"])
        if main not in figures["final"]:  # its evaluation failed; the run's log says why
            self._say(f"{number}{name}: no figures, {end}")
            return
        heading, value = LEARNED[main].removesuffix(" %"), 100 * figures["final"][main]
        self._say(f"{number}{name}: {heading} {value:.1f} %, {end}")

    def _child(self, name: str, command: list[str], folder: Path | None, number: str = "") -> bool:
        """Run a child process and return whether it succeeded; report and keep a failure."""
        log = self._plan.out / "logs" / f"{name.replace(', ', '-').replace(' ', '-')}.log"
        if self._status is None:
            self._say(f"{number}{name} …")

        def tick() -> None:
            if self._status is not None:
                self._status.update(f"{number}{name}{_progress(folder)}")

        tick()
        try:
            if self._cluster is not None:
                self._cluster.call(command, log)
            else:
                run.call(command, log, tick)
        except Failed as failed:
            self.errors[name] = str(failed)
            self._say(f"FAILED {number}{name}: {failed} (its whole output: {log})")
            return False
        return True

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    # ── what was found ──────────────────────────────────────────────────────────────────────────

    def _variant(self, variant: Variant) -> dict[str, Any]:
        return {
            "name": variant.name,
            "recipe_name": variant.recipe.stem,
            "recipe": str(variant.recipe),
            "flags": list(variant.flags),
            "settings": summary(variant.resolved),
            "views_of_first_group": variant.resolved["views"]["count"],
            "resolved": variant.resolved,
        }

    def _random(self, variant: Variant, seed: int) -> dict[str, Any]:
        if known := self._earlier.random(variant, seed):
            return known
        facts: dict[str, Any] = {"variant": variant.name, "seed": seed}
        facts["command"] = shown(self._plan.random_command(variant, seed))
        found = self._plan.random(variant, seed)
        if error := self.errors.get(_random_name(variant, seed)):
            facts["error"] = error
        elif figures := _figures_in(found):
            facts["figures"] = figures
        return facts | self._evaluated(variant, seed, random=True)

    def _evaluated(self, variant: Variant, seed: int, *, random: bool = False) -> dict[str, Any]:
        """Return what `--evaluate` found out about a run or a random encoder, so far."""
        if not self._plan.evaluate:
            return {}
        name = (_random_name if random else _run_name)(variant, seed)
        if error := self.errors.get(f"evaluation of {name}"):
            return {"error": f"its evaluation: {error}"}
        figures = _figures_in(self._plan.evaluation(variant, seed, random=random))
        return {"evaluated": figures} if figures else {}

    def _entry(self, variant: Variant, seed: int) -> dict[str, Any]:
        if known := self._earlier.run(variant, seed):
            return known
        facts: dict[str, Any] = {"variant": variant.name, "seed": seed}
        facts["command"] = shown(self._plan.run_command(variant, seed))
        if run.finished(self._plan.run(variant, seed)):
            before = self._older.get((variant.name, seed))
            if made := _values(self._plan.made_on(variant, seed)) or before:
                facts["made_on"] = made
            return facts | self._figures(variant, seed) | self._evaluated(variant, seed)
        if error := self.errors.get(_run_name(variant, seed)):
            facts["error"] = error
        return facts

    def _figures(self, variant: Variant, seed: int) -> dict[str, Any]:
        folder, size = self._plan.run(variant, seed), variant.resolved["batch_size"]
        found = run.result(folder, batch_size=size, views=variant.views)
        budget = self._plan.budget
        used = found["seconds"] if budget.seconds else found["image_views"]
        whole = budget.seconds or (self._plan.length(variant) or 0) * variant.image_views
        found["budget_used"] = used / whole
        found["other_programs"] = load.others(self._plan.load(variant, seed))
        return found


def _one_by_one(do: Callable[[Any], None], work: Iterable[Any]) -> None:
    for piece in work:
        do(piece)


def check(plan: Plan, here: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but a part of this comparison.

    More recipes, variants and seeds than before are allowed.

    Args:
        plan: the comparison.
        here: this machine and commit; see `tools.compare.earlier`.

    Raises:
        ValueError: the folder differs.
    """
    then = _values(plan.out / RESULT)  # one that was cut off is written again
    facts = {"budget": plan.budget.facts(), "points": plan.points, "processes": plan.processes}
    if then is not None:
        for name, value in facts.items():
            if then.get(name) != value:
                raise ValueError(
                    f"{plan.out} holds a comparison with {name} {then.get(name)}, this one has "
                    f"{value}; give another --out."
                )
    older, begun = _older(then or {}), set[str]()
    more = any(not run.finished(plan.run(v, seed)) for v in plan.compared for seed in plan.seeds)
    for variant in plan.compared:
        for seed in plan.seeds:
            folder = plan.run(variant, seed)
            if not run.finished(folder) and not (folder / checkpoint.FOLDER).exists():
                continue
            begun.add(variant.name)
            saved = run_folder.read_config(folder)
            changed = with_values(variant, seed=seed).judged_otherwise(saved)
            changed = [text for text in changed if text.split(":")[0] not in ("steps", "epochs")]
            if changed:
                raise ValueError(
                    f"{folder} was trained with other settings ({'; '.join(changed)}); give "
                    "another --out, or remove that folder to train it again."
                )
            # Older versions said it of all runs together.
            there = _values(plan.made_on(variant, seed)) or older.get((variant.name, seed)) or here
            apart = [
                f"{name}: {there.get(name)} there, {here[name]} here"
                for name in ("cpu", "gpu")
                if there.get(name) != here[name]
            ]
            if apart and plan.budget.seconds and more:  # else figures alone are missing
                raise ValueError(
                    f"{folder} was trained on another machine ({'; '.join(apart)}), where equal "
                    "seconds are another budget. Give another --out with --add "
                    f"{plan.out / RESULT}: the finished runs are taken over, and the table says "
                    "where they were trained."
                )
    if again := _made_again(plan, then or {}, begun):
        raise ValueError(
            f"{plan.out} holds a comparison on {' and '.join(again)} before it was made again: its "
            "manifest was another one. Give another --out."
        )


def _made_again(plan: Plan, then: Mapping[str, Any], begun: Collection[str]) -> list[str]:
    """Return the shard sets of begun variants that had another manifest in a record."""
    known = then.get("manifests", {})  # older versions wrote none
    found: dict[str, None] = {}
    for variant, sets in plan.manifests().items():
        for name, (root, digest) in sets.items() if variant in begun else ():
            path, was = known.get(variant, {}).get(name, (None, None))
            if path == without_absolute_paths(root) and digest != was:  # else the settings tell
                found[root] = None
    return list(found)


def _older(then: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return where a record says that runs were trained: older versions wrote it nowhere else."""
    return {
        (each["variant"], each["seed"]): each.get("made_on") or made_on(then["surroundings"])
        for each in then.get("runs", ())
        if "final" in each
    }


def with_values(variant: Variant, **values: Any) -> Settings:
    """Return the settings of a variant with some plain values replaced."""
    return replace(variant.settings, resolved=variant.resolved | values)


def shown(command: list[str]) -> str:
    """Return a command as a person would type it, on one line."""
    return shlex.join(["python" if w == sys.executable else w for w in command])


def _values(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file; None if there is none, or it is cut off or another."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _done(path: Path) -> bool:
    """Whether an evaluation succeeded. One that found nothing, or not all, leaves a file too."""
    return bool(_figures_in(path)) and "failed" not in (_values(path) or {})


def _figures_in(path: Path) -> dict[str, float]:
    """Return the figures in a JSON of tools.evaluate, those of several sets as FIGURE on SET."""
    values = _values(path) or {}
    of_sets = {"": values, **values.get("sets", {})}
    return {
        f"{figure} on {name}" if name else figure: value
        for name, found in of_sets.items()
        for figure, value in found.items()
        if isinstance(value, float)
    }


def _random_name(variant: Variant, seed: int) -> str:
    return f"{RANDOM} of {variant.name}, seed {seed}"


def _run_name(variant: Variant, seed: int) -> str:
    return f"{variant.name}, seed {seed}"


def _progress(folder: Path | None) -> str:
    """Return the newest step of a run in words."""
    if folder is not None and (folder / METRICS).exists():
        for line in reversed(_end(folder / METRICS).splitlines()):
            try:
                record = json.loads(line)
            except ValueError:  # the last line may be half written
                continue
            if "loss" in record:
                return f", step {record['step']:,}, {record['seconds']:.0f} s of training"
    return " …"


def _end(path: Path) -> bytes:
    """Return the last lines of a file that grows with a run, which should not be slowed down."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        return file.read()


def _machine() -> dict[str, Any]:
    """Return what figures depend on; a child names the GPU, so that none of it is held here."""
    facts = machine(torch.device("cpu"))
    if gpu_available():
        ask = "import torch; print(torch.cuda.get_device_name())"
        facts["gpu"] = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, check=True
        ).stdout.strip()
    return facts


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace_json(path, value)
