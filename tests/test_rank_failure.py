"""A rank that dies, hangs or has no memory left: the launcher brings the job back by itself."""

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import BIN, TWO, arguments, finish, losses, start, wait_for_step, weights
from training.run import checkpoint, failure

pytestmark = pytest.mark.slow
STEPS, EVERY = 150, 10
LAUNCH = [str(BIN / "accelerate"), *TWO, "--max_restarts", "2", "--monitor_interval", "0.2"]


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


def command(shard_set: ShardSet, run: Path) -> list[str]:
    more = ["--steps", str(STEPS), "--checkpoint_every", str(EVERY), "--hang_seconds", "8"]
    return [*LAUNCH, *arguments(shard_set, run, *more)]


@pytest.fixture(scope="module")
def straight(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    code, out, err = finish(command(shard_set, run))
    assert code == 0, out + err
    return run


def process_of(run: Path, rank: int) -> int:
    """Return the process of a rank, as it says itself every few seconds."""
    path = run / failure.RANKS / f"rank-{rank}.json"
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return json.loads(path.read_text())["process"]


def die(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def hang(process: int) -> None:
    os.kill(process, signal.SIGSTOP)


def starve(process: int) -> None:
    """Leave a process not a page more than it has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize("harm", [die, hang, starve])
def test_the_job_comes_back_by_itself_from_its_last_checkpoint(
    harm: object, shard_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    assert callable(harm)
    run = tmp_path / "run"
    process = start(command(shard_set, run))
    wait_for_step(process, run, EVERY + 2)
    harm(process_of(run, 1))
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, out + err
    assert losses(run) == losses(straight)
    expected = weights(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    if harm is hang:
        assert "rank 1 (process" in err and "has stopped or lost its disk" in err
    assert not (run / failure.NAME).exists()  # it ended well


def test_a_launcher_that_is_told_to_end_leaves_all_ranks_saved(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start([*command(shard_set, run), "--steps", "100000", "--checkpoint_every", "100000"])
    wait_for_step(process, run, 5)
    process.terminate()
    begin = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert "SIGTERM: saved step" in out and "Traceback" not in err.split("SignalException")[0]
    saved = checkpoint.newest(run)
    assert saved is not None and saved.step == losses(run)[-1][0]
