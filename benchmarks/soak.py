"""Hours of training, with checkpoints and evaluations: does anything grow?

    python -m benchmarks.soak --minutes 120 --out FILE.json --chart docs/soak.png

train.py runs as its users start it. Its memory, open files and threads are read from /proc every
few seconds, its step times from its own records. After a warm-up of a tenth of the time, nothing
may grow: the trend of each, by least squares, is given as a share of its mean per hour. Where the
machine has other work too, steps take longer: minutes in which others had more than 5 % of its
processors are drawn, but are not in the trend of the step time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write
from training.monitor import records
from training.run import checkpoint
from training.surroundings import surroundings

PERIOD = 5.0
WINDOW = 12
"""Samples over which a step's time is taken: a minute."""
DISTURBED = 0.05
"""Share of the processors' time from which on other work counts as a disturbance."""
PANELS = {
    "memory_mib": "memory (MiB)",
    "files": "open files",
    "threads": "threads",
    "step_seconds": "step (s)",
}


def sample(process: int) -> dict[str, float]:
    """Return what a process holds now, and the seconds of processor that it and all have used."""
    status = Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    tick = os.sysconf("SC_CLK_TCK")
    own = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
    user, nice, system, _, _, *more = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return {
        "memory_mib": int(fields["RssAnon"].split()[0]) / 1024,
        "files": float(len(os.listdir(f"/proc/{process}/fd"))),
        "threads": float(fields["Threads"]),
        "own": sum(map(int, own)) / tick,
        "all": sum(map(int, (user, nice, system, *more))) / tick,
    }


def step_times(samples: Sequence[dict[str, float]]) -> list[tuple[float, float, float]]:
    """Return (seconds, seconds of a step, share of the processors that others had) a minute."""
    found: list[tuple[float, float, float]] = []
    for a, b in pairwise(samples[::WINDOW]):
        if b["step"] > a["step"]:
            others = (b["all"] - a["all"]) - (b["own"] - a["own"])
            span = (b["seconds"] - a["seconds"]) * (os.cpu_count() or 1)
            took = (b["trained"] - a["trained"]) / (b["step"] - a["step"])
            found.append((b["seconds"], took, max(0.0, others / span)))
    return found


def trend(points: Sequence[tuple[float, float]], *, begin: float) -> dict[str, float]:
    """Return mean, extremes and growth per hour as a share of the mean.

    Args:
        points: (seconds, value).
        begin: seconds before which nothing counts.
    """
    counted = [point for point in points if point[0] >= begin]
    if len(counted) < 3:
        return {}
    seconds, values = np.array(counted).T
    slope = np.polyfit(seconds / 3600, values, 1)[0]
    return {
        "mean": round(float(values.mean()), 4),
        "least": round(float(values.min()), 4),
        "most": round(float(values.max()), 4),
        "growth_per_hour": round(float(slope / values.mean()), 5),
    }


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train for the given time, and return what was seen."""
    run = folder / "run"
    seconds = arguments.minutes * 60
    words = ["--config", arguments.recipe, "--run", str(run), "--epochs", "null"]
    words += ["--steps", str(10**7), "--max_seconds", "null", "--checkpoint_every", "50"]
    words += ["--evaluate_every", str(arguments.evaluate_every)]
    log = (folder / "log").open("w")
    process = subprocess.Popen([sys.executable, "train.py", *words], stdout=log, stderr=log)
    begin, samples = time.monotonic(), []
    while time.monotonic() - begin < seconds and process.poll() is None:
        time.sleep(PERIOD)
        if process.poll() is None:
            now = sample(process.pid) | {"seconds": time.monotonic() - begin}
            newest = next((r for r in reversed(records(run)) if "loss" in r), {})
            now |= {"step": newest.get("step", 0), "trained": newest.get("seconds", 0.0)}
            samples.append(now)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=300)
    if code != 128 + signal.SIGTERM:
        print(f"train.py ended with {code}: {(folder / 'log').read_text()[-2000:]}")
    saved = checkpoint.newest(run)
    evaluations = sum("evaluation" in record for record in records(run))
    series = {
        name: [(s["seconds"], s[name]) for s in samples]
        for name in ("memory_mib", "files", "threads")
    }
    steps = step_times(samples)
    series["step_seconds"] = [(at, took) for at, took, others in steps if others < DISTURBED]
    disturbed = [(at, took) for at, took, others in steps if others >= DISTURBED]
    return {
        "command": f"python -m benchmarks.soak --minutes {arguments.minutes:g}",
        "surroundings": surroundings("torch", "nvidia-dali-cuda130", "accelerate"),
        "recipe": arguments.recipe,
        "minutes": round(samples[-1]["seconds"] / 60, 1),
        "steps": saved.step if saved else 0,
        "evaluations": evaluations,
        "ended_with": code,
        "warm_up": 0.1,
        "minutes_with_other_work": len(disturbed),
        "trends": {name: trend(points, begin=0.1 * seconds) for name, points in series.items()},
        "series": {
            name: [[round(x, 1), round(y, 4)] for x, y in points[:: len(points) // 400 + 1]]
            for name, points in series.items()
        },
        "disturbed_step_seconds": [[round(x, 1), round(y, 4)] for x, y in disturbed],
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the four of them against the hours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(14, 2.8), layout="constrained")
    for panel, (name, heading) in zip(panels, PANELS.items(), strict=True):
        x, y = np.array(found["series"][name]).reshape(-1, 2).T
        panel.plot(x / 3600, y, linewidth=1)
        highest = max(y, default=1.0)
        if name == "step_seconds" and found["disturbed_step_seconds"]:
            x, y = np.array(found["disturbed_step_seconds"]).T
            panel.plot(x / 3600, y, ".", color="0.8")
            highest = max(highest, *y)
        panel.set_ylim(0, 1.15 * highest)
        growth = found["trends"][name].get("growth_per_hour")
        text = f"{heading}: {growth:+.2%} an hour" if growth is not None else heading
        panel.set_title(text, fontsize=10)
        panel.set_xlabel("hours")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Train, watch, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--recipe", default="recipes/cifar10_cpu_multicrop_s2r2.yaml")
    parser.add_argument("--evaluate_every", type=float, default=3.0, help="epochs")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--chart", type=Path, help="PNG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments, Path(folder))
    print(
        json.dumps(
            {k: v for k, v in found.items() if "series" not in k and "disturbed_" not in k},
            indent=1,
        )
    )
    if arguments.out:
        write(found, arguments.out)
    if arguments.chart:
        draw(found, arguments.chart)


if __name__ == "__main__":
    main()
