"""Train recipes under one budget, over several seeds, and say who learned what at which cost.

    python -m tools.compare recipes/cifar10_cpu_*.yaml --seconds 150 --seeds 0 1 2 --out runs/cmp
    python -m tools.compare recipes/cifar10_cpu_*.yaml --seconds 40 --seeds 0 --out runs/search \
        --vary learning_rate=1e-3,2e-3,4e-3 --best_by knn_top1 -- --evaluation_test data/val

Every run is a train.py of its own, one after the other, in OUT/runs; what stands after -- are flags
of train.py for all of them. The same command again continues where it was, in the middle of a run
too. OUT/comparison.json holds all that was found, .md the table, .png the chart.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from shards.layout import open_shards
from tools.compare import chart
from tools.compare.contest import RESULT, Contest
from tools.compare.plan import Plan
from tools.compare.run_length import RunLength
from tools.compare.standing import markdown, show
from tools.compare.trial import Stopped
from tools.compare.variants import EVALUATION_SETS, TERMS, Variant, check_terms, variants
from training.command import run_command

Figure = Literal[
    "knn_top1", "linear_top1", "view_map", "label_map", "view_r1", "label_r1", "copy_map"
]


def main() -> None:
    """Check that it is a comparison, train what is missing, and report."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    own, more = words[:cut], words[cut + 1 :]
    options = vars(_command_line().parse_args(own))
    out: Path = options["out"]
    console = Console(highlight=False)
    if options["redraw"]:
        _report(_read(out), out, console, options["best_by"])
        return

    budget = RunLength(seconds=options["seconds"], image_views=options["image_views"])
    seeds: list[int] = options["seeds"]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or options["points"] < 1:
        raise ValueError(
            f"seeds={seeds} and points={options['points']}; give different seeds, none negative, "
            "and 1 point or more."
        )
    if not options["recipes"]:
        raise ValueError("no recipe to train; name one or more YAML files, such as recipes/*.yaml.")
    compared = variants(
        options["recipes"], options["vary"] or [], more, where_known=options["vary_where_known"]
    )
    allowed = check_terms(compared, options["allow_differences"] or [])
    samples = _check_data(compared, options["processes"])
    if not chart.available():
        console.print("no chart: matplotlib is missing; uv pip install matplotlib, then --redraw")

    with _taken(out), _signals():
        plan = Plan(
            out=out,
            compared=compared,
            samples=samples,
            seeds=seeds,
            budget=budget,
            points=options["points"],
            processes=options["processes"],
            more=more,
            allowed=allowed,
            command=shlex.join(["python", "-m", "tools.compare", *words]),
        )
        contest = Contest(plan, console)
        try:
            contest.run()
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            console.print(f"{name}: the same command continues {out}", soft_wrap=True)
            sys.exit(128 + stopped.number)
        record = contest.write()
    _report(record, out, console, options["best_by"])
    if contest.errors:
        sys.exit(1)


def _command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.compare",
        description="Train recipes under one budget and compare them. Flags of train.py for all "
        "of them follow --, at the end.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE", help="YAML files.")
    parser.add_argument(
        "--out", type=Path, required=True, help="Folder of the comparison, and of its runs."
    )
    parser.add_argument("--seconds", type=float, help="Training seconds of each run.")
    parser.add_argument(
        "--image_views",
        type=int,
        help="Instead of --seconds: samples times views that the encoder is shown in each run.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="A run each.")
    parser.add_argument(
        "--vary",
        action="append",
        type=str,
        metavar="KEY=VALUE,VALUE",
        help="A setting and its values, such as method.objective.temperature=0.05,0.1. Repeated, "
        "all combinations are trained.",
    )
    parser.add_argument(
        "--vary_where_known",
        type=bool,
        default=False,
        help="Vary a setting in the recipes that have it; by default the others are refused.",
    )
    parser.add_argument(
        "--allow_differences",
        nargs="+",
        type=Literal[TERMS],  # pyright: ignore[reportInvalidTypeForm]
        help="In what the recipes may differ besides views, batch, method and optimizer.",
    )
    parser.add_argument(
        "--best_by", type=Figure | None, help="Print the best variant of each recipe as flags."
    )
    parser.add_argument(
        "--points", type=int, default=6, help="Evaluations in a run, the last included."
    )
    parser.add_argument("--processes", type=int, default=1, help="Of each run, one a GPU.")
    parser.add_argument(
        "--redraw", type=bool, default=False, help="Only tables and chart, from OUT's JSON."
    )
    return parser


def _check_data(compared: list[Variant], processes: int) -> dict[str, int]:
    """Refuse what no run could read, and return the number of samples by shard set."""
    samples: dict[str, int] = {}
    for variant in compared:
        settings = variant.resolved
        if settings["evaluation_test"] is None:
            raise ValueError(
                f"{variant.recipe} names no evaluation_test, so there is nothing to compare. Give "
                "a held-out shard set: -- --evaluation_test DIR."
            )
        for name in ("shards", *EVALUATION_SETS):
            place = settings[name]
            if place is not None and place not in samples:
                samples[place] = len(open_shards(place))
        size = settings["batch_size"]
        if size % processes or size > samples[settings["shards"]]:
            raise ValueError(
                f"{variant.name}: batch_size={size} needs to divide by {processes} processes and "
                f"to be at most the {samples[settings['shards']]} samples of {settings['shards']}."
            )
    return samples


# ── what is left behind ───────────────────────────────────────────────────────────────────────────


def _read(out: Path) -> dict[str, Any]:
    path = out / RESULT
    if not path.exists():
        raise ValueError(f"{path} does not exist; --redraw draws what a comparison has written.")
    return json.loads(path.read_text())


def _report(record: dict[str, Any], out: Path, console: Console, best_by: str | None) -> None:
    """Print the tables, and write them and the chart."""
    drawn = None
    if chart.available() and any("final" in run for run in record["runs"]):
        chart.draw(record, out / "comparison.png")
        drawn = "comparison.png"
    text = markdown(record, drawn)
    (out / "comparison.md").write_text(text)
    if console.is_terminal:
        show(record, console)
    else:
        print(text)
    files = [RESULT, "comparison.md", *([drawn] if drawn else [])]
    console.print(f"in {out}: {', '.join(files)}", soft_wrap=True)
    if best_by:
        for line in best(record, best_by):
            console.print(line, soft_wrap=True, markup=False)


def best(record: dict[str, Any], figure: str) -> list[str]:
    """Return the flags of the best variant of each recipe, by the mean over seeds of a figure."""
    lines = []
    for recipe in dict.fromkeys(variant["recipe"] for variant in record["variants"]):
        means: dict[str, float] = {}
        flags: dict[str, list[str]] = {}
        for variant in record["variants"]:
            runs = [r for r in record["runs"] if r["variant"] == variant["name"] and "final" in r]
            values = [run["final"][figure] for run in runs if figure in run["final"]]
            # A variant that failed with a seed is not the best because of the others.
            if variant["recipe"] == recipe and len(values) == len(record["seeds"]):
                means[variant["name"]] = sum(values) / len(values)
                flags[variant["name"]] = variant["flags"]
        if not means:
            lines.append(f"{recipe}: no variant has {figure} with every seed")
            continue
        name = max(means, key=lambda name: means[name])
        command = shlex.join(["--config", recipe, *flags[name]])
        lines.append(f"{command}  # {figure} {means[name]:.4f}, the best of {len(means)}")
    return lines


@contextlib.contextmanager
def _taken(out: Path) -> Iterator[None]:
    """Hold the folder: a second comparison in it would train the same runs."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another comparison is running in {out}. Wait for it, or give another --out."
        ) from None
    else:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Stopped`."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run_command(main)
