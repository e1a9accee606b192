"""What the stages found, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.gpu.box import Row

FEED, VIEWS_SECOND, RANK_MS, RANK_MIB, KNOWN_MINUTES = 0.97, 5_000, 20.0, 1_024.0, 5.0
CIFAR10 = "CIFAR-10"
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

    fed = {k: r for k, r in good(stages, "feeding").items() if "ratio" in r}
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
    exact = [r for r in good(stages, "ranking").values() if r.get("N") == 32_768 and "forms" in r]
    for row in exact:
        for name in ("kernel float32", "kernel bf16"):
            if form := row["forms"].get(name):
                mib = form["extra_bytes"] / 2**20
                text = f"exact Smooth-AP of 32,768 embeddings of {row['V']} views in "
                text += f"{RANK_MS:g} ms and 1 GiB, {name}"
                reached = form["ms_median"] <= RANK_MS and mib <= RANK_MIB
                goal(text, f"{form['ms_median']:.1f} ms, {mib:,.0f} MiB", reached)
    learned = {
        k: r for k, r in good(stages, "learning").items() if r.get("data", CIFAR10) == CIFAR10
    }
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
            text += "; cut off" if "cut_off" in row else ""
        elif "worst_image_mean_levels" in row:
            text = (
                f"{row['images']:,} images, {row['mean_levels']:.2f} levels apart in the mean, "
                f"{row['worst_image_mean_levels']:.2f} the worst; a run would refuse "
                f"{row['images_that_a_run_would_refuse']}"
            )
            if not row.get("decoded_by_another", True):
                text += "; **not one differs: was it the host's decoder?**"
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
    lines, batches = [], []
    for name, row in rows.items():
        memory = [f"{row[k]:.1f}" if k in row else "" for k in ("torch_peak_gib", "others_gib")]
        if "copied" in row:
            found = [f"{row[k]:.2f}" for k in ("ms_a_batch", "host_ms_a_batch")]
            batches.append([name, *found, f"{row['data_wait']:.1%}", *memory])
            continue
        if "ratio" not in row:
            lines.append([name, "", "", "", f"{row['images_per_second']:,.0f}", *5 * [""]])
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
                f"{both['host_ms_a_batch']:.2f}",
                f"{used:.0%}" if used is not None else "",
                *memory,
            ]
        )
    gib = ["PyTorch's peak GiB", "others' GiB"]
    heading = ["training", "cached ms", "fed ms", "ratio", "images/s", "waiting"]
    heading += ["host in loader ms", "GPU used", *gib]
    parts = ["**Fed by the pipeline**\n\n" + table(heading, lines)] if lines else []
    if batches:
        heading = ["what becomes of a batch", "fed ms", "host in loader ms", "waiting", *gib]
        parts.append(table(heading, batches))
    return "\n\n".join(parts)


def host_side(rows: Mapping[str, Row]) -> str:
    """Return what a step may wait for."""
    lines = [
        [
            name,
            f"{row['ms']:.2f}",
            f"{row['reader_ms']:.2f}" if "reader_ms" in row else "",
            f"{row['operators']:.0f}" if "operators" in row else "",
            f"{row['samples_per_second']:,.0f}",
            f"{use:.0%}" if (use := row.get("decoding_engine_use")) is not None else "",
        ]
        for name, row in rows.items()
    ]
    heading = ["alone", "ms a batch", "of it the reader", "operators", "samples/s"]
    heading.append("JPEG engine used")
    parts = ["**What a step waits for, without the step**", table(heading, lines)] if lines else []
    uses = [row["decoding_engine_use"] for row in rows.values() if "decoding_engine_use" in row]
    if any(use is not None for use in uses) and not any(uses):
        parts.append(
            "The GPU's JPEG engine decoded nothing of what was asked of it: all other shares would "
            "be the same, and were not tried."
        )
    return "\n\n".join(parts)


def captured(rows: Mapping[str, Row]) -> str:
    """Return whether a recorded step is the eager one, and what a step takes by how it is run."""
    equal, alone = [], []
    for name, row in rows.items():
        if "recorded_differs_by" in row:
            keys = ("recorded_differs_by", "repeated_differs_by", "losses_differ_by")
            equal.append([f"{name}, {row['steps']} steps", *(f"{row[key]:.1e}" for key in keys)])
        else:
            ms = f"{row['ms_a_batch']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
            peak = f"{row['torch_reserved_gib']:.1f}" if "torch_reserved_gib" in row else ""
            alone.append([name, ms, f"{row['images_per_second']:,.0f}", peak])
    heading = ["weights after the same steps", "recorded, by", "eager again, by", "losses, by"]
    parts = [table(heading, equal)] if equal else []
    parts += [table(["step alone", "ms", "images/s", "PyTorch's GiB"], alone)] if alone else []
    return "**The step as one CUDA graph**\n\n" + "\n\n".join(parts) if parts else ""


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
    """Return what was learned by data, the best first."""
    parts = []
    for data in dict.fromkeys(row.get("data", CIFAR10) for row in rows.values()):
        mine = {k: r for k, r in rows.items() if r.get("data", CIFAR10) == data}
        parts.append(_learned(data, mine))
    return "**Learned in equal seconds**\n\n" + "\n\n".join(parts) if parts else ""


def _learned(data: str, rows: Mapping[str, Row]) -> str:
    lines, goal = [], data == CIFAR10
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["final"].get("knn_top1", 0.0)):
        final, knew = row["final"], row["seconds_to_84.8%"]
        lines.append(
            [
                name,
                *(f"{final[k]:.1%}" if k in final else "" for k in ("knn_top1", "linear_top1")),
                *(f"{final[k]:.1%}" if k in final else "" for k in ("label_map", "view_map")),
                f"{row['views_per_second']:,.0f}",
                f"{row['seconds']:.0f}" + (" †" if "cut_off" in row else ""),
                *([f"{knew:.0f}" if knew else "–"] if goal else []),
            ]
        )
    heading = [f"{data}, ResNet-18", "k-NN", "linear probe", "class mAP", "view mAP"]
    heading += ["views/s", "seconds", *(["to 84.8 % k-NN"] if goal else [])]
    return table(heading, lines)


SECTIONS: Mapping[str, Callable[[Mapping[str, Row]], str]] = {
    "sound": sound,
    "feeding": feeding,
    "host_side": host_side,
    "ranking": ranking,
    "captured": captured,
    "loading": loading,
    "learning": learning,
}


def good(stages: Mapping[str, Row], name: str) -> dict[str, Row]:
    """Return the rows of a stage that did not fail."""
    return {k: r for k, r in stages.get(name, {"rows": {}})["rows"].items() if "failed" not in r}
