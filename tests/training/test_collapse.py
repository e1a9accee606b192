"""A run is told of collapse once, and only when it lasts."""

import pytest

from training.collapse import RECORDS, Collapse

FINE = {"batch_ap": 0.5, "chance": 0.05, "variance": 0.5, "dimension": 20.0}


def said(*figures: dict[str, float], after: int = 0) -> list[str]:
    watched = Collapse(after=after)
    lines = [watched.update(step, **each) for step, each in enumerate(figures)]
    return [line for line in lines if line is not None]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"variance": 1e-5}, "nearly one point (variance 1e-05)"),
        ({"dimension": 1.2}, "on a line (about 1.2 dimensions)"),
        ({"batch_ap": 0.06}, "no better than by chance (AP 0.060, 0.050)"),
    ],
)
def test_it_is_told_once_for_each_time_it_lasts(figures: dict[str, float], words: str) -> None:
    bad = FINE | figures
    (line,) = said(*[bad] * 20)
    assert words in line and "Likely causes: " in line
    assert len(said(*[bad] * RECORDS, FINE, *[bad] * RECORDS)) == 2
    assert said(*[bad] * (RECORDS - 1), FINE, *[bad] * (RECORDS - 1)) == []
    assert said(*[bad] * 20, after=16) == []


def test_a_healthy_run_hears_nothing() -> None:
    assert said(*[FINE] * 50) == []
