"""The short form of `python -m tests.torture` and of `python -m tests.fuzz`."""

import random
from pathlib import Path

import pytest

from tests import fuzz
from tests.torture import TortureCase, torture


@pytest.mark.parametrize(
    "case", [TortureCase("swav", 1), pytest.param(TortureCase("moco", 2), marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    case: TortureCase, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    done = torture([case], kills=2, steps=16, folder=tmp_path, seed=seed, minutes=1)
    assert sum(done["cases"][0]["kills"].values()) > 0, seed


def test_damaged_files_are_refused_in_one_line_and_do_no_harm(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    done = fuzz.fuzz(40, seed, tmp_path.resolve())
    assert done["wrong"] == [], seed
