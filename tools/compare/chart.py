"""The chart of a comparison: accuracy against training seconds, image views and images."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from shards import durable
from tools.compare.result_tables import LEARNED, RANDOM, labels, main_figure, spread, views_text

# Nine that colour-blind people can distinguish (Okabe and Ito; Tol); a tenth has another dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
COLOURS += ("#56b4e9", "#882255", "#222222", "#999933")
MARKERS = "osD^vPX*p"
DASHES = ("-", "--", ":", "-.")
INK, QUIET = "#1f2328", "#6e7781"
ACROSS = {
    "seconds": "training seconds",
    "image_views": "image views",
    "images": "images, each with all its views",
}
"""{what a panel's x is: how it is called}."""
Point = tuple[float, float, float, float]


def available() -> bool:
    """Whether a chart can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def curve(runs: Sequence[Mapping[str, Any]], figure: str, across: str) -> list[Point]:
    """Return one line: at each evaluation the mean over seeds, and their least and most.

    Args:
        runs: of one variant, one for each seed.
        figure: name of the figure, such as knn_top1.
        across: what x is, of `ACROSS`.

    Returns:
        Points (x, mean, least, most). Final evaluations are matched with each other, even if a run
        was cut off at another step; earlier ones by their number, since runs of equal seconds have
        other steps then, or, where some are missing, by step.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    all_there = len({len(run["curve"]) for run in runs}) == 1
    for run in runs:
        for number, point in enumerate(run["curve"][:-1]):
            groups.setdefault(number if all_there else point["step"], []).append(point)
    groups["final"] = [run["curve"][-1] for run in runs]
    found: list[Point] = []
    for points in groups.values():
        values = [point[figure] for point in points if figure in point]
        if len(values) == len(runs):  # else the line would jump where a seed is missing
            x = mean(point[across] for point in points)
            found.append((x, mean(values), min(values), max(values)))
    return sorted(found)


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw all variants with a finished run as a PNG; the legend names the best first."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    figure, called = main_figure(record), labels(record)
    done = [run for run in record["runs"] if "final" in run and figure in run["final"]]
    lines = {
        variant["name"]: [
            with_images(run, variant["resolved"]["batch_size"])
            for run in done
            if run["variant"] == variant["name"]
        ]
        for variant in record["variants"]
    }
    ends = {name: mean(r["final"][figure] for r in runs) for name, runs in lines.items() if runs}
    random = [f["figures"][figure] for f in record["random"] if figure in f.get("figures", {})]

    chart, panels = pyplot.subplots(
        1, len(ACROSS), figsize=(15, 5), dpi=150, sharey=True, layout="constrained"
    )
    for axes, (across, name_of_x) in zip(panels, ACROSS.items(), strict=True):
        axes.set_xlabel(name_of_x)
        if across != "seconds":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: views_text(x)))
        if random:
            axes.axhline(100 * mean(random), color=QUIET, linewidth=1, linestyle=(0, (5, 3)))
        for number, name in enumerate(lines):
            if name not in ends:
                continue
            style = style_of(number)
            points = curve(lines[name], figure, across)
            x, middle, least, most = (list(side) for side in zip(*points, strict=True))
            middle, least, most = ([100 * y for y in ys] for ys in (middle, least, most))
            if len(lines[name]) > 1:
                axes.fill_between(x, least, most, color=style["color"], alpha=0.12, linewidth=0)
            axes.plot(x, middle, linewidth=1.6, markersize=4.5, **style)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    panels[0].set_ylabel(LEARNED[figure].replace(" %", " (%)"))

    handles, texts = [], []
    for name in sorted(ends, key=lambda name: -ends[name]):
        style = style_of(list(lines).index(name))
        handles.append(Line2D([], [], linewidth=1.6, markersize=4.5, **style))
        middle, deviation = spread([run["final"][figure] for run in lines[name]])
        beside = "" if deviation is None else f" ± {100 * deviation:.1f}"
        texts.append(f"{100 * middle:.1f}{beside}  {called[name]}")
    if random:
        handles.append(Line2D([], [], color=QUIET, linewidth=1, linestyle=(0, (5, 3))))
        texts.append(f"{100 * mean(random):.1f}  {RANDOM}")
    chart.legend(
        handles, texts, loc="outside right upper", frameon=False, fontsize=9.5, labelspacing=0.7
    )
    seeds = len(record["seeds"])
    band = f": mean of {seeds} seeds, shaded from the least to the most" if seeds > 1 else ""
    budget = record["budget"]
    length = "equal image views"
    if "seconds" in budget:
        length = f"{budget['seconds']:g} s of training each"
    chart.suptitle(f"{length}{band}", x=0.01, ha="left", size=11, color=INK)
    with durable.replaced(path) as partial:
        chart.savefig(partial, format="png")
    pyplot.close(chart)


def with_images(run: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Return a run whose points say how many images it had seen."""
    points = [point | {"images": point["step"] * batch_size} for point in run["curve"]]
    return {**run, "curve": points}


def style_of(number: int) -> dict[str, Any]:
    """Return how the line of a variant looks."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }
