"""Measure what training consists of: the pipeline, the step, and what the one costs the other.

    python -m tools.bench feed --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

`pipeline` measures the loader alone, `step` the training step alone on one batch that lies on the
device, `feed` both, and both together, which is training, in alternating rounds. It trains nothing
and writes no run folder.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.loader import Loader
from pipeline.tuning import Tuning
from training import header, machine_settings
from training.command import run_command
from training.settings import Settings
from training.throughput import (
    Measurement,
    Workload,
    cached,
    check_writable,
    feed_turn,
    fill_cache,
    machine,
    measure,
    memory_gib,
    milliseconds,
    parse_recipe,
    pipeline_turn,
    recipe_parser,
    settle,
    step_turn,
    write_trace,
)

GOAL = 0.97  # of the step's own speed, when it is fed
NAMES = {
    "loader": "loader alone",
    "step": "step on a cached batch",
    "both": "both: training",
}
WARM = 1.0  # seconds before the first round: compilation, memory, caches
Turn = Callable[[], object]
Rounds = list[dict[str, Measurement]]


def main() -> None:
    """Measure, show a table, and write what was asked for."""
    settings = parse_recipe(_command_line(), sys.argv[1:])
    options = settings.options
    what, seconds, rounds = (options[name] for name in ("what", "seconds", "rounds"))
    if seconds <= 0 or rounds < 1:
        raise ValueError(
            f"seconds={seconds:g} and rounds={rounds}; give more than 0 and 1 or more."
        )
    check_writable(options, "json", "chart", "trace")
    if options["chart"] and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--chart is drawn by matplotlib, which is not installed. Install it with uv pip "
            "install matplotlib, or with the optional group peers: uv pip install -e '.[peers]'"
        )
    console = Console(highlight=False)

    workload = Workload(settings.config)
    tuning, source = machine_settings.resolve(
        settings.config,
        workload.shard_set,
        device=workload.device,
        batch_size_per_rank=settings.config.batch_size,
        ranks_per_node=1,
        continued=False,
    )
    around = machine(workload.device)  # before: it holds the load of others
    with workload.loader(tuning) as loader:
        show_header(console, workload, loader, source)
        turns = turns_of(workload, loader, what)
        measured = take_turns(turns, loader, seconds, rounds, console)
        record = report(settings, workload, tuning, source, around, measured)
        if options["trace"]:
            write_trace(list(turns.values())[-1], options["trace"], workload.device)
    show(console, record)
    if options["json"]:
        options["json"].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        console.print(f"figures in {options['json']}", soft_wrap=True)
    if options["chart"]:
        draw(record, options["chart"])
        console.print(f"chart in {options['chart']}", soft_wrap=True)
    if options["trace"]:
        console.print(
            f"trace in {options['trace']}: open it on https://ui.perfetto.dev, which keeps it in "
            "your browser, or in chrome://tracing",
            soft_wrap=True,
        )


def _command_line() -> ArgumentParser:
    command_line = recipe_parser(
        "python -m tools.bench",
        "Measure the pipeline, the training step, or training, of a recipe.",
    )
    command_line.add_argument(
        "what",
        type=Literal["pipeline", "step", "feed"],
        help="pipeline: the loader alone. step: the training step on one cached batch. feed: both, "
        "and both together.",
    )
    command_line.add_argument(
        "--seconds", type=float, default=10.0, help="Of each measurement, warming up included."
    )
    command_line.add_argument("--rounds", type=int, default=3, help="Measurements of each kind.")
    command_line.add_argument("--json", type=Path | None, help="File to write the figures to.")
    command_line.add_argument("--chart", type=Path | None, help="PNG to draw.")
    command_line.add_argument(
        "--trace", type=Path | None, help="File for a trace of five batches, for Perfetto."
    )
    return command_line


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


def turns_of(workload: Workload, loader: Loader, what: str) -> dict[str, Turn]:
    """Return what is measured, by name, in the order of a round."""
    if what == "pipeline":
        return {"loader": pipeline_turn(loader)}
    step_alone = step_turn(workload.step, cached(loader))
    if what == "step":
        loader.close()
        return {"step": step_alone}
    both = feed_turn(loader, workload.step)
    return {"loader": pipeline_turn(loader), "step": step_alone, "both": both}


def take_turns(
    turns: dict[str, Turn], loader: Loader, seconds: float, rounds: int, console: Console
) -> Rounds:
    """Return the rounds, each with its measurements by name."""
    measured: Rounds = []
    with ExitStack() as live:
        say = _quiet
        if console.is_terminal:
            say = live.enter_context(console.status("warming up …")).update
        if any(name != "step" for name in turns):
            fill_cache(loader)
        for number in range(rounds + 1):
            measured.append({})
            for name, turn in turns.items():
                if number:
                    say(f"round {number} of {rounds}: {NAMES[name]} …")
                fed = loader if name != "step" else None
                # The round before the first is short, and not counted: it compiles and allocates.
                span = seconds if number else min(WARM, seconds)
                measured[-1][name] = measure(turn, span, loader.device, loader=fed)
                if fed:
                    settle(loader, measured[-1][name])
    return measured[1:]


def _quiet(_: str) -> None:
    """Say nothing: nobody watches."""


def report(
    settings: Settings,
    workload: Workload,
    tuning: Tuning,
    source: str,
    around: dict[str, Any],
    measured: Rounds,
) -> dict[str, Any]:
    """Return all that was found, with what it depends on, as it is written to JSON."""
    config, manifest = settings.config, workload.shard_set.manifest
    figures = {}
    for name in measured[0]:
        runs = [each[name] for each in measured]
        ms = [1000 * run.seconds_a_batch for run in runs]
        middle = median(ms)
        figures[name] = {
            "ms_a_batch": middle,
            "least": min(ms),
            "most": max(ms),
            "images_per_second": 1000 * config.batch_size / middle,
            "views_per_second": 1000 * config.batch_size * workload.views / middle,
            "batches": sum(run.batches for run in runs),
        }
        used = [run.utilization for run in runs if run.utilization is not None]
        if used:
            figures[name]["gpu_utilization"] = median(used)
        if name != "step":
            figures[name]["host_ms_a_batch"] = median(1000 * r.host / r.batches for r in runs)
            figures[name]["data_wait"] = median(run.waited / run.seconds for run in runs)
    record: dict[str, Any] = {
        "what": settings.options["what"],
        "seconds": settings.options["seconds"],
        "rounds": settings.options["rounds"],
        "batch_size": config.batch_size,
        "views": workload.views,
        "precision": workload.precision,
        "figures": figures,
    }
    if "both" in figures:
        ratios = [r["step"].seconds_a_batch / r["both"].seconds_a_batch for r in measured]
        record["ratio"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
        record["goal"] = GOAL
    record |= {
        "memory_gib": memory_gib(workload.device),
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


def without_absolute_paths(value: Any) -> Any:
    """Return the same with paths below the working folder relative, and of others just the end."""
    if isinstance(value, dict):
        return {name: without_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    return " ".join(_relative(word) for word in value.split(" "))


def _relative(word: str) -> str:
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


# ── for people ────────────────────────────────────────────────────────────────────────────────────


def show_header(console: Console, workload: Workload, loader: Loader, source: str) -> None:
    """Print what is measured, in the lines that train.py begins with."""
    rows = header.workload(workload.config, loader, workload.precision, source)
    grid = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        grid.add_row(name, Text(text))
    console.print(grid)


def show(console: Console, record: dict[str, Any]) -> None:
    """Print a table, and in words what it comes to."""
    rounds = record["rounds"]
    title = f"medians of {rounds} rounds" if rounds > 1 else "one round"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("ms a batch", "least..most", "images/s", "views/s", "host ms", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, figures in record["figures"].items():
        cells = [
            milliseconds(figures["ms_a_batch"]),
            f"{milliseconds(figures['least'])}..{milliseconds(figures['most'])}",
            f"{figures['images_per_second']:,.0f}",
            f"{figures['views_per_second']:,.0f}",
        ]
        if name != "step":
            cells += [milliseconds(figures["host_ms_a_batch"]), f"{figures['data_wait']:.1%}"]
        table.add_row(NAMES[name], *cells)
    console.print(table)
    for line in conclusions(record):
        console.print(line, soft_wrap=True)


def conclusions(record: dict[str, Any]) -> Sequence[str]:
    """Return in words what the figures come to."""
    lines = []
    if "ratio" in record:
        ratio, wait = record["ratio"], record["figures"]["both"]["data_wait"]
        verdict = "neither reached nor missed for certain"
        if ratio["least"] >= GOAL:
            verdict = "reached"
        elif ratio["most"] < GOAL:
            verdict = "missed"
        lines.append(
            f"fed, the step runs at {ratio['median']:.3f} ({ratio['least']:.3f}.."
            f"{ratio['most']:.3f}) of its speed on a cached batch; 1 would be a pipeline that "
            f"costs nothing; the goal, {GOAL}, is {verdict}"
        )
        lines.append(f"{wait:.1%} of the time of training is waiting for data")
        if record["surroundings"]["gpu"] is None:
            lines.append("without a GPU the step lacks the core time that the pipeline takes")
    memory = " and ".join(f"{gib:.2f} GiB on the {n}" for n, gib in record["memory_gib"].items())
    lines.append(f"memory: at most {memory}")
    return lines


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw milliseconds a batch as bars, with least and most."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = {"loader": "#c4622d", "step": "#0b6e99", "both": "#1f2328"}
    figures = record["figures"]
    height = 1.5 + 0.55 * len(figures)
    chart, axes = pyplot.subplots(figsize=(8, height), dpi=150, layout="constrained")
    most = max(each["most"] for each in figures.values())
    for place, (name, each) in enumerate(figures.items()):
        ms = each["ms_a_batch"]
        spread = [[ms - each["least"]], [each["most"] - ms]]
        axes.barh(place, ms, height=0.6, color=colours[name])
        axes.errorbar(ms, place, xerr=spread, color="#6e7781", linewidth=1.2, capsize=3)
        text = f"{milliseconds(ms)} ms, {each['images_per_second']:,.0f} images/s"
        axes.text(each["most"] + 0.02 * most, place, text, va="center", color="#1f2328", size=9)
    axes.set_yticks(range(len(figures)), [NAMES[name] for name in figures])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * most)  # room for the text beside the longest bar
    axes.set_xlabel("milliseconds a batch")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    around = record["surroundings"]
    where = around["gpu"] or f"{around['cores']} CPU cores"
    title = f"{record['batch_size']} images × {record['views']} views a batch, {where}"
    if "ratio" in record:
        title += f": fed at {record['ratio']['median']:.3f} of the step's speed"
    axes.set_title(title, loc="left", size=10)
    chart.savefig(path, format="png")
    pyplot.close(chart)


if __name__ == "__main__":
    run_command(main)
