"""The final tables of docs/ranking.md, over the seeds that each method has so far.

    python -m benchmarks.report              writes the tables
    python -m benchmarks.ranking_finals      draws docs/ranking.png

Its parts are results/ranking-final-SET-cpu-seedN.json, each a comparison.json of tools.compare, and
results/ranking-labels-SET-cpu-seedN.json of benchmarks.few_labels. Probes are what `--evaluate`
found: the runs' own are older than the rule by which they choose their penalty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.gpu.tables import table
from shards import durable
from training.paired_difference import best_of, paired_difference

RESULTS = Path(__file__).parent / "results"
CHART = Path(__file__).parent.parent / "docs" / "ranking.png"
METHODS = {
    "s2r2": "S2R2-style, `LogAP`",
    "simclr": "SimCLR over the same views",
    "simclr_two_views": "SimCLR, two of these large crops",
    "simclr_own_crops": "SimCLR, its own two views",
    "swav": "SwAV, two and six crops",
    "groco": "GroCo",
    "moco": "MoCo-v2",
    "simsiam": "SimSiam",
}
BASE = "s2r2"
# Eight that colour-blind people can distinguish (Okabe and Ito; Tol).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#222222")
COLOURS += ("#cc79a7", "#e69f00", "#56b4e9", "#882255")
FIGURES = {
    "knn_top1": "k-NN, STL-10",
    "linear_top1 on stl10": "linear probe, STL-10",
    "few_shot_5_top1": "5 images a class",
    "view_map": "view mAP",
    "multi_label_knn_map on coco": "multi-label k-NN, COCO mAP",
    "multi_label_map on coco": "multi-label probe, COCO mAP",
    "rank_me_h": "RankMe",
}
UNRANKED = {"rank_me_h"}  # more of it is not better, and it is no percentage


class ImageSet(NamedTuple):
    """Images that were pretrained on."""

    name: str
    called: str
    images: int

    def paths(self) -> list[Path]:
        """Return the files of its comparisons, one a seed."""
        return sorted(RESULTS.glob(f"ranking-final-{self.name}-cpu-seed*.json"))

    def records(self) -> list[dict[str, Any]]:
        """Return its comparisons."""
        return [json.loads(path.read_text()) for path in self.paths()]

    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """Return {method: its runs, each with its batch size}, of each method that has one."""
        found: dict[str, list[dict[str, Any]]] = {}
        records = self.records()
        for method in METHODS:
            name = f"stl10_cpu_{method}"
            mine = [
                run | {"batch_size": variant["resolved"]["batch_size"]}
                for record in records
                for variant in record["variants"]
                for run in record["runs"]
                if variant["name"] == run["variant"] == name and "final" in run
            ]
            if mine:
                found[method] = mine
        return found

    def random(self) -> list[dict[str, float]]:
        """Return the figures of the weights that runs began with, one a seed."""
        firsts = [record["random"][0] for record in self.records()]
        return [first["figures"] | first["evaluated"] for first in firsts]


WHOLE = (ImageSet("stl10", "STL-10", 5000), ImageSet("coco", "COCO", 5000))
AS_MANY_VIEWS = (
    ImageSet("stl10-views", "STL-10, equal image views", 5000),
    ImageSet("coco-views", "COCO, equal image views", 5000),
)
FEW = (
    ImageSet("diverse", "1,000 images of COCO unlike each other", 1000),
    ImageSet("random", "1,000 random images of COCO", 1000),
)


def whole() -> str:
    """Return the tables of all images, and their curves."""
    return _all_of(WHOLE)


def as_many_views() -> str:
    """Return the tables of runs that saw as many views."""
    return _all_of(AS_MANY_VIEWS, over_time=False)


def few() -> str:
    """Return the tables of 1,000 images."""
    return _all_of(FEW)


def labels() -> str:
    """Return the table of linear probes of few labels, and what differs."""
    rows, differences, shares = [], [], ("0.01", "0.1", "1")
    for images in WHOLE:
        seeds = _by_share(images.name)
        for method, of in seeds.items():
            name = f"{images.called}: {METHODS[method]}"
            cells = [f"{100 * mean(of[share].values()):.1f}" for share in shares]
            rows.append([name, str(len(of["1"])), *cells])
            if method != BASE and BASE in seeds:
                cells = _differences(of, seeds[BASE], shares)
                differences.append([f"{name}, less {METHODS[BASE]}", *cells])
    heading = ["1 % (50)", "10 % (500)", "all (5,000)"]
    return "\n\n".join(
        [
            table(["pretrained on", "seeds", *heading], rows),
            table(["difference", "pairs", *heading], differences),
        ]
    )


def _by_share(name: str) -> dict[str, dict[str, dict[int, float]]]:
    """Return {method: {share of the labels: {seed: accuracy, the mean over draws}}}."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    paths = sorted(RESULTS.glob(f"ranking-labels-{name}-cpu-seed*.json"))
    for run in (run for path in paths for run in json.loads(path.read_text())["runs"]):
        of = found.setdefault(run["variant"].removeprefix("stl10_cpu_"), {})
        for share, values in run["top1"].items():
            of.setdefault(share, {})[run["seed"]] = mean(values)
    return {method: found[method] for method in METHODS if method in found}


def _all_of(sets: tuple[ImageSet, ...], *, over_time: bool = True) -> str:
    tables = [part for each in sets for part in _of(each)]
    names = [path.name for each in sets for path in each.paths()]
    links = ", ".join(f"[{name}](../benchmarks/results/{name})" for name in names)
    curves = [_over_time(sets)] if over_time else []
    return "\n\n".join([*tables, *curves, f"JSON: {links}."])


def _of(images: ImageSet) -> Iterator[str]:
    """Yield the table of one set, and of what each method differs by from ranking."""
    runs = images.runs()
    seeds = {method: _by_seed(mine) for method, mine in runs.items()}
    best = {}
    for figure in FIGURES.keys() - UNRANKED:
        repeated = {n: of[figure] for n, of in enumerate(seeds.values()) if len(of[figure]) > 1}
        best[figure] = best_of(repeated)
        means = [mean(of[figure].values()) for of in seeds.values()]
        if best[figure] is not None and means[best[figure]] < max(means):  # of one seed, too
            best[figure] = None
    rows = []
    for number, (method, of) in enumerate(seeds.items()):
        steps = mean(run["steps"] for run in runs[method])
        cells = [METHODS[method], str(len(runs[method])), f"{steps:,.0f}"]
        for figure in FIGURES:
            text = _text(figure, mean(of[figure].values()))
            cells.append(f"**{text}**" if best.get(figure) == number else text)
        rows.append(cells)
    random = images.random()
    means = {figure: mean(each[figure] for each in random) for figure in FIGURES}
    rows.append(["random encoder", str(len(random)), "0", *(_text(f, v) for f, v in means.items())])
    yield table([f"pretrained on {images.called}", "seeds", "steps", *FIGURES.values()], rows)

    shown = {figure: name for figure, name in FIGURES.items() if figure not in UNRANKED}
    rows = []
    for method, of in seeds.items():
        if method != BASE and BASE in seeds:
            rows.append([METHODS[method], *_differences(of, seeds[BASE], shown)])
    heading = [f"{images.called}: less {METHODS[BASE]}", "pairs"]
    yield table([*heading, *shown.values()], rows)


def _differences(
    one: Mapping[str, Mapping[int, float]],
    other: Mapping[str, Mapping[int, float]],
    figures: Iterable[str],
) -> list[str]:
    """Return the number of pairs, and one less the other, each {figure: {seed: value}}."""
    pairs = [paired_difference(one[figure], other[figure]) for figure in figures]
    count = max((pair.pairs for pair in pairs if pair), default=0)
    return [str(count), *(pair.points() if pair else "" for pair in pairs)]


def _by_seed(runs: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return {figure: {seed: value}}."""
    return {
        figure: {run["seed"]: (run["final"] | run["evaluated"])[figure] for run in runs}
        for figure in FIGURES
    }


def _text(figure: str, value: float) -> str:
    return f"{value:.0f}" if figure in UNRANKED else f"{100 * value:.1f}"


def _over_time(sets: tuple[ImageSet, ...]) -> str:
    """Return k-NN and view mAP as training goes on."""
    rows, seconds = [], (150, 300, 450, 600)
    for images in sets:
        for method, runs in images.runs().items():
            cells = []
            for number in range(len(seconds)):
                points = [run["curve"][number] for run in runs if len(run["curve"]) == len(seconds)]
                shown = [mean(p[figure] for p in points) for figure in ("knn_top1", "view_map")]
                cells.append(", ".join(f"{100 * value:.1f}" for value in shown))
            rows.append([f"{images.called}: {METHODS[method]}", *cells, f"{_passes(images, runs)}"])
    times = [f"{each} s" for each in seconds]
    return table(["k-NN, view mAP after", *times, "passes over the images"], rows)


def _passes(images: ImageSet, runs: list[dict[str, Any]]) -> int:
    return round(mean(run["batch_size"] * run["steps"] for run in runs) / images.images)


def draw(path: Path) -> None:
    """Draw k-NN against passes over the images, for claim (a)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    chart, panels = pyplot.subplots(
        1, len(WHOLE), figsize=(11, 4.2), dpi=150, sharey=True, layout="constrained"
    )
    for axes, images in zip(panels, WHOLE, strict=True):
        random = 100 * mean(each["knn_top1"] for each in images.random())
        axes.axhline(random, color="#6e7781", linewidth=1, linestyle=(0, (5, 3)), label="random")
        for method, runs in images.runs().items():
            number = list(METHODS).index(method)
            color, marker = COLOURS[number], "osD*^vPX"[number]
            of_pass = runs[0]["batch_size"] / images.images
            # The evaluations of equal seconds are at other steps in each run.
            together = list(zip(*(run["curve"] for run in runs), strict=True))
            x = [of_pass * mean(point["step"] for point in points) for points in together]
            knn = [[100 * point["knn_top1"] for point in points] for points in together]
            low, high = [min(values) for values in knn], [max(values) for values in knn]
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            name = METHODS[method].replace("`", "")
            middle = [mean(values) for values in knn]
            axes.plot(x, middle, linewidth=1.6, label=name, color=color, marker=marker)
        axes.set_title(f"pretrained on {images.called}", loc="left", size=10)
        axes.set_xlabel("passes over the 5,000 images (600 s at the end)")
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("k-NN on STL-10 (%)")
    handles, names = panels[0].get_legend_handles_labels()
    chart.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    with durable.replaced(path) as partial:
        chart.savefig(partial, format="png")
    pyplot.close(chart)


if __name__ == "__main__":
    draw(CHART)
