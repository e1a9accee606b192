"""Measure the speed of the pipeline, of the training step, and of training.

    python -m tools.bench feed --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

`pipeline` measures the loader alone, `step` the training step alone on one batch that lies on the
device, `feed` both, and both together, which is training, in alternating rounds. Nothing is trained
and no run folder is written.
"""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.loader import Loader
from pipeline.profile import milliseconds
from shards import durable
from training import header, installed
from training.command_line import run_function
from training.rounds import GOAL, What, bench
from training.settings import Settings
from training.terminal import literal_console
from training.throughput import Workload

NAMES = {
    "loader": "loader alone",
    "step": "step on a cached batch",
    "both": "both: training",
}


def main(
    settings: Settings,
    what: What,
    *,
    seconds: float = 10.0,
    rounds: int = 3,
    json: Path | None = None,
    chart: Path | None = None,
    trace: Path | None = None,
) -> None:
    """Measure the pipeline, the training step, or training, of a recipe.

    Args:
        settings: the recipe.
        what: pipeline: the loader alone. step: the training step on one cached batch. feed: both,
            and both together.
        seconds: duration of each measurement, warming up included.
        rounds: number of measurements of each kind.
        json: file to write the figures to.
        chart: PNG to draw.
        trace: file for a trace of five batches, for Perfetto.
    """
    if seconds <= 0 or rounds < 1:
        raise ValueError(
            f"seconds={seconds:g} and rounds={rounds}; give more than 0 and 1 or more."
        )
    durable.check_writable(json=json, chart=chart, trace=trace)
    if chart:
        installed.require("matplotlib")
    console = literal_console()
    with ExitStack() as live:
        update = live.enter_context(console.status("")).update if console.is_terminal else None

        def say(number: int, name: str) -> None:
            if update is not None:
                update(f"round {number} of {rounds}: {NAMES[name]} …" if number else "warming up …")

        record = bench(
            settings,
            what,
            seconds=seconds,
            rounds=rounds,
            trace=trace,
            begun=lambda *begun: show_header(console, *begun),
            say=say,
        )
    if json:  # first: who reads what is printed, such as head, may not read to its end
        text = json_text.dumps(record, indent=1, ensure_ascii=False)
        durable.replace(json, [text.encode(), b"\n"])
    if chart:
        draw(record, chart)
    show(console, record)
    for name, path in {"figures": json, "chart": chart}.items():
        if path:
            console.print(f"{name} in {path}", soft_wrap=True)
    if trace:
        console.print(
            f"trace in {trace}: open it on https://ui.perfetto.dev, which keeps it in "
            "your browser, or in chrome://tracing",
            soft_wrap=True,
        )


def show_header(console: Console, workload: Workload, loader: Loader, source: str) -> None:
    """Print what is measured, in the words that train.py begins with."""
    rows = header.workload(workload.config, loader, workload.precision, source)
    grid = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        grid.add_row(name, Text(text))
    console.print(grid)


def show(console: Console, record: dict[str, Any]) -> None:
    """Print a table, and its conclusions in words."""
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
    """Return the conclusions from the figures, in words."""
    lines = []
    if "ratio" in record:
        lines += _of_the_feed(record)
        if record["surroundings"]["gpu"] is None:
            lines.append("without a GPU the step lacks the core time that the pipeline takes")
    memory = " and ".join(f"{gib:.2f} GiB on the {n}" for n, gib in record["memory_gib"].items())
    lines.append(f"memory: at most {memory}")
    return lines


def _of_the_feed(record: dict[str, Any]) -> Sequence[str]:
    ratio, drifted = record["ratio"], record["drift"]
    found = f"{ratio['median']:.3f} ({ratio['least']:.3f}..{ratio['most']:.3f})"
    wait = (
        f"{record['figures']['both']['data_wait']:.1%} of the time of training is waiting for data"
    )
    if drifted is None:
        return [
            f"fed, the step ran at {found} of its speed on a cached batch; no conclusion: one "
            "round does not show by how much the measurements drift. Give --rounds 3.",
            wait,
        ]
    if differs(record):
        first = (
            f"fed, the step runs at {found} of its speed on a cached batch; 1 would be a pipeline "
            "that costs nothing"
        )
    else:
        first = (
            f"no difference found between the step when it is fed and on a cached batch: the "
            f"measurements drift by {drifted:.1%}, and {found} is the ratio of their speeds; "
            "measure again when nothing else runs here, or with more --seconds"
        )
    verdict = "neither reached nor missed for certain"
    if abs(ratio["median"] - GOAL) > drifted:
        if ratio["least"] >= GOAL:
            verdict = "reached"
        elif ratio["most"] < GOAL:
            verdict = "missed"
    return [f"{first}; the goal, {GOAL}, is {verdict}", wait]


def differs(record: dict[str, Any]) -> bool:
    """Whether the step is slower when it is fed, by more than the measurements drift."""
    drifted, ratio = record["drift"], record["ratio"]["median"]
    return drifted is not None and max(ratio, 1 / ratio) - 1 > drifted


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw milliseconds a batch as bars, with the least and the most."""
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
    if "ratio" in record and differs(record):
        title += f": fed at {record['ratio']['median']:.3f} of the step's speed"
    axes.set_title(title, loc="left", size=10)
    with durable.replaced(path) as partial:
        chart.savefig(partial, format="png")
    pyplot.close(chart)


if __name__ == "__main__":
    run_function(main)
