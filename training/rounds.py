"""The loader, the training step and both together, measured in alternating rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pipeline.loader import Loader
from training import machine_settings
from training.settings import Settings
from training.surroundings import without_absolute_paths
from training.throughput import (
    Measurement,
    Workload,
    cached,
    drift,
    feed_turn,
    fill_cache,
    machine,
    measure,
    memory_gib,
    pipeline_turn,
    settle,
    step_turn,
    write_trace,
)

GOAL = 0.97  # of the step's own speed, when it is fed
WARM = 1.0  # seconds before the first round: compilation, memory, caches
What = Literal["pipeline", "step", "feed"]
Turn = Callable[[], object]


def bench(
    settings: Settings,
    what: What,
    *,
    seconds: float,
    rounds: int,
    trace: Path | None = None,
    begun: Callable[[Workload, Loader, str], None] = lambda *_: None,
    say: Callable[[int, str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Return the figures of a recipe on this machine, with all that they depend on.

    Args:
        settings: the recipe.
        what: pipeline, the loader alone; step, the training step on one cached batch; feed, both
            and both together, which is training.
        seconds: of each measurement, warming up included.
        rounds: measurements of each kind.
        trace: file for a trace of five batches.
        begun: called with workload, loader and the source of its settings, before the first round.
        say: called with round and kind before each measurement; the round that warms up is 0.
    """
    config = settings.config
    workload = Workload(config)
    tuning, source = machine_settings.resolve(
        config,
        workload.shard_set,
        device=workload.device,
        batch_size_per_rank=config.batch_size,
        ranks_per_node=1,
        continued=False,
    )
    around = machine(workload.device)  # before: it holds the load of others
    with workload.loader(tuning) as loader:
        begun(workload, loader, source)
        turns = _turns(workload, loader, what)
        measured = _take(turns, loader, seconds, rounds, say)
        record: dict[str, Any] = {
            "what": what,
            "seconds": seconds,
            "rounds": rounds,
            "batch_size": config.batch_size,
            "views": workload.views,
            "precision": workload.precision,
            "figures": _figures(measured, workload),
        }
        if what == "feed":
            ratios = [r["step"].seconds_a_batch / r["both"].seconds_a_batch for r in measured]
            record["ratio"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
            record["goal"] = GOAL
            times = ([r[name].seconds_a_batch for r in measured] for name in ("step", "both"))
            record["drift"] = max(map(drift, times)) if rounds > 1 else None
        record["memory_gib"] = memory_gib(workload.device)
        if trace:
            write_trace(list(turns.values())[-1], trace, workload.device)
    manifest = workload.shard_set.manifest
    record |= {
        "tuning": asdict(tuning) | {"source": source},
        "shards": {
            "samples": manifest.samples,
            "source": f"{manifest.source} {manifest.split}".strip(),
            "encoding": manifest.encoding,
            "median_shorter_side": manifest.statistics.median_shorter_side,
        },
        "settings": settings.resolved,
        "surroundings": around,
    }
    return without_absolute_paths(record)


def _turns(workload: Workload, loader: Loader, what: What) -> dict[str, Turn]:
    """Return what is measured, by name, in the order of a round."""
    if what == "pipeline":
        return {"loader": pipeline_turn(loader)}
    step_alone = step_turn(workload.step, cached(loader))
    if what == "step":
        loader.close()
        return {"step": step_alone}
    both = feed_turn(loader, workload.step)
    return {"loader": pipeline_turn(loader), "step": step_alone, "both": both}


def _take(
    turns: dict[str, Turn],
    loader: Loader,
    seconds: float,
    rounds: int,
    say: Callable[[int, str], None],
) -> list[dict[str, Measurement]]:
    """Return the rounds, each with its measurements by name."""
    measured: list[dict[str, Measurement]] = []
    if any(name != "step" for name in turns):
        fill_cache(loader)
    for number in range(rounds + 1):
        measured.append({})
        # There and back again: a machine that slows down or speeds up favours none.
        for name, turn in turns.items() if number % 2 else reversed(turns.items()):
            say(number, name)
            fed = loader if name != "step" else None
            # The round before the first is short, and not counted: it compiles and allocates.
            span = seconds if number else min(WARM, seconds)
            measured[-1][name] = measure(turn, span, loader.device, loader=fed)
            if fed:
                settle(loader, measured[-1][name])
    return measured[1:]


def _figures(
    measured: list[dict[str, Measurement]], workload: Workload
) -> dict[str, dict[str, float]]:
    """Return the figures of each kind: medians over the rounds."""
    figures: dict[str, dict[str, float]] = {}
    batch_size = workload.config.batch_size
    for name in measured[0]:
        runs = [each[name] for each in measured]
        ms = [1000 * run.seconds_a_batch for run in runs]
        middle = median(ms)
        figures[name] = {
            "ms_a_batch": middle,
            "least": min(ms),
            "most": max(ms),
            "images_per_second": 1000 * batch_size / middle,
            "views_per_second": 1000 * batch_size * workload.views / middle,
            "batches": sum(run.batches for run in runs),
        }
        used = [run.utilization for run in runs if run.utilization is not None]
        if used:
            figures[name]["gpu_utilization"] = median(used)
        if name != "step":
            figures[name]["host_ms_a_batch"] = median(1000 * r.host / r.batches for r in runs)
            figures[name]["data_wait"] = median(run.waited / run.seconds for run in runs)
    return figures
