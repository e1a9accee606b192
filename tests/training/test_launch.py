"""Whether a launcher started a process, and still lives."""

import os

import pytest

from training import launch


@pytest.mark.parametrize(
    ("told", "parent", "words", "ends"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", 1, "/sbin/init", True),
        ("TORCHELASTIC_RUN_ID", 1, "/sbin/init", True),
        ("TORCHELASTIC_RUN_ID", 1, "python accelerate launch", False),
        ("TORCHELASTIC_RUN_ID", 7, "/lib/systemd/systemd --user", True),
        ("TORCHELASTIC_RUN_ID", 7, "bash systemd", False),
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
    monkeypatch.setattr(launch, "started_with", lambda _: words.split())
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda _: None)  # pytest itself is to live on
    if ends:
        with pytest.raises(SystemExit, match=str(launch.AGAIN)):
            launch.follow_launcher()
    else:
        launch.follow_launcher()


@pytest.mark.parametrize(
    ("words", "launched"),
    [
        ("/venv/bin/python /venv/bin/accelerate launch train.py", True),
        ("/venv/bin/python -u /venv/bin/accelerate-launch train.py", True),
        ("python -m accelerate.commands.launch --multi_gpu -m viewrank train", True),
        ("python -X dev -m torch.distributed.run train.py", True),
        ("python3.12 -u /x/site-packages/torch/distributed/launch.py train.py", True),
        ("/usr/bin/python3 /usr/bin/torchrun --nproc_per_node 2 train.py", True),
        ("/usr/bin/torchrun train.py", True),
        ("bash me/accelerate_jobs/job.sh", False),
        ("bash accelerate.sh", False),
        ("bash job.sh accelerate", False),
        ("sh /x/accelerate/commands/job.sh", False),
        ("bash -c python train.py --run runs/accelerate", False),
        ("torchrun/bin/fish", False),
        ("make accelerated", False),
        ("", False),
    ],
)
def test_a_launcher_is_known_by_its_program_alone(
    words: str, launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "started_with", lambda _: words.split())
    assert launch.launched() == launched
