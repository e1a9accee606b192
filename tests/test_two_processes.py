"""The program in two processes: launched, killed, continued, misused."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import BIN, TWO, arguments, finish, kill, losses, start, wait_for_step, weights
from training.monitor import records


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)  # five steps an epoch of 8, and two samples left out


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_train_and_continue_bit_for_bit(
    count: int, shard_set: ShardSet, tmp_path: Path
) -> None:
    """Three numbers have more than one sum: their order is the same in every step."""
    launch = ["launch", "--multi_gpu", "--num_processes", str(count), "--main_process_port", "0"]
    more = ["--steps", "12", "--batch_size", str(4 * count)]

    def command(run: Path) -> list[str]:
        return [str(BIN / "accelerate"), *launch, *arguments(shard_set, run, *more)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = finish(command(whole))
    assert code == 0, out + err
    assert f"4 images × 4 views × {count} ranks = {16 * count} embeddings ranked" in out
    assert "not known" not in " ".join(out.split())  # what a step needs of the memory
    process = start([*command(broken), "--checkpoint_every", "4"])
    wait_for_step(process, broken, 6)
    kill(process)
    code, out, err = finish(command(broken))
    assert code == 0, out + err
    assert losses(broken) == losses(whole)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(broken).items())


def test_a_launch_that_drops_processes_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    command = arguments(shard_set, tmp_path / "run", "--steps", "3")
    launch = ["launch", "--quiet", "--cpu", "--num_processes", "2"]
    code, _, err = finish([str(BIN / "accelerate"), *launch, *command])
    assert code != 0
    assert "asked for 2 processes by --num_processes but started one" in err
    assert not (tmp_path / "run").exists()


def test_no_process_outlives_a_launcher_that_is_killed_while_they_start(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    """Each is in a session of its own, and would wait for the launcher's store for an hour."""
    run = tmp_path / "run"
    launcher = start([str(BIN / "accelerate"), *TWO, *arguments(shard_set, run, "--steps", "999")])
    while not (children := started_for(run)):
        assert launcher.poll() is None
        time.sleep(0.01)
    launcher.kill()
    deadline = time.monotonic() + 60
    while started_for(run) & children:
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.1)
    launcher.communicate()


def started_for(run: Path) -> set[int]:
    """Return the processes, other than launchers, that were started to train in a folder."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if str(run) in words and not any("accelerate" in word for word in words):
                found.add(int(folder.name))
    return found


@pytest.mark.slow
def test_two_processes_follow_one_clock(shard_set: ShardSet, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["--max_seconds", "6", "--evaluations", "3"]
    words += ["--checkpoint_every", "1"]  # no save may take a step's message
    words += ["--evaluation_test", str(shard_set.root)]
    code, out, err = finish([str(BIN / "accelerate"), *TWO, *arguments(shard_set, run, *words)])
    assert code == 0, out + err
    found = records(run)
    assert [each["evaluation"] for each in found if "evaluation" in each] == [
        *("online", "online"),
        "final",
    ]
    last = [each for each in found if "loss" in each][-1]
    assert 6 <= last["seconds"] < 9 and last["learning_rate"] < 0.001  # of 0.01
