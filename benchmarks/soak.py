"""Hours of training, with checkpoints and evaluations: does anything grow?

    python -m benchmarks.soak --minutes 120 --out FILE.json --chart docs/soak.png

train.py runs as its users start it. Its memory, open files and threads are read from /proc every
few seconds, its step times from its own records. After a warm-up of a tenth of the time, nothing
may grow: the trend of each, by least squares, is given as a share of its mean per hour.
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

from tools.surroundings import surroundings
from training.monitor import records
from training.run import checkpoint

PERIOD = 5.0
PANELS = {
    "memory_mib": "memory (MiB)",
    "files": "open files",
    "threads": "threads",
    "step_seconds": "step (s)",
}


def sample(process: int) -> dict[str, float]:
    """Return what a process holds now: anonymous memory, open files, threads."""
    status = Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "memory_mib": int(fields["RssAnon"].split()[0]) / 1024,
        "files": float(len(os.listdir(f"/proc/{process}/fd"))),
        "threads": float(fields["Threads"]),
    }


def step_seconds(run: Path) -> list[tuple[float, float]]:
    """Return (training seconds, seconds of a step) between each two records."""
    steps = [record for record in records(run) if "loss" in record]
    return [
        (b["seconds"], (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]))
        for a, b in pairwise(steps)
    ]


def trend(points: Sequence[tuple[float, float]], *, begin: float) -> dict[str, float]:
    """Return mean, extremes and growth per hour as a share of the mean.

    Args:
        points: (seconds, value).
        begin: seconds before which nothing counts.
    """
    seconds, values = np.array([point for point in points if point[0] >= begin]).T
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
            samples.append({"seconds": time.monotonic() - begin} | sample(process.pid))
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=300)
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"train.py ended with {code}: {(folder / 'log').read_text()[-2000:]}")
    saved = checkpoint.newest(run)
    evaluations = sum("evaluation" in record for record in records(run))
    series = {
        name: [(s["seconds"], s[name]) for s in samples]
        for name in ("memory_mib", "files", "threads")
    }
    series["step_seconds"] = step_seconds(run)
    return {
        "command": f"python -m benchmarks.soak --minutes {arguments.minutes:g}",
        "surroundings": surroundings("torch", "nvidia-dali-cuda130", "accelerate"),
        "recipe": arguments.recipe,
        "minutes": round(samples[-1]["seconds"] / 60, 1),
        "steps": saved.step if saved else 0,
        "evaluations": evaluations,
        "warm_up": 0.1,
        "trends": {name: trend(points, begin=0.1 * seconds) for name, points in series.items()},
        "series": {
            name: [[round(x, 1), round(y, 4)] for x, y in points[:: -(-len(points) // 400)]]
            for name, points in series.items()
        },
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the four of them against the hours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(14, 2.8), layout="constrained")
    for panel, (name, heading) in zip(panels, PANELS.items(), strict=True):
        x, y = np.array(found["series"][name]).T
        panel.plot(x / 3600, y, linewidth=1)
        panel.set_ylim(0, 1.15 * y.max())
        growth = found["trends"][name]["growth_per_hour"]
        panel.set_title(f"{heading}: {growth:+.2%} an hour", fontsize=10)
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
    print(json.dumps({k: v for k, v in found.items() if k != "series"}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found) + "\n")
    if arguments.chart:
        draw(found, arguments.chart)


if __name__ == "__main__":
    main()
