"""What a run's folder says about it: how far it is, what it costs, on which machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.figures import NAMES
from shards import durable
from training import exported
from training.monitor import METRICS, legible_records
from training.run import checkpoint, failure, run_folder
from training.surroundings import surroundings

_MOST = 2**53  # steps, and whatever else is counted
_AMOUNTS = {"epoch": "{:.4g} epochs", "seconds": "{:,.0f} s of training"}


@dataclass(frozen=True)
class RunFacts:
    """A run, as its files describe it; no network is built for this."""

    run: Path
    name: str
    """Shortest end of its path that no other run of the report has."""
    saved: Mapping[str, Any]
    """Its config.yaml."""
    records: Sequence[Mapping[str, Any]]
    illegible: int
    """Number of lines of its metrics.jsonl that are no records."""
    failure: str
    """What ended it; "" if nothing did."""
    exported: bool

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest record of a step; empty before the first one."""
        return next((each for each in reversed(self.records) if "loss" in each), {})

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """The newest evaluation; empty before the first one."""
        return next((each for each in reversed(self.records) if "evaluation" in each), {})

    @property
    def figures(self) -> dict[str, float]:
        """The figures of the newest evaluation."""
        return {k: v for k, v in self.evaluation.items() if k in NAMES and math.isfinite(v)}

    @property
    def final(self) -> bool:
        """Whether the newest evaluation has the figures that are made at the end alone."""
        return self.evaluation.get("evaluation") == "final"

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.exported and (self.final or not self.saved.get("evaluation_test"))

    def status(self) -> str:
        """Return in words how far the run is."""
        if not self.last:
            how_far = "no record yet"
        else:
            amounts = [t.format(self.last[k]) for k, t in _AMOUNTS.items() if k in self.last]
            how_far = ", ".join([f"step {self.last['step']:,}", *amounts])
        if self.finished:
            return f"finished: {how_far}"
        return f"ended early: {how_far}" if self.failure else f"not finished: {how_far}"

    def remarks(self) -> list[str]:
        """Return what should be known of these files, each in a line."""
        found = [f"{self.name} ended early: {self.failure}"] if self.failure else []
        if self.illegible:
            lines = "1 line" if self.illegible == 1 else f"{self.illegible:,} lines"
            found.append(f"{self.name}: {lines} of {METRICS} cannot be read; left out")
        return found

    def hardware(self) -> dict[str, str]:
        """Return {name: text}: what it ran on, as its newest checkpoint says, and what it used."""
        facts, rows = _newest_record(self.run), {}
        if facts:
            rows["trained on"] = _machine(facts)
            rows["commit"] = facts.get("commit")
            rows["versions"] = _versions(facts.get("versions"))
        figures = {"memory_gib": "{:.1f} GiB of memory", "images_per_second": "{:,.0f} images/s"}
        rows["latest"] = ", ".join(
            text.format(self.last[key]) for key, text in figures.items() if key in self.last
        )
        return {name: str(text) for name, text in rows.items() if text}


def read(run: Path, name: str) -> RunFacts:
    """Read a run's folder.

    Raises:
        ValueError: it is no run.
    """
    saved = run_folder.read_config(run)
    records, illegible = legible_records(run)
    return RunFacts(
        run=run,
        name=name,
        saved=saved,
        records=[each for each in map(_sound, records) if "step" in each],
        illegible=illegible,
        failure=_failure(run),
        exported=(run / exported.NAME).exists(),
    )


def names(runs: Sequence[Path]) -> list[str]:
    """Return for each run the shortest end of its path that no other one has.

    Raises:
        ValueError: a run is there twice.
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise ValueError("a run is named twice; name each once.")
    found = []
    for mine in parts:
        count = 1
        while sum(other[-count:] == mine[-count:] for other in parts) > 1:
            count += 1
        found.append("/".join(mine[-count:]))
    return found


def this_machine() -> dict[str, str]:
    """Return {name: text} of the machine that makes the report."""
    found = surroundings("torch")
    return {
        "this page": f"made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {found['cpu']}, "
        f"{found['cores']} cores, {found['memory_gib']} GiB",
    }


def _sound(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what a damaged line may hold instead of numbers."""
    return {
        name: value
        for name, value in record.items()
        if name == "evaluation" or isinstance(value, float) or type(value) is int
        if name == "evaluation" or not abs(value) >= _MOST  # a number that is none passes
    }


def _failure(run: Path) -> str:
    try:
        return str(json.loads(durable.read(run / failure.NAME))["what"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{failure.NAME} cannot be read"


def _newest_record(run: Path) -> dict[str, Any]:
    """Return the record of the newest checkpoint that has a legible one."""
    for saved in reversed(checkpoint.complete(run)):
        try:
            found = json.loads(durable.read(saved / checkpoint.RECORD))
        except (ValueError, OSError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _machine(facts: Mapping[str, Any]) -> str:
    device, _, precision = str(facts.get("machine")).partition(", ")
    processes = facts.get("world_size")
    many = "1 process" if processes == 1 else f"{processes} processes"
    return f"{device}, {'float32' if precision == 'no' else precision}, {many}"


def _versions(found: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in found.items()) if isinstance(found, dict) else ""
