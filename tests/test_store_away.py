"""A store that goes away while a run trains: it is waited for, then named, and the code is 75."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shards.writing.write import write
from tests.conftest import Pictures
from tests.object_store import BUCKET, object_store
from tests.program import arguments, losses, start, train, wait_for_step
from training.command import AGAIN
from training.run import failure

pytest.importorskip("s3fs", reason="the optional package s3fs is not installed")
pytest.importorskip("moto", reason="moto, which plays S3, is not installed")
FOR_EVER = ("--steps", "100000", "--hang_seconds", "120", "--check_shards", "false")


def trained(
    run: Path, store: subprocess.Popen[bytes], number: int, *more: str, back: float = 0
) -> tuple[int, str]:
    """Return how a run ends whose store gets a signal, and is back so many seconds later."""
    shard_set = write(Pictures(160), f"{BUCKET}/{run.parent.name}", samples_per_shard=8)
    program = start([sys.executable, *arguments(shard_set, run, *FOR_EVER, *more)])
    wait_for_step(program, run, 5)
    os.kill(store.pid, number)
    if back:
        threading.Timer(back, store.send_signal, (signal.SIGCONT,)).start()
    _, err = program.communicate(timeout=180)
    return program.returncode, err


@pytest.mark.slow  # DALI gives a request up after 10 seconds
def test_a_store_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with object_store() as store:
        code, err = trained(run, store, signal.SIGSTOP, "--hang_seconds", "16")
    assert code == AGAIN, err
    told = json.loads((run / failure.NAME).read_text())
    assert f"hangs in 'data, waiting for {BUCKET}/" in told["what"]
    assert "Traceback" not in err


@pytest.mark.slow  # the store's package tries for 15 seconds, four times
def test_a_store_that_is_gone_is_asked_again_and_then_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with object_store() as store:
        code, err = trained(run, store, signal.SIGKILL)
    assert code == AGAIN, err
    assert err.count("it is read again in") == 3
    *_, last = err.splitlines()
    assert last.startswith(f"error: {BUCKET}/") and "onnect" in last
    told = json.loads((run / failure.NAME).read_text())
    assert told["what"].startswith("Unreachable: ") and "same command continues" in told["remedy"]


@pytest.mark.slow  # as above
def test_a_store_that_comes_back_is_trained_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = ("--steps", "90", "--shuffle_buffer", "8")
    here = write(Pictures(160), tmp_path / "shards", samples_per_shard=8)
    assert train(here, tmp_path / "peaceful", *FOR_EVER, *more)[0] == 0
    run = tmp_path / "run"
    with object_store() as store:
        code, err = trained(run, store, signal.SIGSTOP, *more, back=15)
    assert code == 0, err
    assert "it is read again in" in err
    assert losses(run) == losses(tmp_path / "peaceful")
