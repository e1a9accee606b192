"""Tables of what Smooth-AP's kernels compile to, from what `benchmarks.kernels` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.gpu.tables import table

CompiledRows = Sequence[Mapping[str, Any]]
GPUS = {"8.0": "A100 (8.0)", "9.0": "H100, H200 (9.0)", "10.0": "B200 (10.0)"}


def tables(record: Mapping[str, Mapping[str, CompiledRows]]) -> str:
    """Return what was and what is, for four views of 128 dimensions, then the worst of all."""
    versions = sorted(record["now"])
    return (
        f"Four views of 128 dimensions at temperature 0.05, by Triton {' / '.join(versions)}; "
        "before, float32 was three products in TF32:\n\n"
        + _before_and_now(record, versions)
        + "\n\nThe worst of all numbers of positives and forms of the sigmoid, and of a gradient "
        "from one side or both, by the terms of a number (one: bf16, two or three: float32):\n\n"
        + _worst(record["now"], versions)
    )


def _before_and_now(record: Mapping[str, Mapping[str, CompiledRows]], versions: list[str]) -> str:
    what = ["tile, warps", "registers", "spilled bytes", "KiB", "programs", "instructions"]
    rows = []
    for capability, gpu in GPUS.items():
        for precision, kernel in product(("float32", "bf16"), ("compare", "pull")):
            wanted = (capability, precision, kernel, 4, 128, 0.05)
            for when in ("before", "now"):
                found = [_only(record[when][version], wanted) for version in versions]
                rows.append(
                    [
                        *([gpu, f"{precision}, `{kernel}`"] if when == "before" else ["", ""]),
                        when,
                        _each(found, lambda row: f"{_tile(row)}, {row['warps']}"),
                        _each(found, lambda row: row["registers"]),
                        _each(found, lambda row: row["stack_bytes"]),
                        _each(found, lambda row: f"{row['shared_kib']:.0f}"),
                        _each(found, lambda row: row["programs"]),
                        _each(found, _instructions),
                    ]
                )
    return table(["GPU", "kernel", "", *what], rows)


def _only(rows: CompiledRows, wanted: tuple[Any, ...]) -> Mapping[str, Any]:
    names = ("capability", "precision", "kernel", "V", "D", "temperature")
    return next(row for row in rows if tuple(row[name] for name in names) == wanted)


def _tile(row: Mapping[str, Any]) -> str:
    return f"{row['tile'][0]}×{row['tile'][1]}"


def _instructions(row: Mapping[str, Any]) -> str:
    """Return how many instructions of the loop a pair of rows takes, by its 32 lanes."""
    if not row["tensor_instructions"]:
        return "trap"
    rows, others, _ = row["tile"]
    return f"{row['loop_instructions'] * 32 * row['warps'] / (rows * others):.0f}"


def _each(rows: CompiledRows, cell: Callable[[Mapping[str, Any]], Any]) -> str:
    """Return what the versions of Triton make of it, once if it is the same."""
    cells = [str(cell(row)) for row in rows]
    return " / ".join(cells if len({*cells}) > 1 else cells[:1])


def _worst(now: Mapping[str, CompiledRows], versions: list[str]) -> str:
    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        kernel = row["kernel"].partition(",")[0]
        cut = f"{_tile(row)}, {row['tile'][2]}, {row['warps']}"
        return float(row["capability"]), kernel, row["terms"], row["D"], cut

    found: dict[tuple[Any, ...], list[list[Mapping[str, Any]]]] = {}
    for i, version in enumerate(versions):
        for row in now[version]:
            found.setdefault(key(row), [[] for _ in versions])[i].append(row)
    rows = []
    for (capability, kernel, terms, D, cut), of in sorted(found.items()):
        positives = sorted({row["positives"] for row in of[0]})
        worst = [
            {
                **{n: max(row[n] for row in some) for n in ("registers", "stack_bytes")},
                "shared_kib": max(row["shared_kib"] for row in some),
                "programs": min(row["programs"] for row in some),
            }
            for some in of
        ]
        rows.append(
            [
                GPUS[str(capability)],
                f"`{kernel}`",
                *(str(each) for each in (terms, D, cut)),
                ", ".join(map(str, positives)),
                _each(worst, lambda row: row["registers"]),
                _each(worst, lambda row: row["stack_bytes"]),
                _each(worst, lambda row: f"{row['shared_kib']:.0f}"),
                _each(worst, lambda row: row["programs"]),
            ]
        )
    heading = ["GPU", "kernel", "terms", "D", "tile, depth, warps", "positives", "registers"]
    return table([*heading, "spilled bytes", "KiB", "programs"], rows)
