"""What a launcher asked for and started, and whether it still lives."""

import os

import pytest

from training import launch


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("python accelerate launch --cpu --num_processes 2 train.py --steps 3", 2),
        ("python accelerate launch --cpu --num_processes=4 train.py", 4),
        ("python accelerate launch train.py --views.count 8", 1),
        ("python accelerate launch train.py --num_processes 3", 1),
        ("bash", 1),
        ("", 1),
    ],
)
def test_the_number_of_processes_is_read_from_the_launcher(
    words: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_command_line", lambda _: words.split())
    if asked == 1:
        launch.check_processes(1)
    else:
        with pytest.raises(ValueError, match=f"asked for {asked} processes but started one"):
            launch.check_processes(1)
        launch.check_processes(asked)


@pytest.mark.parametrize(
    ("told", "parent", "words", "ends"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", 1, "/sbin/init", True),
        ("TORCHELASTIC_RUN_ID", 1, "/sbin/init", True),
        ("TORCHELASTIC_RUN_ID", 1, "python accelerate launch", False),
        ("ACCELERATE_DYNAMO_BACKEND", 7, "bash", False),
        ("HOME", 1, "/sbin/init", False),
    ],
)
def test_a_process_whose_launcher_has_died_ends(
    told: str, parent: int, words: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(told, "no")
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(launch, "_command_line", lambda _: words.split())
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda _: None)  # pytest itself is to live on
    if ends:
        with pytest.raises(SystemExit, match=str(launch.AGAIN)):
            launch.follow_launcher()
    else:
        launch.follow_launcher()
