"""Seconds and memory of every objective beside its peers: forward + backward of one batch.

    python -m benchmarks.objectives [--out FILE.json] [--sizes 256 768 4096] [--rounds 3]

Every measurement has a process of its own, and in each round all take their turn, so that a busy
minute of the machine hits all alike. "Extra" is the peak of resident memory above what the process
held before the step: embeddings and libraries are not in it. What would not fit into the memory
that is free is left out, with the estimate. The machine should be otherwise idle.

The published Smooth-AP is written down from its formula (methods.md, 5.1), after
github.com/Andrew-Brown1/Smooth_AP at 59927ec: every comparison of two views for every query.
Peers: pytorch-metric-learning (PML). Its SmoothAPLoss (2.9.0) mixes up V and A when it collects the
positives, so its value is right at V = A only; what it computes costs the same.
"""

import argparse
import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from model import objective
from model.objective import Objective
from tools.surroundings import surroundings

V, D = 4, 128
SECONDS = 2.0  # of repeats in one process, but 3 repeats or more
LONG = 15.0  # seconds; such a step is taken once and needs no warming
Loss = Callable[[Tensor], Tensor]


def published_smooth_ap(z_VAD: Tensor) -> Tensor:
    """The O(N³) form: a query is its own positive, exponents are clamped to ±50."""

    def step(difference: Tensor) -> Tensor:
        return 1 / (1 + (-difference / 0.05).clamp(-50, 50).exp())

    V, A, _ = z_VAD.shape
    N = V * A
    z_AVD = F.normalize(z_VAD, dim=-1).transpose(0, 1)
    z_ND = z_AVD.flatten(0, 1)
    S_QG, S_AVV = z_ND @ z_ND.T, z_AVD @ z_AVD.mT
    above_QGG = step(S_QG[:, None, :].repeat(1, N, 1) - S_QG[:, :, None]) * (1 - torch.eye(N))
    position_QG = 1 + above_QGG.sum(-1)
    above_AVVV = step(S_AVV[..., None, :] - S_AVV[..., None]) * (1 - torch.eye(V))
    among_positives_AVV = 1 + above_AVVV.sum(-1)
    position_AVV = (
        position_QG.unflatten(0, (A, V)).unflatten(2, (A, V)).diagonal(0, 0, 2).movedim(-1, 0)
    )
    return 1 - (among_positives_AVV / position_AVV).mean()


def ours() -> dict[str, Callable[[], Loss]]:
    """Return all objectives of the import list."""
    return {
        name: each
        for name, each in vars(objective).items()
        if inspect.isclass(each) and issubclass(each, Objective) and not inspect.isabstract(each)
    }


def metric_learning(name: str, temperature: float) -> Loss:
    """Return a loss of pytorch-metric-learning as a function of z [V, A, D]."""
    from pytorch_metric_learning import losses

    loss = getattr(losses, name)(temperature=temperature)

    def of(z_VAD: Tensor) -> Tensor:
        V, A, _ = z_VAD.shape
        return loss(z_VAD.transpose(0, 1).flatten(0, 1), torch.arange(A).repeat_interleave(V))

    return of


PEERS: dict[str, Callable[[], Loss]] = {
    "published Smooth-AP": lambda: published_smooth_ap,
    "PML SmoothAPLoss": lambda: metric_learning("SmoothAPLoss", 0.05),
    "PML NTXentLoss": lambda: metric_learning("NTXentLoss", 0.1),
}


def bytes_needed(name: str, N: int) -> float:
    """Estimate the peak of one step: float32 tensors of the largest shape, so many at once."""
    pairs_of_pairs = N * (V - 1) * N * (N - V)
    return {
        "published Smooth-AP": 8.0 * 4 * N**3,
        "PML SmoothAPLoss": 6.0 * 4 * N**3,
        "PML NTXentLoss": 5.0 * 4 * pairs_of_pairs,
    }.get(name, 4.0 * N**2)  # ours are to stay below N×N; a new one may need a line here


def status_bytes(key: str) -> int:
    """Return a size of this process, such as VmRSS or its high-water mark VmHWM."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure(name: str, N: int) -> dict[str, Any]:
    """Time one objective in this process, and take the peak of its first full step."""
    loss_of = ({**ours(), **PEERS})[name]()
    generator = torch.Generator().manual_seed(0)

    def step(A: int) -> tuple[float, float]:
        z_VAD = torch.randn(1, A, D, generator=generator) + torch.randn(
            V, A, D, generator=generator
        )
        z_VAD.requires_grad_()
        start = time.perf_counter()
        loss = loss_of(z_VAD)
        loss.backward()
        return time.perf_counter() - start, loss.item()

    for _ in range(3):
        step(16)  # threads, kernels and the allocator's first pages
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    first, loss = step(N // V)
    extra = status_bytes("VmHWM") - before
    seconds = [first] if first > LONG else []
    while sum(seconds) < SECONDS or (first < LONG and len(seconds) < 3):
        seconds.append(step(N // V)[0])
    return {"seconds": seconds, "extra_bytes": extra, "loss": loss}


def available_bytes() -> int:
    """Return what the machine can give without swapping."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return int(found[1]) * 1024


def measure_all(sizes: list[int], rounds: int, console: Console) -> list[dict[str, Any]]:
    """Measure every objective at every size, in turn, `rounds` times; slow ones once."""
    rows = [
        {"objective": name, "N": N, "V": V, "D": D, "seconds": [], "extra_bytes": 0}
        for N in sizes
        for name in [*ours(), *PEERS]
    ]
    for turn in range(rounds):
        for row in rows:
            name, N = row["objective"], row["N"]
            needed, free = bytes_needed(name, N), available_bytes()
            if needed > 0.9 * free:
                row["skipped"] = f"needs {needed / 2**30:,.0f} GiB, {free / 2**30:.0f} GiB are free"
            if "skipped" in row or (row["seconds"] and row["seconds"][0] > LONG):
                continue
            console.print(f"round {turn + 1} of {rounds}: {name}, N={N}", style="dim")
            command = [
                sys.executable,
                "-m",
                "benchmarks.objectives",
                "--one",
                name,
                "--sizes",
                str(N),
            ]
            found = subprocess.run(command, capture_output=True, text=True)
            if found.returncode:
                row["skipped"] = f"stopped with code {found.returncode}: {found.stderr[-200:]}"
                continue
            result = json.loads(found.stdout)
            row["seconds"] += result["seconds"]
            row["extra_bytes"] = max(row["extra_bytes"], result["extra_bytes"])
            row["loss"] = result["loss"]
    return [summary(row) for row in rows]


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its repeats summed up, or with the reason why there are none."""
    seconds = row.pop("seconds")
    if "skipped" in row:
        row.pop("extra_bytes")
        return row
    times = {"seconds_min": min(seconds), "seconds_median": median(seconds)}
    return {**row, **times, "repeats": len(seconds)}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the figures as people read them."""
    result = Table(title=f"forward + backward, V={V}, D={D}, float32", title_justify="left")
    for heading in ("N", "objective"):
        result.add_column(heading)
    for heading in ("min s", "median s", "repeats", "extra MiB"):
        result.add_column(heading, justify="right")
    for i, row in enumerate(rows):
        cells = [str(row["N"]), row["objective"]]
        if "skipped" in row:
            cells += ["", "", "", row["skipped"]]
        else:
            cells += [f"{row['seconds_min']:.4f}", f"{row['seconds_median']:.4f}"]
            cells += [str(row["repeats"]), f"{row['extra_bytes'] / 2**20:,.1f}"]
        last_of_size = i + 1 == len(rows) or rows[i + 1]["N"] != row["N"]
        result.add_row(*cells, end_section=last_of_size)
    return result


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description="Seconds and memory of every objective", allow_abbrev=False
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 768, 4096], help="N = V · A")
    parser.add_argument("--rounds", type=int, default=3, help="processes per measurement")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one measurement
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.sizes[0])))
        return
    console = Console()
    report = surroundings("torch", "pytorch-metric-learning", "numpy")
    report["rows"] = measure_all(arguments.sizes, arguments.rounds, console)
    console.print(table(report["rows"]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
