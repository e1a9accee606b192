"""A step that takes too long ends the process, and says whom it waited for."""

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training.command import AGAIN
from training.run import failure, watchdog
from training.run.failure import Phase
from training.run.watchdog import Watchdog


def in_a_child(work: Callable[[], None], *, seconds: float = 20) -> int:
    """Return the exit code of what runs in a process of its own."""
    child = os.fork()
    if child == 0:
        sys.stderr = io.StringIO()
        work()
        os._exit(0)
    return in_time(child, seconds=seconds)


def in_time(child: int, *, seconds: float = 20) -> int:
    """Return the exit code of a process that ends soon."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("it did not end")


def hang(run: Path, *, limit: float = 0.4, world_size: int = 1, steps: int = 0) -> None:
    place = Phase(prepared=True)
    with Watchdog(run, place, rank=0, world_size=world_size, limit=limit):
        for step in range(steps):
            place.enter("step", step=step)
            time.sleep(limit / 2)
        place.enter("data")
        time.sleep(60)


def test_a_hang_is_named_and_ends_the_process(tmp_path: Path) -> None:
    assert in_a_child(lambda: hang(tmp_path, steps=4)) == AGAIN
    record = json.loads((tmp_path / failure.NAME).read_text())
    assert record["what"] == "rank 0 hangs in 'data' at step 3"
    assert record["step"] == 3 and "--hang_seconds" in record["remedy"]
    log = failure.log_path(tmp_path, 0).read_text()
    assert "in hang" in log  # where its threads are


def test_before_the_folder_is_this_run_s_it_is_left_alone(tmp_path: Path) -> None:
    def work() -> None:
        place = Phase()
        place.enter("meeting of the ranks")
        with Watchdog(tmp_path / "run", place, rank=0, world_size=2, limit=0.4):
            time.sleep(60)

    assert in_a_child(work) == AGAIN
    assert not (tmp_path / "run").exists()


def test_a_silent_rank_is_the_one_that_all_wait_for(tmp_path: Path) -> None:
    (tmp_path / failure.RANKS).mkdir()
    told = {"beat": 7, "step": 2, "phase": "step", "process": 1234, "host": "elsewhere"}
    (tmp_path / failure.RANKS / "rank-1.json").write_text(json.dumps(told))
    assert in_a_child(lambda: hang(tmp_path, world_size=2, limit=2)) == AGAIN
    what = json.loads((tmp_path / failure.NAME).read_text())["what"]
    assert "rank 1 (process 1234 on elsewhere) has stopped or lost its disk, at step 2" in what


def test_a_rank_that_searches_is_waited_for_while_it_lives(tmp_path: Path) -> None:
    beats = tmp_path / failure.RANKS / "rank-1.json"
    beats.parent.mkdir()
    child = os.fork()
    if child == 0:
        sys.stderr = io.StringIO()
        hang(tmp_path, world_size=2, limit=0.8)
        os._exit(0)
    for beat in range(30):  # three seconds, four times the limit
        told = {"beat": beat, "step": 2, "phase": failure.SEARCH, "process": 1, "host": "b"}
        partial = beats.with_suffix(".partial")
        partial.write_text(json.dumps(told))
        partial.rename(beats)
        time.sleep(0.1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    assert in_time(child) == AGAIN
    what = json.loads((tmp_path / failure.NAME).read_text())["what"]
    assert "rank 1 (process 1 on b) has stopped or lost its disk" in what


@pytest.mark.parametrize(
    ("phase", "waits"), [(failure.SEARCH, True), (watchdog.TRACKERS, True), ("step", False)]
)
def test_a_rank_is_waited_for_in_what_one_alone_does(
    phase: str, waits: bool, tmp_path: Path
) -> None:
    beats = tmp_path / failure.RANKS / "rank-0.json"
    beats.parent.mkdir()
    beats.write_text(json.dumps({"beat": 3, "step": 2, "phase": phase}))
    others = Watchdog(tmp_path, Phase(prepared=True), rank=1, world_size=2, limit=100)
    others._look()
    assert others._waits_for_one() == waits
    told, seen = others._seen[0]
    others._seen[0] = told, seen - 100
    others._look()
    assert not others._waits_for_one()  # it does not live any more


def test_a_disk_that_has_gone_does_not_keep_it_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(*_: object, **__: object) -> None:
        time.sleep(60)

    monkeypatch.setattr(Watchdog, "_look", stall)
    monkeypatch.setattr(failure, "write", stall)
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.5)
    assert in_a_child(lambda: hang(tmp_path)) == AGAIN


def test_steps_that_are_made_end_nothing(tmp_path: Path) -> None:
    def work() -> None:
        place = Phase(prepared=True)
        with Watchdog(tmp_path, place, rank=0, world_size=1, limit=0.5):
            for step in range(8):
                place.enter("step", step=step)
                time.sleep(0.15)
            place.enter("evaluation", patience=10)
            time.sleep(1)
        time.sleep(1)  # afterwards nobody watches

    assert in_a_child(work) == 0
    assert not (tmp_path / failure.NAME).exists()
    assert failure.silent_ends(tmp_path) == []


def test_of_a_process_that_was_killed_the_next_one_tells(tmp_path: Path) -> None:
    def work() -> None:
        place = Phase(prepared=True)
        with Watchdog(tmp_path, place, rank=0, world_size=1, limit=0.4):
            place.enter("step", step=12)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(work) == -signal.SIGKILL
    (line,) = failure.silent_ends(tmp_path)
    assert "(rank-0) ended without a word after step 12" in line
    assert failure.silent_ends(tmp_path) == []


@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGSEGV, "Segmentation fault"),
        (signal.SIGABRT, "Aborted"),
        (signal.SIGBUS, "Bus error"),
    ],
)
def test_of_a_signal_that_python_does_not_survive_the_next_one_tells(
    tmp_path: Path, number: signal.Signals, name: str, beats: bool
) -> None:
    def work() -> None:
        place = Phase(prepared=True)
        failure.keep_stderr(tmp_path, 0)
        with Watchdog(tmp_path, place, rank=0, world_size=1, limit=0.4 if beats else 0):
            place.enter("step", step=12)
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    def next_one() -> None:
        failure.keep_stderr(tmp_path, 0)

    assert in_a_child(work) == -number
    (line,) = failure.silent_ends(tmp_path)
    assert "(rank-0) was ended" in line and name in line and "rank-0.log" in line
    assert ("after step 12" in line) == beats
    assert "memory" not in line
    assert in_a_child(next_one) == 0
    assert failure.silent_ends(tmp_path) == []


class Broken(io.StringIO):
    """A stderr whose reader has gone."""

    def write(self, _: str, /) -> int:
        raise BrokenPipeError


def stall(*_: object, **__: object) -> None:
    time.sleep(60)


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("harm", ["stderr is broken", "its log never answers", "no thread starts"])
def test_nothing_keeps_it_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.5)

    def work() -> None:
        place = Phase(prepared=True)
        with Watchdog(tmp_path, place, rank=0, world_size=1, limit=0.4):
            place.enter("data")
            if harm == "stderr is broken":
                sys.stderr = Broken()
            elif harm == "its log never answers":
                failure.keep_stderr(tmp_path, 0)
                sys.stderr._log.write = stall  # pyright: ignore[reportAttributeAccessIssue]
            else:
                monkeypatch.setattr(watchdog.Thread, "start", refuse)
            time.sleep(60)

    assert in_a_child(work) == AGAIN


def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        sys.stderr = io.StringIO()
        place = Phase(prepared=True)
        with Watchdog(tmp_path, place, rank=0, world_size=1, limit=1.2):
            place.enter("step")
            time.sleep(0.9)
            place.enter("step")
            time.sleep(0.4)
        os._exit(0)
    time.sleep(0.3)
    os.kill(child, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_process_that_gave_up_is_not_taken_for_one_that_was_killed(tmp_path: Path) -> None:
    assert in_a_child(lambda: hang(tmp_path)) == AGAIN
    assert failure.silent_ends(tmp_path) == []


def test_a_search_may_take_as_long_as_it_gets_on(tmp_path: Path) -> None:
    def work(files: int) -> None:
        phase = Phase(prepared=True)
        with Watchdog(tmp_path, phase, rank=0, world_size=1, limit=0.1):
            for _ in range(files):  # ten times the limit each, at most
                phase.search()
                time.sleep(0.5)
            if not files:
                phase.search()
                time.sleep(60)

    assert in_a_child(lambda: work(5)) == 0
    assert in_a_child(lambda: work(0)) == AGAIN
    what = json.loads((tmp_path / failure.NAME).read_text())["what"]
    assert f"hangs in '{failure.SEARCH}'" in what


def test_a_place_that_does_not_answer_is_named(tmp_path: Path) -> None:
    def work() -> None:
        phase = Phase(prepared=True)
        with Watchdog(tmp_path, phase, rank=0, world_size=1, limit=0.4):
            phase.enter("data", step=3)
            for _ in range(100):  # to wait for it takes no step's time back
                phase.wait("s3://bucket/set")
                time.sleep(0.1)

    assert in_a_child(work, seconds=8) == AGAIN
    what = json.loads((tmp_path / failure.NAME).read_text())["what"]
    assert what == "rank 0 hangs in 'data, waiting for s3://bucket/set' at step 3"
