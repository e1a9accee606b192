"""What Smooth-AP's kernels compile to for GPUs that are not here, held to docs/kernels.md."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import triton

from benchmarks.kernels import (
    CAPABILITIES,
    RESULTS,
    KernelCase,
    compiled,
    longest_loop,
    rows_of,
    specialisation,
)
from model.kernel.tile_choice import _RULES

RECORD = json.loads(RESULTS.read_text())["now"]
SPILLED = 80  # bytes a thread at most, of eight positives on an A100 or B200
MEASURED = ("registers", "stack_bytes", "shared_kib", "loop_instructions", "programs")


def assert_as_recorded(rows: list[dict[str, Any]]) -> None:
    """Hold rows to the same ones of this version of Triton, and to what any version must keep."""
    recorded = {specialisation(row): row for row in RECORD.get(triton.__version__, [])}
    assert rows
    for row in rows:
        # Triton 3.6 turned the float32 `pull` for 10.0 into a trap, without a word.
        assert row["tensor_instructions"] > 0, row
        assert row["programs"] * row["warps"] >= 4, row
        assert row["stack_bytes"] <= SPILLED, row
        expected = recorded.get(specialisation(row))
        if recorded:
            assert expected is not None, f"{row} is not in {RESULTS.name}"
            assert {n: row[n] for n in MEASURED} == {n: expected[n] for n in MEASURED}


def compile_case(case: KernelCase, capability: tuple[int, int]) -> list[dict[str, Any]]:
    return list(compiled(case, capability))


@pytest.mark.parametrize(
    ("capability", "temperature"),
    [
        ((9, 0), 0.05),
        pytest.param((8, 0), 0.05, marks=pytest.mark.slow),
        pytest.param((10, 0), 0.01, marks=pytest.mark.slow),
    ],
)
def test_float32_compiles_to_what_is_recorded(capability: tuple[int, int], temperature: float):
    case = KernelCase("float32", temperature, 4, 128, 4)
    # In a process of its own: tests of the interpreter leave Triton's language changed.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        rows = process.submit(compile_case, case, capability).result()
    assert [row["kernel"] for row in rows] == ["compare", "pull"]
    assert_as_recorded(rows)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_specialisation_compiles_to_what_is_recorded(capability: tuple[int, int]):
    assert_as_recorded(list(rows_of([capability])))


@pytest.mark.parametrize("version", RECORD)
def test_what_is_recorded_fits_two_programs_a_multiprocessor_without_spills(version: str):
    for row in RECORD[version]:
        assert row["tensor_instructions"] > 0 and row["stack_bytes"] <= SPILLED, row
        # Two programs of four warps, or one of eight.
        assert row["programs"] * row["warps"] >= (8 if row["capability"] != "10.0" else 4), row
        if row["capability"] == "9.0":
            assert row["loop_spills"] == 0, row  # a second round of positives spills after it
            if row["D"] <= 128 and row["terms"] <= 2 and row["temperature"] == 0.05:
                assert row["programs"] >= 2, row


@pytest.mark.parametrize("version", RECORD)
def test_every_rule_for_tiles_is_among_what_is_recorded(version: str):
    for capability in CAPABILITIES:
        used = {
            (row["kernel"].partition(",")[0], *row["tile"][:2], row["warps"])
            for row in RECORD[version]
            if row["capability"] == f"{capability[0]}.{capability[1]}"
        }
        rules = {
            (rule.kernel, rule.tiles.rows, rule.tiles.others, rule.tiles.warps)
            for rule in _RULES[capability[0]]
        }
        assert rules == used


def test_the_longest_loop_ends_with_the_jump_that_goes_back_farthest():
    sass = """
        /*0000*/ MOV R1, R2 ;
        /*0010*/ FADD R1, R1, R1 ;
        /*0020*/ FMUL R1, R1, R1 ;
        /*0030*/ @P0 BRA 0x20 ;
        /*0040*/ @P1 BRA `(.L_x_1) 0x10 ;
        /*0050*/ BRA 0x50 ;
        /*0060*/ BRA 0x90 ;
    """
    assert [each.split()[0] for each in longest_loop(sass)] == [
        "FADD",
        "FMUL",
        "@P0",
        "@P1",
    ]
