"""How processes meet and part, and how many threads one computes with."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.tuning import default_threads
from training import processes
from training.processes import Processes
from training.run.failure import Phase
from training.settings import parse


class Accelerator:
    """Meets no other process."""

    device = torch.device("cpu")

    def __init__(self, *, kwargs_handlers: list[Any], **_: Any) -> None:
        self.timeout = kwargs_handlers[0].timeout
        self.parted = False

    def end_training(self) -> None:
        self.parted = True


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a process that meets others asks for."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(processes, "Accelerator", Accelerator)
    monkeypatch.setattr(processes, "meet_again", lambda **given: asked.update(given))
    monkeypatch.setattr(processes, "use_threads", lambda ranks: asked.update(ranks=ranks))
    return asked


def meet(run: Path, *more: str) -> Processes:
    config = parse(["--shards", "x", "--run", str(run), "--steps", "5", *more]).config
    return Processes.meet(config, Phase())


@pytest.mark.parametrize("hang_seconds", ["0", "600"])
def test_others_are_waited_for_longer_than_anything_they_do(
    hang_seconds: str, met: dict[str, Any], tmp_path: Path
) -> None:
    found = meet(tmp_path, "--device", "cpu", "--hang_seconds", hang_seconds)
    assert found.accelerator.timeout == found.timeout == met["timeout"] == timedelta(days=1)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("told", "here"), [({}, 4), ({"LOCAL_WORLD_SIZE": "2"}, 2)])
def test_who_is_here_is_what_the_launcher_says_or_all(
    told: dict[str, str],
    here: int,
    met: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in {"WORLD_SIZE": "4", **told}.items():
        monkeypatch.setenv(name, value)
    assert meet(tmp_path, "--device", "cpu").on_this_machine == met["ranks"] == here
    assert processes.local_world_size() == here


def test_a_process_leaves_the_others_last(met: dict[str, Any], tmp_path: Path) -> None:
    found = meet(tmp_path, "--device", "cpu")
    accelerator: Any = found.accelerator
    seen = SimpleNamespace(parted=None)

    def last() -> None:
        seen.parted = accelerator.parted

    with pytest.raises(SystemExit) as end:
        found.leave(130, last=last)
    assert (end.value.code, seen.parted, accelerator.parted) == (130, False, True)


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
