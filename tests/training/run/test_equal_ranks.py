"""Ranks that read something else than rank 0 are refused when they meet."""

import shutil
import socket
import sys
from pathlib import Path

import pytest

from shards.layout import ShardSet
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures
from tests.program import ROOT, arguments, start
from training.run.equal_ranks import differences


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


def ranks(
    first: list[str], second: list[str], *, program: Path = ROOT, **environment: str
) -> list[tuple[int, str]]:
    """Start two ranks as a launcher on each of two machines would; return (code, stderr) of both.

    Args:
        first: command line of rank 0.
        second: command line of rank 1.
        program: folder of rank 1's train.py.
        environment: of rank 1.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    here |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program / second[0]), *second[1:]]
    processes = [
        start([sys.executable, *first], RANK="0", **here),
        start(command, RANK="1", **here, **environment),
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(each.returncode, err) for each, (_, err) in zip(processes, ends, strict=True)]


def test_a_rank_that_reads_another_shuffle_of_the_same_images_is_refused(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    other = write(Pictures(42), tmp_path / "other", samples_per_shard=8, seed=1)
    assert len(other) == len(shard_set)
    run = tmp_path / "run"
    mine, theirs = (arguments(each, run, "--steps", "3") for each in (shard_set, other))
    (code, err), (later_code, later_err) = ranks(mine, theirs)
    assert (code, later_code) == (2, 2)
    assert "rank 1 differs from rank 0: content of --shards 42 samples, manifest" in err
    assert "Traceback" not in err + later_err
    assert "differs" not in later_err
    assert not run.exists()


@pytest.mark.slow
def test_sets_and_runs_may_lie_elsewhere_on_another_machine(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    shutil.copytree(shard_set.root, tmp_path / "copy")
    copy = str(tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path)
    mine = arguments(shard_set, tmp_path / "run", "--steps", "3")
    theirs = arguments(shard_set, tmp_path / "run", "--steps", "3", "--shards", copy)
    theirs[theirs.index("--run") + 1] = str(tmp_path / "link" / "run")
    assert [code for code, _ in ranks(mine, theirs)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--seed", "7"], "seed 7, not 0"),
        (["--learning_rate", "0.03"], "learning_rate 0.03, not 0.01"),
        (["--views.size", "20"], "views.size 20, not 24"),
        (["--log_every", "2"], "log_every 2, not 1"),
    ],
)
def test_a_rank_of_other_settings_is_refused_by_their_names(
    shard_set: ShardSet, tmp_path: Path, flags: list[str], what: str
) -> None:
    command = arguments(shard_set, tmp_path / "run", "--steps", "3")
    (code, err), (later, _) = ranks(command, [*command, *flags])
    assert (code, later) == (2, 2)
    assert f"rank 1 differs from rank 0: {what}. All ranks" in err


@pytest.mark.slow
def test_a_rank_of_other_code_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    for room in ("training", "model", "pipeline", "shards", "evaluation"):
        shutil.copytree(ROOT / room, tmp_path / "other" / room)
    shutil.copy(ROOT / "train.py", tmp_path / "other")
    with (tmp_path / "other" / "model" / "gather.py").open("a") as file:
        file.write("# another line\n")
    command = arguments(shard_set, tmp_path / "run", "--steps", "3")
    (code, err), (later, _) = ranks(command, command, program=tmp_path / "other")
    assert (code, later) == (2, 2)
    assert "rank 1 differs from rank 0: viewrank's code " in err


@pytest.mark.slow
def test_a_rank_of_other_libraries_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    other = tmp_path / "numpy-1.0.dist-info"  # found before the real one
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    command = arguments(shard_set, tmp_path / "run", "--steps", "3")
    (code, err), (later, _) = ranks(command, command, PYTHONPATH=str(tmp_path))
    assert (code, later) == (2, 2)
    assert "rank 1 differs from rank 0: version of numpy 1.0, not " in err


def test_a_message_names_some_differences_and_counts_the_others() -> None:
    first = dict.fromkeys("abcdef", "1")
    assert differences(dict(first), first, rank=3) == ""
    mine = dict.fromkeys("abcdefg", "2")
    del mine["a"]
    assert differences(mine, first, rank=3) == (
        "rank 3 differs from rank 0: a (none), not 1; b 2, not 1; c 2, not 1; d 2, not 1 and 3 more"
    )


@pytest.mark.slow
def test_ranks_that_write_into_different_folders_are_refused(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    """As where a run's folder is on a disk of each machine's own."""
    mine, theirs = (
        arguments(shard_set, tmp_path / name, "--steps", "3") for name in ("run", "elsewhere")
    )
    (tmp_path / "elsewhere").mkdir()
    (code, err), (later_code, later_err) = ranks(mine, theirs)
    assert (code, later_code) == (2, 2), err + later_err
    assert f"run is another folder for rank 1 on {socket.gethostname()} than for rank 0" in err
    assert "Give --run on a disk that all machines see." in err
    assert "Traceback" not in err + later_err
    assert not list(tmp_path.glob("*/.seen-*")) and not list(tmp_path.glob("*/checkpoints/*"))
