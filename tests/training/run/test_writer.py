"""Checkpoints beside training: all parts or none, on any disk, after any kill."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

from model.random_numbers import random_state
from training.run import checkpoint
from training.run.agreement import Agreement
from training.run.writer import Writer

FACTS = {"world_size": 1, "machine": "cpu, no"}
# What a checkpoint is made of, besides opening: each changes the disk, or asks it to remember.
CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir")


def parts(step: int) -> dict[str, Any]:
    return {
        checkpoint.METHOD: {"weight": torch.full((3,), float(step))},
        checkpoint.OPTIMIZER: {"state": {0: {"momentum": torch.ones(2)}}},
        checkpoint.rank_file(0): {"random": random_state()},
    }


def save(run: Path, step: int, *, keep: int = 1, keep_every: int = 0) -> int:
    """Write one checkpoint in a process's life of its own; return the step that is on the disk."""
    run.mkdir(exist_ok=True)
    checkpoint.clean(run)
    writer, agreement = (
        Writer(run, rank=0, facts=FACTS, keep=keep, keep_every=keep_every),
        Agreement(3),
    )
    writer.save(step=step, seconds=1.0, parts=parts(step), agreement=agreement)
    return writer.settle(agreement)


def newest(run: Path) -> int:
    saved = checkpoint.newest(run)
    if saved is None:
        return 0
    assert saved.method()["weight"].tolist() == [saved.step] * 3
    assert saved.optimizer() and saved.rank(0)
    return saved.step


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / checkpoint.FOLDER).iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path):
    writer, agreement = Writer(tmp_path, rank=0, facts=FACTS, keep=2), Agreement(3)
    weight = torch.zeros(3)
    for step in range(1, 200):
        weight += 1
        if step in (10, 20):
            state = {**parts(step), checkpoint.METHOD: {"weight": weight}}
            writer.save(step=step, seconds=1.0, parts=state, agreement=agreement)
        assert writer.advance(agreement.exchange([0, *writer.status()])[1:]) == []
    assert writer.settle(agreement) == 20
    assert newest(tmp_path) == 20 and names(tmp_path) == ["00000010", "00000020"]


def test_every_nth_stays(tmp_path: Path):
    for step in range(2, 14, 2):
        save(tmp_path, step, keep=2, keep_every=4)
    assert names(tmp_path) == ["00000004", "00000008", "00000010", "00000012"]


def test_behind_a_damaged_checkpoint_is_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    path = tmp_path / "checkpoints/00000003" / checkpoint.METHOD
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "checkpoints/00000002" / checkpoint.OPTIMIZER).unlink()
    assert newest(tmp_path) == 1
    told = capsys.readouterr().err
    assert "00000003 is damaged (method.safetensors is not what was written)" in told
    assert "00000002 is damaged" in told
    # The run makes the damaged one again.
    assert save(tmp_path, 3, keep=3) == 3 == newest(tmp_path)


def test_a_damaged_checkpoint_of_a_later_step_takes_the_place_of_no_whole_one(tmp_path: Path):
    for step in (1, 2, 9):
        save(tmp_path, step, keep=3)
    (tmp_path / "checkpoints/00000009" / checkpoint.METHOD).write_bytes(b"")
    # The run goes on from step 2.
    for step in (3, 4):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["00000003", "00000004", "00000009"]
    assert newest(tmp_path) == 4
    for step in (9, 10):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["00000009", "00000010"] and newest(tmp_path) == 10


def intercept(monkeypatch: pytest.MonkeyPatch, at: Callable[[int, str], None]) -> None:
    """Call `at(number, name)` before every system call below `checkpoints/`, counted from 0."""
    count = iter(range(1 << 30))
    for name in CALLS:
        real = getattr(os, name)

        def call(*args: Any, _name: str = name, _real: Any = real, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code.co_filename
            if any(part in caller for part in ("training/", "shards/", "pathlib", "shutil")):
                at(next(count), _name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What the second of two checkpoints asks of the system, with the first one being removed."""
    run, found = tmp_path_factory.mktemp("calls"), []
    save(run, 1)
    with pytest.MonkeyPatch.context() as patch:
        intercept(patch, lambda _, name: found.append(name))
        assert save(run, 2) == 2
    assert {"open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"} <= set(found)
    yield found


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_whichever_call_fails_the_checkpoint_before_it_loads(
    tmp_path: Path, calls: list[str], code: int
):
    for number, name in enumerate(calls):
        run = tmp_path / str(number)
        save(run, 1)

        def fail(n: int, _: str, number: int = number) -> None:
            if n == number:
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            intercept(patch, fail)
            try:
                done = save(run, 2)
            except OSError:  # before anything is written: the program ends with its message
                done = 0
        assert newest(run) == (done or newest(run)) >= 1, (number, name)
        # And the disk once in order again, the same step is saved.
        assert save(run, 2) == 2 == newest(run), (number, name)
        assert names(run) == ["00000002"], (number, name)


def test_killed_before_any_call_the_checkpoint_before_it_loads(tmp_path: Path, calls: list[str]):
    for number, name in enumerate(calls):
        run = tmp_path / str(number)
        save(run, 1)
        child = os.fork()
        if child == 0:

            def die(n: int, _: str, number: int = number) -> None:
                if n == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            intercept(pytest.MonkeyPatch(), die)
            save(run, 2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, (number, name)
        assert newest(run) in (1, 2), (number, name)
        assert save(run, 3) == 3 == newest(run)
        assert names(run) == ["00000003"], (number, name)


def test_a_part_that_fails_is_told_and_the_next_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer, agreement = Writer(tmp_path, rank=0, facts=FACTS, keep=1), Agreement(3)
    writer.save(step=1, seconds=1.0, parts=parts(1), agreement=agreement)
    assert writer.settle(agreement) == 1
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "write", full)
        writer.save(step=2, seconds=1.0, parts=parts(2), agreement=agreement)
        assert writer.settle(agreement) == 1
    news = " ".join(writer.advance((0, 0)))
    assert "No space left" in news and "step 2 could not be saved; training goes on" in news
    assert names(tmp_path) == ["00000001"]
    writer.save(step=3, seconds=1.0, parts=parts(3), agreement=agreement)
    assert writer.settle(agreement) == 3 == newest(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENOSPC])
def test_the_end_of_a_run_says_why_its_last_checkpoint_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    writer, agreement = Writer(tmp_path, rank=0, facts=FACTS, keep=1), Agreement(3)

    def refused(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refused)
        writer.save(step=2, seconds=1.0, parts=parts(2), agreement=agreement)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            writer.finish(2, agreement)
    assert caught.value.errno == number  # by which a command says whether to try again
    assert ("Free space" in str(caught.value)) == (number == errno.ENOSPC)


class Told:
    """Ranks of which another one says what it is made to say."""

    def __init__(self, other: list[int]) -> None:
        self.other = other

    def agree(self, mine: list[int]) -> list[int]:
        return [max(pair) for pair in zip_longest(mine, self.other, fillvalue=0)]


def test_nothing_is_found_before_every_rank_has_written_its_part(tmp_path: Path):
    facts = {**FACTS, "world_size": 2}
    writer = Writer(tmp_path, rank=0, facts=facts, keep=1)
    other: Any = Told([0, 0])
    writer.save(step=5, seconds=1.0, parts=parts(5), agreement=other)
    assert writer.settle(other) == 0
    assert checkpoint.newest(tmp_path) is None
    checkpoint.write_part(tmp_path, 5, checkpoint.rank_file(1), [])
    other.other = [-5, 0]
    assert writer.settle(other) == 5


def test_an_earlier_refusal_is_not_the_reason_of_a_later_one(tmp_path: Path):
    writer = Writer(tmp_path, rank=0, facts={**FACTS, "world_size": 2}, keep=1)
    other: Any = Told([0, 5])

    def refused(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", refused)
        writer.save(step=5, seconds=1.0, parts=parts(5), agreement=other)
        writer.settle(other)
    other.other = [0, 6]
    writer.save(step=6, seconds=1.0, parts=parts(6), agreement=other)
    with pytest.raises(OSError, match="another process could not write its part"):
        writer.finish(6, other)


def test_what_another_rank_could_not_write_is_given_up_by_all(tmp_path: Path):
    writer = Writer(tmp_path, rank=0, facts={**FACTS, "world_size": 2}, keep=1)
    failed: Any = Told([0, 5])
    writer.save(step=5, seconds=1.0, parts=parts(5), agreement=failed)
    assert writer.settle(failed) == 0
    assert names(tmp_path) == []
    assert "step 5 could not be saved" in " ".join(writer.advance((0, 0)))
