"""Seconds and memory of every objective beside its peers: forward + backward of one batch.

    python -m benchmarks.objectives [--out FILE.json] [--sizes 768 4096 16384] [--rounds 1]
    python -m benchmarks.objectives --scale [--out FILE.json]    how both grow as N doubles

Every measurement has a process of its own, and in each round all take their turn, so that a busy
minute of the machine hits all. "Extra" is the peak of resident memory above what the process
held before the step: embeddings and libraries are not in it. What would not fit into the memory
that is free is left out, with the estimate. The machine should be otherwise idle.

Peers, and what was written to measure them: objective_peers.py.
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
from rich.console import Console
from rich.table import Table

from benchmarks.objective_peers import PEERS, Loss, bytes_needed
from benchmarks.record import write
from model import objective
from model.objective import Objective
from training.surroundings import surroundings

V, D = 4, 128
SIZES = [768, 4096, 16384]
SCALE = [1024, 2048, 4096, 8192, 16384]
SECONDS = 1.0  # of repeats in one process, but 3 repeats or more
LONG = 3.0  # seconds; such a step is taken once and needs no warming


def ours() -> dict[str, Callable[[], Loss]]:
    """Return all objectives of the import list."""
    return {
        name: each
        for name, each in vars(objective).items()
        if inspect.isclass(each) and issubclass(each, Objective) and not inspect.isabstract(each)
    }


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
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
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


def measure_all(
    names: list[str], sizes: list[int], rounds: int, console: Console
) -> list[dict[str, Any]]:
    """Measure these objectives at every size, in turn, `rounds` times; slow ones once."""
    rows = [
        {"objective": name, "N": N, "V": V, "D": D, "seconds": [], "extra_bytes": 0}
        for N in sizes
        for name in names
    ]
    for turn in range(rounds):
        for row in rows:
            name, N = row["objective"], row["N"]
            needed, free = bytes_needed(name, N, V), available_bytes()
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


def growth(rows: list[dict[str, Any]]) -> Table:
    """Return seconds and memory by size, and by how much each doubling of N multiplies them."""
    result = Table(title=f"growth with N, V={V}, D={D}, float32", title_justify="left")
    for heading in ("objective", "N"):
        result.add_column(heading)
    for heading in ("min s", "× at 2N", "extra MiB", "× at 2N"):
        result.add_column(heading, justify="right")
    for name in dict.fromkeys(row["objective"] for row in rows):
        found = [row for row in rows if row["objective"] == name and "skipped" not in row]
        for row, larger in zip(found, [*found[1:], None], strict=True):
            cells = [name, str(row["N"])]
            for key, cell in (
                ("seconds_min", f"{row['seconds_min']:.4f}"),
                ("extra_bytes", f"{row['extra_bytes'] / 2**20:,.1f}"),
            ):
                # Below a page nothing is seen: no ratio.
                grown = larger and row[key] and f"{larger[key] / row[key]:.2f}"
                cells += [cell, grown or ""]
            result.add_row(*cells, end_section=larger is None)
    return result


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description="Seconds and memory of every objective", allow_abbrev=False
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="N = V · A")
    parser.add_argument("--rounds", type=int, default=1, help="processes per measurement")
    parser.add_argument("--scale", action="store_true", help="ours alone, doubling N")
    parser.add_argument("--only", nargs="+", help="names of objectives or peers, instead of all")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one measurement
    arguments = parser.parse_args()
    sizes = arguments.sizes or (SCALE if arguments.scale else SIZES)
    if arguments.one:
        print(json.dumps(measure(arguments.one, sizes[0])))
        return
    known = [*ours()] if arguments.scale else [*ours(), *PEERS]
    unknown = set(arguments.only or ()) - set(known)
    if unknown:
        parser.error(f"--only found {', '.join(unknown)}; expected some of {', '.join(known)}.")
    console = Console()
    report = surroundings("torch", "pytorch-metric-learning", "lightly", "diffsort", "numpy")
    report["rows"] = measure_all(arguments.only or known, sizes, arguments.rounds, console)
    console.print((growth if arguments.scale else table)(report["rows"]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write(report, arguments.out)
        console.print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
