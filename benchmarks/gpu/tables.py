"""What the stages found, as Markdown and as charts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.box import Row

FEED, VIEWS_SECOND, RANK_MS, RANK_MIB, KNOWN_MINUTES = 0.97, 5_000, 20.0, 1_024.0, 5.0
NOTHING = (
    "Not measured yet: no GPU could be had. `python -m benchmarks.gpu --minutes 9.5 --out DIR` "
    "makes the most telling figures, the same command again those that are missing; its rehearsal "
    "on the CPU is part of the test suite."
)


def read(folder: Path) -> dict[str, Row]:
    """Return the stages' files by name, of those that there are."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def markdown(folder: Path) -> str:
    """Return everything, the goals first; without results, how to get them."""
    stages = read(folder)
    if not stages:
        return NOTHING
    head = next(iter(stages.values()))
    around = head["surroundings"]
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    rows = [row for stage in stages.values() for row in stage["rows"].values()]
    commits = dict.fromkeys(str(row["commit"])[:10] for row in rows if "commit" in row)
    parts = [
        f"On {head['gpu'] or 'no GPU (a rehearsal)'}, {around['cores']} cores; {versions}; Python "
        f"{around['python']}; commit {', '.join(commits)}. Medians."
    ]
    parts += ["\n".join(f"- {line}" for line in goals(stages))] if goals(stages) else []
    for name, render in SECTIONS.items():
        if name in stages:
            rows = {k: r for k, r in stages[name]["rows"].items() if not k.startswith("shards: ")}
            parts.append(render({k: r for k, r in rows.items() if "failed" not in r}))
            failed = [f"{k}: {r['failed']}" for k, r in rows.items() if "failed" in r]
            parts += ["Failed: " + "; ".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part)


def goals(stages: Mapping[str, Row]) -> list[str]:
    """Return a line for each goal that was measured: what was wanted, what was found."""
    lines = []

    def goal(text: str, found: str, reached: bool) -> None:
        lines.append(f"{text}: **{found}**, {'reached' if reached else 'missed'}")

    fed = {k: r for k, r in _good(stages, "feeding").items() if "ratio" in r}
    if fed:
        least = min(fed, key=lambda name: fed[name]["ratio"]["median"])
        ratio = fed[least]["ratio"]["median"]
        goal(
            f"fed steps at {FEED} of cached ones everywhere",
            f"{ratio:.3f} ({least})",
            ratio >= FEED,
        )
    vit = {k: r for k, r in fed.items() if k.startswith("ViT-S/16")}
    if vit:
        best = max(r["figures"]["both"]["images_per_second"] for r in vit.values())
        text = f"ViT-S/16, two views, {VIEWS_SECOND:,} samples/s"
        goal(text, f"{best:,.0f}", best >= VIEWS_SECOND)
    exact = [r for r in _good(stages, "ranking").values() if r.get("N") == 32_768 and "forms" in r]
    for row in exact:
        for name in ("kernel float32", "kernel bf16"):
            if form := row["forms"].get(name):
                mib = form["extra_bytes"] / 2**20
                text = f"exact Smooth-AP of 32,768 embeddings of {row['V']} views in "
                text += f"{RANK_MS:g} ms and 1 GiB, {name}"
                reached = form["ms_median"] <= RANK_MS and mib <= RANK_MIB
                goal(text, f"{form['ms_median']:.1f} ms, {mib:,.0f} MiB", reached)
    learned = _good(stages, "learning")
    knew = {k: r["seconds_to_84.8%"] for k, r in learned.items() if r.get("seconds_to_84.8%")}
    if learned and "curve" in next(iter(reversed(learned.values()))):
        first = min(knew, key=lambda name: knew[name], default=None)
        found = f"{knew[first]:.0f} s ({first})" if first else "not within the time"
        text = f"84.8 % k-NN on CIFAR-10 in {KNOWN_MINUTES:g} minutes of training"
        goal(text, found, bool(first) and knew[str(first)] <= 60 * KNOWN_MINUTES)
    return lines


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, rule, *rows])


def sound(rows: Mapping[str, Row]) -> str:
    """Return whether the GPU computes what it should."""
    lines = []
    for name, row in rows.items():
        if "counts" in row:
            text = ", ".join(f"{n} {kind}" for kind, n in row["counts"].items())
            text += f" ({', '.join(row['not_passed'])})" if row["not_passed"] else ""
        elif "worst_image_mean_levels" in row:
            text = (
                f"{row['images']:,} images, {row['mean_levels']:.2f} levels apart in the mean, "
                f"{row['worst_image_mean_levels']:.2f} the worst; a run would refuse "
                f"{row['images_that_a_run_would_refuse']}"
            )
        elif "wrong_batches" in row:
            text = (
                f"{row['wrong_batches']} of {row['batches']} batches were not what they should be; "
                f"the device was {row['device_was_behind_by_seconds']:.1f} s behind"
            )
        elif "losses" in row:
            last = row["losses"][-5:]
            text = f"{sum(last) / len(last):.4f} after {row['steps']} steps"
            text += f"; {row['skipped_steps']} skipped"
        else:
            text = (
                f"continued from step {row['continued_from']} of {row['steps']}: weights differ by "
                f"{row['continued_differs_by']:.1e}; two that nothing disturbed, by "
                f"{row['repeated_differs_by']:.1e}"
            )
        lines.append([name, text])
    return "**Sound**\n\n" + table(["", "found"], lines).replace("---:", "---") if lines else ""


def feeding(rows: Mapping[str, Row]) -> str:
    """Return what the pipeline costs training."""
    lines = []
    for name, row in rows.items():
        if "ratio" not in row:
            lines.append([name, "", "", "", f"{row['images_per_second']:,.0f}", "", ""])
            continue
        step, both, ratio = row["figures"]["step"], row["figures"]["both"], row["ratio"]
        used = both.get("gpu_utilization")
        lines.append(
            [
                name,
                f"{step['ms_a_batch']:.1f}",
                f"{both['ms_a_batch']:.1f}",
                f"{ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f})",
                f"{both['images_per_second']:,.0f}",
                f"{both['data_wait']:.1%}",
                f"{used:.0%}" if used is not None else "",
            ]
        )
    heading = ["training", "cached ms", "fed ms", "ratio", "images/s", "waiting", "GPU used"]
    return "**Fed by the pipeline**\n\n" + table(heading, lines) if lines else ""


def ranking(rows: Mapping[str, Row]) -> str:
    """Return what exact ranking costs, by number of embeddings."""
    lines, peers = [], []
    for row in sorted((r for r in rows.values() if "N" in r), key=lambda r: (r["V"], r["N"])):
        if "forms" in row:
            for form, found in row["forms"].items():
                lines.append([f"{row['N']:,}, {row['V']} views, {form}", *_ranked(found)])
        elif "ms_median" in row:
            peers.append([f"{row['N']:,}, {row['V']} views, PML's SmoothAPLoss", *_ranked(row)])
    heading = ["embeddings", "ms", "MiB more", "TFLOP/s", "gradient differs by"]
    return "**Exact Smooth-AP, value and gradient**\n\n" + table(heading, lines + peers)


def _ranked(found: Row) -> list[str]:
    extra = found["extra_bytes"]
    return [
        f"{found['ms_median']:.2f}",
        "" if extra is None else f"{extra / 2**20:,.0f}",
        f"{found['tflops']:.1f}",
        f"{found['gradient_difference']:.1e}" if "gradient_difference" in found else "",
    ]


def loading(rows: Mapping[str, Row]) -> str:
    """Return views/s by set, with kernel launches of a batch."""
    cells: dict[str, dict[str, str]] = {}
    for name, row in rows.items():
        data, _, asked = name.rpartition(": ")
        launches = row["kernel_launches_a_batch"]
        text = f"{row['views_per_second']:,.0f} (B {row['batch_size']})"
        cells.setdefault(data, {})[asked] = text + (f" / {launches:.0f}" if launches else "")
    columns = list(dict.fromkeys(asked for of in cells.values() for asked in of))
    lines = [[data, *(of.get(asked, "") for asked in columns)] for data, of in cells.items()]
    title = "**The loader alone**, views/s (of B images a batch) / kernel launches of a batch\n\n"
    return title + table(["", *columns], lines) if lines else ""


def learning(rows: Mapping[str, Row]) -> str:
    """Return what was learned, the best first."""
    lines = []
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["final"].get("knn_top1", 0.0)):
        final, knew = row["final"], row["seconds_to_84.8%"]
        lines.append(
            [
                name,
                *(f"{final[k]:.1%}" if k in final else "" for k in ("knn_top1", "linear_top1")),
                *(f"{final[k]:.1%}" if k in final else "" for k in ("label_map", "view_map")),
                f"{row['views_per_second']:,.0f}",
                f"{row['seconds']:.0f}" + (" †" if "cut_off" in row else ""),
                f"{knew:.0f}" if knew else "–",
            ]
        )
    heading = ["CIFAR-10, ResNet-18", "k-NN", "linear probe", "class mAP", "view mAP"]
    heading += ["views/s", "seconds", "to 84.8 % k-NN"]
    return "**Learned in equal seconds**\n\n" + table(heading, lines) if lines else ""


SECTIONS: Mapping[str, Callable[[Mapping[str, Row]], str]] = {
    "sound": sound,
    "feeding": feeding,
    "ranking": ranking,
    "loading": loading,
    "learning": learning,
}


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

    curves = {k: r["curve"] for k, r in _good(stages, "learning").items() if r.get("curve")}
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
    ranked = [r for r in _good(stages, "ranking").values() if "forms" in r]
    if ranked:
        chart, axes = panel("exact Smooth-AP, value and gradient", "embeddings", "ms")
        for V, form in sorted({(r["V"], form) for r in ranked for form in r["forms"]}):
            mine = sorted((r["N"], r["forms"][form]["ms_median"]) for r in ranked if r["V"] == V)
            axes.loglog(*zip(*mine, strict=True), marker="o", ms=3, label=f"{form}, {V} views")
        axes.legend(frameon=False, fontsize=8)
        save(chart, "ranking")
    loaded = [(k, r) for k, r in _good(stages, "loading").items() if "views_per_second" in r]
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


def _good(stages: Mapping[str, Row], name: str) -> dict[str, Row]:
    return {k: r for k, r in stages.get(name, {"rows": {}})["rows"].items() if "failed" not in r}
