"""How fast views are made: viewrank beside what others use, on the same images and augmentation.

    python -m benchmarks.feed --coco DIR --cifar10 DIR --stl10 DIR [--rounds 3] [--seconds 8]
    python -m benchmarks.feed views --coco DIR

`peers`, the default, measures all contestants in five cases; `views` measures the cost of views and
the effect of the batch size, of viewrank and of torchvision v2, and draws a chart. Who the
contestants are, and what each of them does: `benchmarks/peers.py`. With --before CHECKOUT another
checkout of this project takes part as "viewrank before".

The shard sets are written first, in a scratch folder: 2,048 images of the folder of COCO (copies,
where it has fewer), 10,240 of CIFAR-10, and 4,096 of STL-10, 96 x 96, as bare pixels.
Every measurement is a process of its own, and in each round all take their turn, so that a busy
minute of the machine hits all. Time starts with the batches that follow a warm-up, and whole
turns of the workers count, since these finish side by side. Memory is that of the process and its
workers, shared pages counted once, without pages of files and without the images that a contestant
is given in memory. The machine should be otherwise idle.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.peers import CONTESTANTS, TORCHVISION_V2, VIEWRANK, Contestant, Feed, stored_images
from benchmarks.record import write
from benchmarks.sharding import files_below
from training.surroundings import surroundings

LAW = "SimCLR at strength 1: area 0.08..1, flip, jitter, grayscale, blur from 64 px on, normalised"
IMAGES = {"coco": 2048, "cifar10": 10_240, "stl10": 4096}  # multiples of the batches below
PACKAGES = ["torch", "torchvision", "pillow", "lightly", "kornia"]
PACKAGES += ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]  # one of them is there
WARM = 1.0  # seconds at least, and two turns of the workers


@dataclass(frozen=True)
class FeedCase:
    """A data set, and the views that are wanted of it."""

    data: str
    views: int
    size: int
    batch_size: int


CASES = {
    "coco-8x96": FeedCase("coco", 8, 96, 64),
    "coco-2x224": FeedCase("coco", 2, 224, 64),
    "coco-32x96": FeedCase("coco", 32, 96, 32),
    "cifar10-8x32": FeedCase("cifar10", 8, 32, 256),
    "stl10raw-8x96": FeedCase("stl10", 8, 96, 256),
}
BEFORE = replace(VIEWRANK, name="viewrank before")
SWEEP = FeedCase("coco", 8, 96, 64)  # what `views` varies
SWEEP_VIEWS = (1, 2, 4, 8, 16, 32)
SWEEP_BATCH_SIZES = (16, 32, 64, 128, 256, 512)


# ── one measurement, in a process of its own ──────────────────────────────────────────────────────


def measure(contestant: Contestant, feed: Feed, seconds: float) -> dict[str, float]:
    """Take batches for some seconds; return images/s and memory."""
    batches = contestant.batches(feed)
    begin, warm, views = time.perf_counter(), 0, ()
    while warm < 2 * feed.workers or time.perf_counter() - begin < WARM:
        views = next(batches)
        warm += 1
    shape = (feed.batch_size, 3, feed.size, feed.size)
    for view in views:
        found = (view.shape, view.dtype, view.device.type)
        assert found == (shape, torch.float32, feed.device), (contestant.name, found)
    assert len(views) == feed.views

    synchronize(feed)
    begin, taken = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(feed.workers):
            next(batches)
        taken += feed.workers
    synchronize(feed)
    elapsed = time.perf_counter() - begin

    memory = 0
    for _ in range(feed.workers):
        next(batches)
        memory = max(memory, memory_bytes())
    given = stored_images(feed.shards) if contestant.in_memory else []
    return {
        "images_per_second": taken * feed.batch_size / elapsed,
        "memory_mib": (memory - sum(image.nbytes for image in given)) / 2**20,
    }


def synchronize(feed: Feed) -> None:
    """Wait until the GPU has done what it was given."""
    if feed.gpu:
        torch.cuda.synchronize()


def memory_bytes() -> int:
    """Return the memory of this process and all below it that no file lies behind."""
    import psutil

    this = psutil.Process()
    kib = 0
    for process in (this, *this.children(recursive=True)):
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        kib += sum(int(size) for size in re.findall(r"Pss_(?:Anon|Shmem):\s+(\d+)", rollup))
    return kib * 1024


# ── all measurements ──────────────────────────────────────────────────────────────────────────────


@dataclass
class FeedJob:
    """A contestant, what it is asked for, and what came of it."""

    contestant: Contestant
    feed: Feed
    checkout: Path | None = None
    """Whose code is measured; None is this one's."""
    runs: list[dict[str, float]] = field(default_factory=list)
    skipped: str = ""

    def run(self, seconds: float) -> None:
        """Measure once; a failure is the reason for leaving it out from then on."""
        task = {"name": self.contestant.name, "feed": asdict(self.feed), "seconds": seconds}
        if self.contestant == BEFORE:
            task["name"] = VIEWRANK.name
        command = [sys.executable, "-m", "benchmarks.feed", "one", json.dumps(task)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.checkout)
        if done.returncode:
            self.skipped = f"failed: {done.stderr.strip().rpartition(chr(10))[2]}"
        else:
            self.runs.append(json.loads(done.stdout))

    def row(self) -> dict[str, Any]:
        """Return the figures, or why there are none."""
        if self.skipped:
            return {"contestant": self.contestant.name, "skipped": self.skipped}
        rates = [run["images_per_second"] for run in self.runs]
        return {
            "contestant": self.contestant.name,
            "images_per_second": round(median(rates), 1),
            "least": round(min(rates), 1),
            "most": round(max(rates), 1),
            "views_per_second": round(self.feed.views * median(rates), 1),
            "memory_mib": round(max(run["memory_mib"] for run in self.runs)),
        }


def compare(jobs: Sequence[FeedJob], rounds: int, seconds: float) -> None:
    """Run every job once a round."""
    for turn in range(rounds):
        for job in jobs:
            job.skipped = job.skipped or job.contestant.cannot(job.feed)
            if not job.skipped:
                job.run(seconds)
            feed = job.feed
            asked = f"{feed.views} views of {feed.size} px, batch {feed.batch_size}"
            found = job.skipped or f"{job.runs[-1]['images_per_second']:,.1f} images/s"
            print(
                f"round {turn + 1} of {rounds}: {job.contestant.name}, {asked}: {found}",
                file=sys.stderr,
            )


class Bench:
    """What the stages share: shard sets in a scratch folder, and where results go."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
        self.machine = re.sub(r"\W+", "-", self.gpu.lower()) if self.gpu else "cpu"
        self.surroundings = {**surroundings(*PACKAGES), "gpu": self.gpu}

    def feed(self, case: FeedCase) -> Feed:
        """Return what contestants are asked for in this case."""
        return Feed(
            shards=self._shards(case.data),
            views=case.views,
            size=case.size,
            batch_size=case.batch_size,
            workers=self.arguments.workers,
            device=self.arguments.device,
        )

    def write(self, name: str, results: dict[str, Any]) -> Path:
        """Write results as JSON, with what they depend on."""
        here = self.arguments
        record = {
            "surroundings": self.surroundings,
            "command": f"python -m benchmarks.feed {here.stage} --coco DIR --cifar10 DIR "
            f"--stl10 DIR --rounds {here.rounds} --seconds {here.seconds:g} "
            f"--workers {here.workers}",
            "augmentation": LAW,
            **results,
        }
        here.results.mkdir(parents=True, exist_ok=True)
        path = here.results / f"feed-{name}-{self.machine}.json"
        write(record, path)
        print(f"written to {path}", file=sys.stderr)
        return path

    def _shards(self, data: str) -> str:
        """Return the folder of a shard set, written at the first call."""
        out, images = self.scratch / data, self.scratch / f"{data}-images"
        if not out.exists():
            copy_images(getattr(self.arguments, data), images, IMAGES[data])
            command = [sys.executable, "-m", "tools.shard", "folder", "--root", str(images)]
            command += ["--limit", str(IMAGES[data]), "--out", str(out)]
            command += ["--encoding", "raw"] if data == "stl10" else []
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
        return str(out)


def copy_images(root: Path, out: Path, count: int) -> None:
    """Copy `count` images, spread evenly over those of a folder; some repeatedly, if need be."""
    files = files_below(root)
    if not files:
        raise SystemExit(f"{root} holds no .jpg or .png files; give the folder of the images.")
    out.mkdir()
    evenly = files[:: max(1, len(files) // count)]
    for number, path in zip(range(count), cycle(evenly), strict=False):
        (out / f"{number:06d}{path.suffix}").write_bytes(path.read_bytes())


def peers(bench: Bench) -> None:
    """Measure all contestants, case by case."""
    here = bench.arguments
    for name in here.cases:
        case = CASES[name]
        jobs = [FeedJob(contestant, bench.feed(case)) for contestant in CONTESTANTS]
        if here.before:
            jobs.insert(0, FeedJob(BEFORE, bench.feed(case), checkout=here.before))
        compare(jobs, here.rounds, here.seconds)
        rows = [job.row() for job in jobs]
        rates = {
            row["contestant"]: row["images_per_second"]
            for row, job in zip(rows, jobs, strict=True)
            if job.contestant.workers and not job.skipped
        }
        best = max(rates, key=rates.__getitem__, default=None)
        for row in rows:
            if best and "images_per_second" in row:
                row["ratio"] = round(row["images_per_second"] / rates[best], 3)
        bench.write(name, {"case": name, **asdict(case), "best_dataloader": best, "rows": rows})


def views(bench: Bench) -> None:
    """Measure viewrank and torchvision v2 against the number of views and the batch size."""
    here = bench.arguments
    cases = [replace(SWEEP, views=views) for views in SWEEP_VIEWS]
    cases += [replace(SWEEP, batch_size=size) for size in SWEEP_BATCH_SIZES]
    jobs = [
        FeedJob(contestant, bench.feed(case))
        for case in dict.fromkeys(cases)  # one is in both rows
        for contestant in (VIEWRANK, TORCHVISION_V2)
    ]
    compare(jobs, here.rounds, here.seconds)
    rows = []
    for job in jobs:
        row = {"views": job.feed.views, "batch_size": job.feed.batch_size, **job.row()}
        if not job.skipped:
            row["ms_per_image"] = round(1000 / row["images_per_second"], 3)
            row["ms_per_view"] = round(1000 / row["views_per_second"], 4)
        rows.append(row)
    path = bench.write("views", {"size": SWEEP.size, "data": SWEEP.data, "rows": rows})
    draw(rows, path.with_suffix(".png"))


# ── for people ────────────────────────────────────────────────────────────────────────────────────


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw cost against views, and images/s against the batch size; bars are least and most."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=150, layout="constrained")
    measured = [row for row in rows if "skipped" not in row]
    for contestant, colour in ((VIEWRANK, "#0b6e99"), (TORCHVISION_V2, "#c4622d")):
        mine = [row for row in measured if row["contestant"] == contestant.name]
        by_views = [row for row in mine if row["batch_size"] == SWEEP.batch_size]
        by_batch = sorted(
            (row for row in mine if row["views"] == SWEEP.views), key=lambda row: row["batch_size"]
        )
        style = {"color": colour, "marker": "o", "markersize": 4, "label": contestant.name}
        per_view = [[1000 / (row["views"] * row[key]) for row in by_views] for key in RATES]
        rates = [[row[key] for row in by_batch] for key in RATES]
        for axes, x, (y, one, other) in (
            (left, [row["views"] for row in by_views], per_view),
            (right, [row["batch_size"] for row in by_batch], rates),
        ):
            axes.plot(x, y, **style)
            axes.vlines(x, one, other, color=colour, linewidth=1)
    for axes, title, label, ticks in (
        (
            left,
            "milliseconds per view",
            f"views of an image (batch {SWEEP.batch_size})",
            SWEEP_VIEWS,
        ),
        (right, "images per second", f"batch size ({SWEEP.views} views)", SWEEP_BATCH_SIZES),
    ):
        axes.set_title(title, loc="left")
        axes.set_xlabel(label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path)
    print(f"drawn to {path}", file=sys.stderr)


RATES = ("images_per_second", "least", "most")


def table(results: Path) -> str:
    """Return the results of `peers` as Markdown, a table for each machine."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("feed-*.json"))]
    records = [record for record in records if "case" in record]
    if not records:
        raise SystemExit(f"{results} holds no feed-*.json; run python -m benchmarks.feed first.")
    machines = {record["surroundings"]["gpu"] for record in records}
    return "\n\n".join(
        _machine_table([record for record in records if record["surroundings"]["gpu"] == gpu])
        for gpu in sorted(machines, key=str)
    )


def _machine_table(records: list[dict[str, Any]]) -> str:
    records.sort(key=lambda record: list(CASES).index(record["case"]))
    rows = [{row["contestant"]: row for row in record["rows"]} for record in records]
    around = records[-1]["surroundings"]
    gpu = f"one {around['gpu']} and " if around["gpu"] else ""
    lines = [
        f"Images/s on {gpu}{around['cores']} cores of {around['cpu']}; in brackets the ratio to "
        "the fastest that uses a DataLoader. MiB: the most of all cases, on the host.",
        "",
        "| |" + "".join(f" {record['case']} |" for record in records) + " MiB |",
        "|---|" + "---:|" * (len(records) + 1),
    ]
    for name in dict.fromkeys(name for row in rows for name in row):
        mine = [row.get(name, {"skipped": "not measured"}) for row in rows]
        cells = [_cell(row, record) for row, record in zip(mine, records, strict=True)]
        memory = max((row["memory_mib"] for row in mine if "memory_mib" in row), default=None)
        lines.append(f"| {name} | " + " | ".join([*cells, "" if memory is None else f"{memory:,}"]))
        lines[-1] += " |"
    measured = [row for by_name in rows for row in by_name.values() if "skipped" not in row]
    spread = max((row["most"] - row["least"]) / row["images_per_second"] for row in measured)
    lines += ["", f"Medians; the runs of a cell differ by {100 * spread:.0f} % at most."]
    return "\n".join(lines)


def _cell(row: dict[str, Any], record: dict[str, Any]) -> str:
    if "skipped" in row:
        return row["skipped"]
    rate = f"{row['images_per_second']:,.0f}"
    best = max(each.get("images_per_second", 0) for each in record["rows"])
    bold = "**" if row["images_per_second"] == best else ""
    return f"{bold}{rate}{bold}" + (f" ({row['ratio']:.2f})" if "ratio" in row else "")


def main() -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("stage", nargs="?", default="peers", choices=["peers", "views"])
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), help="Of peers."
    )
    parser.add_argument("--coco", type=Path, help="Folder of COCO's JPEG files.")
    parser.add_argument("--cifar10", type=Path, help="Folder of CIFAR-10's JPEG or PNG files.")
    parser.add_argument("--stl10", type=Path, help="Folder of STL-10's images as files.")
    parser.add_argument("--before", type=Path, help="Another checkout of this project.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="Of a measurement.")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="Processes, or threads of DALI.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=["cpu", "cuda"])
    parser.add_argument("--scratch", type=Path, help="Folder for what is written meanwhile.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()

    cases = [CASES[name] for name in arguments.cases] if arguments.stage == "peers" else [SWEEP]
    for data in ("coco", "cifar10", "stl10"):
        if getattr(arguments, data) is None and any(case.data == data for case in cases):
            parser.error(f"--{data} DIR is missing; give the folder, or other --cases.")
    with tempfile.TemporaryDirectory(prefix="feed-", dir=arguments.scratch) as scratch:
        {"peers": peers, "views": views}[arguments.stage](Bench(arguments, Path(scratch)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        task = json.loads(sys.argv[2])
        contestant = next(each for each in CONTESTANTS if each.name == task["name"])
        print(json.dumps(measure(contestant, Feed(**task["feed"]), task["seconds"])))
    else:
        main()
