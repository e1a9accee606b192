"""Milliseconds, memory and products a second of fused Smooth-AP on a GPU, beside PyTorch's form.

    python -m benchmarks.kernel --out FILE.json [--sizes 8192 32768 131072] [--views 4 8]
    python -m benchmarks.kernel --interpret     without a GPU: the kernels' tests, interpreted

Value and gradient of unit embeddings of 128 dimensions: what the objective does in a training step.
"Extra" is the peak of allocated memory above what was there before, embeddings included. TFLOP/s
count 6 N² D: the scores, and the gradient by both sides of them. The forms are the kernel with
float32 (three products in TF32) and bf16, and `MeanOverQueries`, the definition, in chunks.

Then each of the two kernels alone, in tiles of other sizes, at the size in the middle.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from model.objective import MeanOverQueries, SmoothAP
from tools.surroundings import surroundings

D = 128
SECONDS = 2.0  # of repeats for each figure, but 3 repeats or more
LONG = 5.0  # seconds; such a step is taken once more after the first and no more
PRECISIONS: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")
Step = Callable[[], Any]


def unit_embeddings(V: int, N: int) -> Tensor:
    """Return views of N / V samples that are neither told apart perfectly nor not at all."""
    draw = torch.Generator("cuda").manual_seed(0)
    sample_1AD = torch.randn(1, N // V, D, device="cuda", generator=draw)
    noise_VAD = torch.randn(V, N // V, D, device="cuda", generator=draw)
    return F.normalize(sample_1AD + 1.5 * noise_VAD, dim=-1)


def timed(step: Step) -> list[float]:
    """Return milliseconds of each repeat by the GPU's own clock, once the step is warm."""
    found: list[float] = []
    step()
    while len(found) < 3 or sum(found) < 1000 * SECONDS:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop))
        if found[0] > 1000 * LONG:
            break
    return found


def extra_bytes(step: Step) -> int:
    """Return the peak of allocated memory during a step above what there was before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(V: int, N: int) -> list[dict[str, Any]]:
    """Return a row for each form: its figures, and its distance from the definition."""
    z_VAD = unit_embeddings(V, N)
    everyone = slice(0, N // V)

    def definition() -> tuple[Tensor, Tensor | None]:
        return MeanOverQueries.value_and_gradient(SmoothAP(), z_VAD, V, everyone, grad=True)

    steps: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
        f"kernel {precision}": (
            lambda precision=precision: SmoothAP(precision=precision).value_and_gradient(
                z_VAD, V, everyone, grad=True
            )
        )
        for precision in PRECISIONS
    }
    steps["PyTorch float32"] = definition
    expected, gradient_VAD = definition()
    assert gradient_VAD is not None
    rows = []
    for name, step in steps.items():
        loss, found_VAD = step()
        assert found_VAD is not None
        difference = (found_VAD - gradient_VAD).norm() / gradient_VAD.norm()
        del found_VAD
        times = timed(step)
        rows.append(
            {
                "N": N,
                "V": V,
                "form": name,
                "ms_median": median(times),
                "ms_min": min(times),
                "repeats": len(times),
                "extra_bytes": extra_bytes(step),
                "tflops": 6 * N**2 * D / median(times) / 1e9,
                "loss": loss.item(),
                "loss_difference": (loss - expected).item(),
                "gradient_difference": difference.item(),
            }
        )
    return rows


def sweep(V: int, N: int) -> list[dict[str, Any]]:
    """Return milliseconds of each kernel in tiles of several sizes, or why one does not run."""
    from model.kernel.smooth_ap import Side, Tiles, compare, pull, tiles_for

    z_ND = unit_embeddings(V, N).flatten(0, 1)
    sample_N = torch.arange(N // V, dtype=torch.int32, device="cuda").repeat(V)
    key_KN = torch.rand(V - 1, N, device="cuda").mul_(20).exp2_()
    scale = 1 / (SmoothAP().temperature * torch.tensor(2.0).log().item())
    rows = []
    for precision, name in product(PRECISIONS, ("compare", "pull")):
        multiplied_ND = z_ND.bfloat16() if precision == "bf16" else z_ND
        side = Side(multiplied_ND, sample_N, key_KN, key_KN)
        candidates = [tiles_for(z_ND.device, precision)[name == "pull"]]
        for size, others, stages in product((64, 128), (32, 64, 128), (2, 3)):
            candidates.append(Tiles(size, others, 128, size // 16, stages))
        for tiles in dict.fromkeys(candidates):

            def step(name: str = name, side: Side = side, tiles: Tiles = tiles) -> None:
                if name == "compare":
                    compare(side, side, scale, grad=True, tiles=tiles)
                else:
                    pull(side, side, scale, tiles=tiles)

            row = {"N": N, "V": V, "kernel": name, "precision": precision, **tiles._asdict()}
            row["chosen"] = tiles == candidates[0]
            try:
                row["ms_median"] = median(timed(step))
            except Exception as error:  # such as shared memory that a tile does not fit
                row["skipped"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the forms' figures as people read them."""
    result = Table(title=f"value and gradient, D={D}", title_justify="left")
    for heading in ("N", "V", "form"):
        result.add_column(heading)
    for heading in ("median ms", "extra MiB", "TFLOP/s", "gradient differs by"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            *(str(row[key]) for key in ("N", "V", "form")),
            f"{row['ms_median']:.2f}",
            f"{row['extra_bytes'] / 2**20:,.1f}",
            f"{row['tflops']:.1f}",
            f"{row['gradient_difference']:.1e}",
        )
    return result


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description="Fused Smooth-AP on a GPU, beside PyTorch's form", allow_abbrev=False
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 32768, 131072], help="N")
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8], help="V")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--interpret", action="store_true", help="the kernels' tests, on the CPU")
    arguments = parser.parse_args()
    if arguments.interpret:
        tests = "tests/model/test_fused_smooth_ap.py"
        sys.exit(subprocess.call([sys.executable, "-m", "pytest", tests, "--numprocesses=0"]))
    if not torch.cuda.is_available():
        print(
            "found no NVIDIA GPU, which this measures; --interpret tests the kernels without one.",
            file=sys.stderr,
        )
        sys.exit(2)
    console = Console()
    report = surroundings("torch", "triton")
    report["gpu"] = torch.cuda.get_device_name()
    report["rows"] = []
    for V, N in product(arguments.views, arguments.sizes):
        console.print(f"N={N}, V={V}", style="dim")
        report["rows"] += measure(V, N)
    console.print(table(report["rows"]))
    middle = sorted(arguments.sizes)[len(arguments.sizes) // 2]
    console.print(f"tiles at N={middle}, V={arguments.views[0]}", style="dim")
    report["tiles"] = sweep(arguments.views[0], middle)
    for row in sorted(report["tiles"], key=lambda row: row.get("ms_median", torch.inf)):
        console.print_json(data=row, indent=None)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
