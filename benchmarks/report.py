"""Render what was measured: tables of docs, from the JSON in benchmarks/results.

    python -m benchmarks.report             write them all again
    python -m benchmarks.report --check     say which are not what the JSON says; the suite does too
    python -m benchmarks.report DIR         show what `python -m benchmarks.gpu` wrote there, and
                                            draw its charts beside it

A section is what stands in a file between the lines <!-- NAME:begin --> and <!-- NAME:end -->.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks import feed, host_operators, kernel_tables, parity, protocols, ranking_finals
from benchmarks.gpu import charts
from benchmarks.gpu import tables as gpu
from benchmarks.gpu.tables import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class ReportPart(NamedTuple):
    """A part of a file that is made from results."""

    file: str
    name: str
    render: Callable[[], str]

    def apply(self) -> tuple[str, str]:
        """Return the file's text as it is, and as it should be.

        Raises:
            ValueError: the file has no such section.
        """
        begin, end = f"<!-- {self.name}:begin -->", f"<!-- {self.name}:end -->"
        text = (ROOT / self.file).read_text()
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{self.file} has no lines {begin} and {end}; put them in it.")
        return text, f"{before}{begin}\n\n{self.render()}\n\n{end}{after}"


def read(name: str) -> dict[str, Any]:
    """Return one of the results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


# ── docs/benchmarks.md ────────────────────────────────────────────────────────────────────────────


def measured() -> str:
    """Return what the programs' parts do, a line each."""
    rows = [*_sharding(), *_feeding(), *_objectives(), *_survival()]
    return table(["what", "figure", "command"], rows).replace("---:", "---")


def _sharding() -> list[list[str]]:
    rates = {
        (row["data"], row["writing"]): row for row in read("sharding-throughput-cpu")["throughput"]
    }

    def rate(data: str, writing: str) -> float:
        return rates[data, writing]["images_per_second"]

    def both(data: str) -> tuple[float, float]:
        return rate(data, "viewrank, 2 workers"), rate(data, "viewrank, 1 worker")

    (two, one), coco = both("cifar10"), both("coco x 10")
    sets = {row["encoding"]: row for row in read("sharding-stl10-cpu")["stl10"]}
    shuffle = read("sharding-shuffle-cpu")
    classes = {k: v["mean_classes_in_a_batch"] for k, v in shuffle["shuffle"].items()}
    beside = min(classes, key=lambda name: classes[name])
    command = "python -m benchmarks.sharding"
    return [
        [
            "sharding CIFAR-10, 50,000 JPEGs, each decoded and checked",
            f"**{two:,.0f} images/s** with 2 workers, {one:,.0f} with 1 ({two / one:.2f} times), "
            f"{rates['cifar10', 'viewrank, 2 workers']['peak_mib']:.0f} MiB; webdataset's "
            f"ShardWriter {rate('cifar10', 'shardwriter'):,.0f}, img2dataset's way "
            f"{rate('cifar10', 'img2dataset style, 2 workers'):,.0f} (2 processes), plain `tar` "
            f"{rate('cifar10', 'tar'):,.0f}, none of which checks or shuffles",
            f"`{command} throughput --cifar10 DIR --coco DIR --scratch /dev/shm`",
        ],
        [
            "the same, COCO, 2,560 JPEGs",
            f"{coco[0]:.0f} images/s with 2 workers, {coco[1]:.0f} with 1 (decoding is all of it); "
            f"ShardWriter, which does not decode, {rate('coco x 10', 'shardwriter'):,.0f}; "
            f"img2dataset's way {rate('coco x 10', 'img2dataset style, 2 workers'):.0f}",
            "",
        ],
        [
            "STL-10's layout, 100,000 images at 96 px, 2 workers: time, size",
            "; ".join(
                f"{name} {sets[name]['seconds']:.0f} s, {sets[name]['gb']:.1f} GB"
                for name in ("raw", "jpeg:95", "png")
            ),
            f"`{command} stl10`",
        ],
        [
            f"classes in a batch of {shuffle['batch']} from a source of 20 sorted classes",
            f"**{classes['viewrank']:.1f}** of 20; {beside} {classes[beside]:.1f}",
            f"`{command} shuffle`",
        ],
    ]


def _feeding() -> list[list[str]]:
    ratios = [read(f"bench-feed-{name}-cpu")["ratio"]["median"] for name in ("cifar10", "coco")]
    return [
        [
            "training's steps fed by the pipeline, beside the same steps on a cached batch: "
            "CIFAR-10 (4 × 32 px), COCO (8 × 96 px)",
            f"{ratios[0]:.2f} and {ratios[1]:.2f} of the speed: without a GPU, both share two "
            "cores",
            "`python -m tools.bench feed --config recipes/cifar10_cpu_s2r2.yaml`",
        ]
    ]


def _objectives() -> list[list[str]]:
    found = {(row["objective"], row["N"]): row for row in read("objectives-cpu")["rows"]}

    def cost(name: str, N: int) -> str:
        row = found[name, N]
        return f"{row['seconds_median']:.2g} s, {row['extra_bytes'] / 2**20:,.0f} MiB"

    return [
        [
            "Smooth-AP forward + backward, 768 embeddings (D = 128, V = 4)",
            f"**{cost('SmoothAP', 768)}**; pytorch-metric-learning "
            f"{cost('PML SmoothAPLoss', 768)}; the published O(N³) form "
            f"{cost('published Smooth-AP', 768)}",
            "`python -m benchmarks.objectives`",
        ],
        [
            "the same, 4,096 and 16,384 embeddings",
            f"**{cost('SmoothAP', 4096)}** and **{cost('SmoothAP', 16384)}**; "
            f"pytorch-metric-learning {found['PML SmoothAPLoss', 4096]['skipped']}",
            "",
        ],
        [
            "NT-Xent, 16,384 embeddings",
            f"**{cost('NTXent', 16384)}**; lightly {cost('lightly NTXentLoss', 16384)}",
            "",
        ],
        [
            "GroCo, 16,384 embeddings",
            f"**{cost('GroCo', 16384)}**; diffsort's sorting network "
            f"{cost('diffsort GroCo', 16384)}",
            "",
        ],
    ]


def _survival() -> list[list[str]]:
    cases = read("torture-cpu")["cases"]
    kills = sum(sum(case["kills"].values()) for case in cases)
    methods = len({case["method"] for case in cases})
    fuzz, cost = read("fuzz-cpu"), read("checkpoint-cpu")
    busy, left = (c["overhead_every_30_seconds"] for c in cost["beside_training"])
    return [
        [
            f"SIGKILL at random moments, {methods} methods, 1 and 2 processes: runs that end with "
            "the losses and weights of a run in peace, to the bit",
            f"all **{len(cases)}**, killed {kills} times",
            "`python -m tests.torture`",
        ],
        [
            "damaged recipes, sets, images and checkpoints that end in a traceback, a hang or harm",
            f"**{len(fuzz['wrong'])}** of {fuzz['cases']:,}",
            f"`{_fuzz(fuzz)}`",
        ],
        [
            f"a checkpoint of {cost['checkpoint_mib']:.0f} MiB every 30 s, beside training on all "
            f"cores, or on all but one ({cost['surroundings']['cores']} cores of "
            f"{cost['surroundings']['cpu']})",
            f"{100 * busy:.1f} and {100 * left:.1f} % of the time",
            "`python -m benchmarks.checkpoint_cost`",
        ],
    ]


def _fuzz(found: Mapping[str, Any]) -> str:
    return f"python -m tests.fuzz --cases {found['cases']}"


METHODS = {
    "multicrop_simclr": "SimCLR",
    "multicrop_s2r2": "S2R2-style (`LogAP`)",
    "groco": "GroCo",
    "moco": "MoCo-v2",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "byol": "BYOL",
    "dino": "DINO",
}
FIGURES = {
    "knn_top1": "k-NN",
    "linear_top1": "linear probe",
    "label_map": "class mAP",
    "view_map": "view mAP",
    "effective_dimension": "effective dimension",
}


NEW_PROBE = "2026-11-30T15:51"
"""Since then a linear probe's penalty is chosen by cross-validated loss, and not by accuracy."""
UNRANKED = {"effective_dimension"}  # more of it is not better, and it is no percentage


def _mean(finals: Sequence[Mapping[str, float]], figure: str) -> float:
    return mean(each[figure] for each in finals)


def _spread(finals: Sequence[Mapping[str, float]], figure: str) -> str:
    """Return mean and standard deviation over seeds; "" if the figure is missing."""
    values, scale = [f[figure] for f in finals if figure in f], 1 if figure in UNRANKED else 100
    return f"{scale * mean(values):.1f} ± {scale * stdev(values):.1f}" if values else ""


def methods() -> str:
    """Return what each method learned in the same seconds, the best in bold."""
    record = read("methods-cifar10-cpu")
    found = {variant["name"]: [] for variant in record["variants"]}
    for run in record["runs"]:
        found[run["variant"]].append(run["final"])
    found = dict(sorted(found.items(), key=lambda item: -_mean(item[1], "knn_top1")))
    best = {n: max(_mean(f, n) for f in found.values()) for n in FIGURES if n not in UNRANKED}
    rows = []
    for name, finals in found.items():
        views = next(v for v in record["variants"] if v["name"] == name)["settings"]["views"]
        cells = {figure: _spread(finals, figure) for figure in FIGURES}
        cells |= {n: f"**{cells[n]}**" for n, most in best.items() if _mean(finals, n) == most}
        rows.append([f"{METHODS[name.removeprefix('cifar10_cpu_')]}, {views}", *cells.values()])
    untrained = [each["figures"] for each in record["random"]]
    rows.append(["random encoder", *(_spread(untrained, figure) for figure in FIGURES)])
    around = record["surroundings"]
    probe = (
        "; the probe's penalty by its [rule until 30 November 2026](evaluation.md#what-it-costs)"
    )
    former = probe if around["date"] < NEW_PROBE else ""
    return (
        "20,000 CIFAR-10 images, a ResNet of 1.2 million parameters at 32 px, "
        f"{record['budget']['seconds']:.0f} s of training on {around['cores']} CPU cores, "
        f"{len(record['seeds'])} seeds, mean ± sd in %\n(the dimension as it is); rates, "
        "temperatures, batch and views of each method from a [search on a validation "
        f"split](methods.md#which-form-of-ap){former}.\n\n"
        + table(["method", *FIGURES.values()], rows)
    )


# ── docs/reliability.md ───────────────────────────────────────────────────────────────────────────


def reliability() -> str:
    """Return what kills, damage, failing ranks, hours and checkpoints came to."""
    parts = [_kills(), _ranks(), _damage(), _hours(), _checkpoints()]
    return "\n\n".join(parts)


def _kills() -> str:
    found = read("torture-cpu")
    cases: dict[str, dict[int, Mapping[str, int]]] = {}
    for case in found["cases"]:
        cases.setdefault(case["method"], {})[case["processes"]] = case["kills"]
    total = sum(sum(case["kills"].values()) for case in found["cases"])
    moments = ("starting", "training", "writing")

    def cell(kills: Mapping[str, int]) -> str:
        return " + ".join(str(kills.get(moment, 0)) for moment in moments)

    rows = [
        [method, *(cell(of.get(processes, {})) for processes in (1, 2))]
        for method, of in cases.items()
    ]
    return (
        f"**Kills** (`python -m tests.torture`): {total} times SIGKILL to the launcher and all "
        "processes, while starting + while training + while a checkpoint was being written. Losses "
        "and weights of every run were in the end those of a run in peace, to the bit.\n\n"
        + table(["method", "1 process", "2 processes"], rows)
    )


def _ranks() -> str:
    found = read("rank-failure-cpu")
    rows = []
    for harm, rounds in found["found"].items():
        row = [f"{harm}, {len(rounds)} times"]
        for name in ("alive_after_seconds", "past_it_after_seconds", "steps_lost"):
            values = [each[name] for each in rounds]
            least, most = (f"{value:.0f}" for value in (min(values), max(values)))
            row.append(least if least == most else f"{least} to {most}")
        rows.append(row)
    return (
        f"**A rank of two fails** (`python -m tests.rank_failure`): a checkpoint every "
        f"{found['checkpoint_every_steps']} steps (of 30 to 60 ms), `--hang_seconds "
        f"{found['hang_seconds']}`, `--max_restarts 2`; nobody helps. Of a stopped or starved "
        "rank's time 30 s are the launcher's patience between SIGTERM and SIGKILL. Losses and "
        "weights were in the end those of a run in peace, to the bit.\n\n"
        + table(
            ["rank 1 is", "s until it lives again", "s until it is past it", "steps lost"], rows
        )
    )


def _damage() -> str:
    found = read("fuzz-cpu")
    rows = [
        [name, *(f"{outcomes.get(o, 0):,}" for o in ("accepted", "refused"))]
        for name, outcomes in found["counts"].items()
    ]
    wrong = len(found["wrong"])
    return (
        f"**Damaged files** (`{_fuzz(found)}`, seed {found['seed']}): of {found['cases']:,} "
        f"cases **{wrong}** ended in a traceback, 30 seconds without an answer, code that was run, "
        "a file outside, or a connection. Accepted is what differs in nothing that matters.\n\n"
        + table(["damaged", "accepted", "refused in one line"], rows)
    )


def _hours() -> str:
    found = read("soak-cpu")
    names = {
        "memory_mib": ("memory", "{:,.0f} MiB"),
        "files": ("open files", "{:.0f}"),
        "threads": ("threads", "{:.0f}"),
        "step_seconds": ("step", "{:.3f} s"),
    }
    rows = []
    for name, (label, form) in names.items():
        trend = found["trends"][name]
        cells = [form.format(trend[key]) for key in ("mean", "least", "most")]
        rows.append([label, *cells, f"{trend['growth_per_hour']:+.2%}"])
    around = found["surroundings"]
    return (
        f"**{found['minutes'] / 60:.1f} hours** (`{found['command']}`, {around['cores']} cores of "
        f"{around['cpu']}): {found['steps']:,} steps of `{found['recipe']}`, a checkpoint every "
        f"50, {found['evaluations']} evaluations. "
        f"{found['minutes_with_other_work']} minutes in which the machine had other work are not "
        "in the step's time; the first tenth is in none of them.\n\n"
        + table(["", "mean", "least", "most", "growth an hour"], rows)
        + "\n\n![two hours of training](soak.png)"
    )


def _checkpoints() -> str:
    found = read("checkpoint-cpu")
    around = found["surroundings"]
    busy, left = map(_overhead, found["beside_training"])
    times = len(found["beside_training"][0]["seconds_lost_by_a_checkpoint"])
    return (
        f"**What a checkpoint costs** (`python -m benchmarks.checkpoint_cost`): a ResNet-50 and "
        f"MoCo's queue of 65,536, {found['checkpoint_mib']:.0f} MiB, on {around['cores']} cores of "
        f"{around['cpu']}. The step loop waits {found['loop_waits_seconds']:.2f} s for the copy; "
        f"on the disk it is after {found['saved_after_seconds']:.1f} s, loaded again after "
        f"{found['restored_after_seconds']:.1f} s. One every 30 s costs "
        f"{busy} of the training if that keeps all cores busy, so that writing takes time "
        f"from it, and {left} if it leaves one; medians and quartiles of {times}."
    )


def _overhead(found: Mapping[str, Any]) -> str:
    lower, upper = (f"{100 * value:.1f}" for value in found["overhead_quartiles"])
    return f"{100 * found['overhead_every_30_seconds']:.1f} % ({lower} to {upper})"


SECTIONS = [
    ReportPart("docs/benchmarks.md", "measured", measured),
    ReportPart("docs/benchmarks.md", "feed", lambda: feed.table(RESULTS)),
    ReportPart("docs/benchmarks.md", "methods", methods),
    ReportPart("docs/benchmarks.md", "gpu", lambda: gpu.markdown(RESULTS / "gpu")),
    ReportPart("docs/augmentation.md", "parity", lambda: parity.tables(read("parity-cpu"))),
    ReportPart(
        "docs/pipeline.md",
        "host_operators",
        lambda: host_operators.markdown(read("host-operators-cpu")),
    ),
    ReportPart(
        "docs/evaluation.md", "protocols", lambda: protocols.markdown(read("protocols-cpu"))
    ),
    ReportPart(
        "docs/kernels.md", "kernels", lambda: kernel_tables.tables(read("kernels-compiled"))
    ),
    ReportPart("docs/ranking.md", "finals", ranking_finals.whole),
    ReportPart("docs/ranking.md", "labels", ranking_finals.labels),
    ReportPart("docs/ranking.md", "views", ranking_finals.as_many_views),
    ReportPart("docs/ranking.md", "few", ranking_finals.few),
    ReportPart("docs/reliability.md", "measured", reliability),
]


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of `python -m benchmarks.gpu`")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        print(gpu.markdown(arguments.folder))
        charts.draw(arguments.folder, arguments.folder)
        return
    check = arguments.check
    stale = []
    for section in SECTIONS:
        text, wanted = section.apply()
        if text != wanted:
            stale.append(f"{section.file}: {section.name}")
            if not check:
                (ROOT / section.file).write_text(wanted)
    if not check and gpu.read(RESULTS / "gpu"):
        charts.draw(RESULTS / "gpu", ROOT / "docs")
    print("\n".join(stale) or "all is as the results say")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
