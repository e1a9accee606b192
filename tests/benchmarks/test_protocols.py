"""The benchmark of protocols asks for what tools.evaluate has, and shows what it says."""

import pytest

from benchmarks.protocols import CASES, RANDOM, ROWS, markdown
from evaluation.figures import more_is_better
from tools.compare.further_evaluations import flags


@pytest.mark.parametrize("case", CASES)
def test_tools_evaluate_knows_every_flag(case: str) -> None:
    words = " ".join(CASES[case][1])
    assert flags(words) == CASES[case][1]


def test_every_row_is_of_a_case_its_sets_and_a_known_figure() -> None:
    for case, where, figure in ROWS.values():
        assert where in CASES[case][0] and more_is_better(figure)


def test_the_table_has_a_column_for_each_encoder_and_seconds_once() -> None:
    frozen = {"sets": {"stl10": {"knn_top1": 0.25}}, "seconds": 12.3}
    encoders = {"b": {"frozen": frozen}, RANDOM: {"frozen": frozen}, "a": {}}
    lines = markdown({"timed": "b", "encoders": encoders}).splitlines()
    assert lines[0] == "| % | random | b | a | seconds of b |"
    assert "| k-NN, STL-10 | 25.0 | 25.0 |  | 12 |" in lines
    without = markdown({"timed": "b", "encoders": {"b": {"frozen": frozen}}})
    assert without.startswith("| % | b | seconds of b |")
    assert len(lines) == 2 + len(ROWS) and sum("12" in line for line in lines) == 1
