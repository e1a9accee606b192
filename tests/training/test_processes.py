"""How many threads a process computes with."""

import pytest
import torch

from pipeline.tuning import default_threads
from training import processes


@pytest.mark.parametrize(
    ("given", "launched", "kept"), [("1", False, True), ("1", True, False), (None, False, False)]
)
def test_threads_are_a_person_s_own_or_all_cores(
    given: str | None, launched: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(processes, "launched", lambda: launched)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    processes.use_threads(2)
    assert asked == ([] if kept else [default_threads(2)])
