"""A rank that dies, hangs or has no memory left: the launcher brings the job back by itself."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import BIN, arguments, finish, losses, start, wait_for_step
from tests.rank_failure import HARMS, PATIENCE, command, recover, stopped
from training.run import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


@pytest.fixture(scope="module")
def peaceful(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("peaceful") / "run"
    code, out, err = finish(command(shard_set, run))
    assert code == 0, out + err
    return run


@pytest.mark.parametrize("harm", HARMS)
def test_the_job_comes_back_by_itself_from_its_last_checkpoint(
    harm: str, shard_set: ShardSet, peaceful: Path, tmp_path: Path
) -> None:
    recover(harm, shard_set, peaceful, tmp_path / "run")


def test_a_launcher_that_is_told_to_end_leaves_all_ranks_saved(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(command(shard_set, run, "--steps", "100000", "--checkpoint_every", "100000"))
    wait_for_step(process, run, 5)
    process.terminate()
    begin = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert "SIGTERM: saved step" in out
    assert 'train.py", line' not in err  # the launcher's trace is all there is
    saved = checkpoint.newest(run)
    assert saved is not None and saved.step == losses(run)[-1][0]


def test_a_rank_that_stops_before_the_first_step_does_not_keep_the_others_waiting(
    shard_set: ShardSet, peaceful: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(command(shard_set, run))
    stopped(started(process.pid, rank=1))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert "rank 0 hangs in 'meeting of the ranks' at step 0" in err
    assert losses(run) == losses(peaceful)


def test_one_process_that_is_killed_comes_back_too(shard_set: ShardSet, tmp_path: Path) -> None:
    """As docs/reliability.md has it: Accelerate's launcher starts one process once."""
    run = tmp_path / "run"
    words = arguments(shard_set, run, "--steps", "30", "--checkpoint_every", "4")
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", "1", "--max_restarts", "3", "--"]
    process = start([*launcher, *words])
    wait_for_step(process, run, 10)
    os.kill(started(process.pid, rank=0), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "ended without a word after step" in out or "continuing from step" in out
    assert [step for step, _ in losses(run)] == list(range(1, 31))


def started(launcher: int, *, rank: int) -> int:
    """Wait until the launcher has started a rank, and return its process."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            with suppress(OSError):  # some children end as soon as they have said something
                if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                    return int(child)
        time.sleep(0.01)
    raise AssertionError("no such rank")
