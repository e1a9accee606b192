"""What the stages found, as charts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.gpu.tables import CIFAR10, good, read


def draw(folder: Path, out: Path) -> list[Path]:
    """Draw what there is: accuracy against seconds, time against embeddings, views/s by set.

    Args:
        folder: of the stages' files.
        out: where gpu-*.png go.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    stages, drawn = read(folder), []

    def save(chart: Any, name: str) -> None:
        chart.savefig(out / f"gpu-{name}.png")
        pyplot.close(chart)
        drawn.append(out / f"gpu-{name}.png")

    def panel(title: str, x: str, y: str) -> tuple[Any, Any]:
        chart, axes = pyplot.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes.set_title(title, loc="left")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        return chart, axes

    curves = {
        k: r["curve"]
        for k, r in good(stages, "learning").items()
        if r.get("curve") and r.get("data", CIFAR10) == CIFAR10
    }
    if curves:
        chart, panels = pyplot.subplots(
            1, 2, figsize=(11, 4.5), dpi=150, layout="constrained", sharey=True
        )
        for axes, by, label in (
            (panels[0], "seconds", "seconds of training"),
            (panels[1], "epochs_times_views", "epochs × views of an image"),
        ):
            for name, curve in curves.items():
                known = [point for point in curve if "knn_top1" in point]
                x = [point[by] for point in known]
                axes.plot(x, [100 * p["knn_top1"] for p in known], marker="o", ms=3, label=name)
            axes.axhline(84.8, color="0.6", linewidth=1, linestyle="--")
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_title("k-NN on CIFAR-10 (k = 200), %", loc="left")
        panels[0].legend(frameon=False, fontsize=7)
        save(chart, "learning")
    ranked = [r for r in good(stages, "ranking").values() if "forms" in r]
    if ranked:
        chart, axes = panel("exact Smooth-AP, value and gradient", "embeddings", "ms")
        for V, form in sorted({(r["V"], form) for r in ranked for form in r["forms"]}):
            mine = sorted((r["N"], r["forms"][form]["ms_median"]) for r in ranked if r["V"] == V)
            axes.loglog(*zip(*mine, strict=True), marker="o", ms=3, label=f"{form}, {V} views")
        axes.legend(frameon=False, fontsize=8)
        save(chart, "ranking")
    loaded = [(k, r) for k, r in good(stages, "loading").items() if "views_per_second" in r]
    if loaded:
        chart, axes = panel("the loader alone", "views of an image", "views/s")
        for line in dict.fromkeys(re.sub(r": \d+ × ", ", ", name) for name, _ in loaded):
            mine = sorted(
                (r["views"], r["views_per_second"])
                for name, r in loaded
                if re.sub(r": \d+ × ", ", ", name) == line
            )
            axes.loglog(*zip(*mine, strict=True), marker="o", ms=3, label=line)
        axes.legend(frameon=False, fontsize=6, ncols=2)
        save(chart, "loading")
    return drawn
