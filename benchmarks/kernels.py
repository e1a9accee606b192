"""What Smooth-AP's kernels compile to, on a machine that has no GPU: registers, spills, memory.

    python -m benchmarks.kernels [--add]

Every launch of a step is recorded, with fake tensors of its real size, and compiled with the very
arguments that a GPU would get; Triton brings the assembler. What is read of the machine code are
registers, bytes of the stack (spilled values live there), shared memory and the instructions of the
innermost loop that meets all rows. From registers and shared memory follows how many programs a
multiprocessor runs at once. How long they take, only a GPU can tell.

Results go to benchmarks/results/kernels-compiled.json, with --add beside those of another version
of Triton, and from there into docs/kernels.md by `python -m benchmarks.report`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
import triton.knobs
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget

from model.kernel import fused_smooth_ap
from model.kernel.tile_choice import Precision

RESULTS = Path(__file__).parent / "results" / "kernels-compiled.json"
N = 32_768
CAPABILITIES = ((8, 0), (9, 0), (10, 0))
# KiB of shared memory: of a multiprocessor, and at most of a program. NVIDIA, "CUDA C++ Programming
# Guide", compute capabilities: 1 KiB of each program is the system's.
SHARED_KIB = {(8, 0): (164, 163), (8, 6): (100, 99), (8, 9): (100, 99), (9, 0): (228, 227)}
SHARED_KIB |= {(10, 0): (228, 227), (12, 0): (100, 99)}
REGISTERS = 65_536


class KernelCase(NamedTuple):
    """A call of `smooth_ap` whose launches are compiled."""

    precision: Precision
    temperature: float
    V: int
    D: int
    gallery_views: int
    """Fewer than V: small crops ask, and each side's gradient has its own launch."""


class Launch(NamedTuple):
    """A launch as `_launch` makes it."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def name(self) -> str:
        """Return the kernel's name, with the side that it is for if it is for one alone."""
        asks = [s for s in ("LEFT", "RIGHT") if self.options.get(f"{s}_ASKS")]
        names = {"LEFT": "pull, queries", "RIGHT": "pull, gallery"}
        return names[asks[0]] if len(asks) == 1 else self.kernel.__name__


class MachineCode(NamedTuple):
    """What the assembler says of a kernel."""

    registers: int
    stack_bytes: int
    """Spilled values live there; a kernel without spills has none."""
    shared_kib: float
    loop_instructions: int
    """Of the longest loop: a tile of scores, and what is made of it."""
    loop_spills: int
    """Loads and stores of the stack in that loop."""
    tensor_instructions: int
    """In all of it; a kernel without any is a trap."""

    def programs(self, capability: tuple[int, int], warps: int) -> int:
        """Return how many a multiprocessor runs at once; 0: it cannot be launched."""
        of_all, of_one = SHARED_KIB[capability]
        if self.shared_kib > of_one:
            return 0
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * 32 * warps)
        return min(by_registers, int(of_all // (self.shared_kib + 1)))


def launches(case: KernelCase, capability: tuple[int, int]) -> list[Launch]:
    """Return what a step launches on such a GPU, each specialisation once."""
    found: dict[str, Launch] = {}

    def record(kernel: Any, _grid: Any, arguments: tuple[Any, ...], options: Any) -> None:
        as_types = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in arguments)
        launch = Launch(kernel, as_types, options)
        found.setdefault(repr((kernel.__name__, sorted(options.items()))), launch)

    with (
        patch.object(fused_smooth_ap, "_start", record),
        patch.object(fused_smooth_ap, "capability_of", lambda _device: capability),
        FakeTensorMode(),
    ):
        z_VAD = torch.empty(case.V, N // case.V, case.D)
        fused_smooth_ap.smooth_ap(
            z_VAD,
            case.gallery_views,
            slice(0, N // case.V),
            temperature=case.temperature,
            precision=case.precision,
            grad=True,
        )
    return list(found.values())


@contextmanager
def gpu_that_is_not_here(capability: tuple[int, int]) -> Iterator[None]:
    """Let Triton believe in a GPU of this capability."""
    number = 10 * capability[0] + capability[1]
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", number, 32),
        get_current_device=lambda: number,  # compiled kernels are kept by device
        get_current_stream=lambda _device: 0,
        get_active_torch_device=lambda: torch.device("cpu"),
    )
    with patch.object(triton.runtime.driver, "_active", driver):
        yield


def machine_code(launch: Launch, capability: tuple[int, int]) -> MachineCode:
    """Compile a launch and read its machine code."""
    with gpu_that_is_not_here(capability):
        compiled = launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        resources, code = (
            subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True)
            for what in ("-res-usage", "-sass")
        )
    used = re.search(r"REG:(\d+) STACK:(\d+)", resources.stdout)
    assert used, resources.stdout
    loop = longest_loop(code.stdout)
    products = len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", code.stdout))
    shared_kib = round(compiled.metadata.shared / 1024, 1)
    spills = sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in loop)
    return MachineCode(int(used[1]), int(used[2]), shared_kib, len(loop), spills, products)


def longest_loop(sass: str) -> list[str]:
    """Return the instructions between the jump back that is farthest and where it goes."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
    longest: list[str] = []
    for at, text in lines:
        jump = re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(at, 16):
            body = [t for a, t in lines if int(jump[1], 16) <= int(a, 16) <= int(at, 16)]
            longest = max(longest, body, key=len)
    return longest


def compiled(case: KernelCase, capability: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield a row of results for each kernel that a step launches."""
    for launch in launches(case, capability):
        options = launch.options
        code = machine_code(launch, capability)
        yield {
            "capability": f"{capability[0]}.{capability[1]}",
            "precision": case.precision,
            "temperature": case.temperature,
            "V": case.V,
            "D": case.D,
            "gallery_views": case.gallery_views,
            "kernel": launch.name(),
            "positives": options.get("BLOCK_K", options["K"]),
            "first": options.get("FIRST", True),
            "terms": options["TERMS"],
            "sigmoid": options["SIGMOID"],
            "tile": [options[name] for name in ("ROWS", "OTHERS", "DEPTH")],
            "warps": options["num_warps"],
            "stages": options["num_stages"],
            **code._asdict(),
            "programs": code.programs(capability, options["num_warps"]),
        }


# V, D, gallery views. Eight positives are the most that a program compares with at once.
SHAPES = [(4, 128, 4), (8, 128, 8), (9, 128, 9), (9, 64, 9), (9, 256, 9), (9, 512, 9)]
SHAPES += [(8, 128, 2), (9, 128, 8), (9, 512, 8), (16, 128, 16), (4, 256, 4)]
FORMS: list[tuple[Precision, float]] = [("float32", 0.05), ("float32", 0.01), ("bf16", 0.05)]


def specialisation(row: Mapping[str, Any]) -> str:
    """Return what two rows have in common that are of the same machine code."""
    names = ("capability", "D", "kernel", "positives", "first", "terms", "sigmoid", "tile")
    return str([row[name] for name in names])


def rows_of(capabilities: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Yield the row of each specialisation once."""
    seen = set()
    for capability, form, shape in product(capabilities, FORMS, SHAPES):
        for row in compiled(KernelCase(*form, *shape), capability):
            if specialisation(row) not in seen:
                seen.add(specialisation(row))
                yield row


def main() -> None:
    """Compile all and write what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--add", action="store_true", help="keep what other Tritons compiled")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(RESULTS.read_text())
    rows = []
    for row in rows_of(CAPABILITIES):
        rows.append(row)
        print(json.dumps(row), flush=True)
    record["now"] = (record["now"] if arguments.add else {}) | {triton.__version__: rows}
    write(record)


def write(record: dict[str, Any]) -> None:
    """Write {before or now: {version of Triton: rows}}, a row a line."""
    parts = []
    for when, versions in record.items():
        tables = []
        for version, rows in versions.items():
            lines = ",\n".join(json.dumps(row) for row in rows)
            tables.append(f"{json.dumps(version)}: [\n{lines}\n]")
        parts.append(f"{json.dumps(when)}: {{\n" + ",\n".join(tables) + "\n}")
    RESULTS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
