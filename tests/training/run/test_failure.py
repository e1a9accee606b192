"""The word that an abnormal end leaves: the cause, from whoever found it first."""

import errno
import json
import os
import sys
import time
from pathlib import Path

import pytest

from shards.outage import Unreachable
from training.run import failure


def found(run: Path) -> dict[str, object]:
    return json.loads((run / failure.NAME).read_text())


def end(run: Path, error: BaseException, *, rank: int = 0, prepared: bool = True) -> None:
    with pytest.raises(type(error)), failure.reported(run, rank=rank) as place:
        place.prepared = prepared
        place.enter("step", step=7)
        raise error


def test_an_error_says_what_where_rank_step_and_remedy(tmp_path: Path) -> None:
    end(tmp_path, ValueError("too few samples"), rank=1)
    record = found(tmp_path)
    assert record["what"] == "ValueError: too few samples"
    assert "test_failure.py" in str(record["where"])
    assert (record["rank"], record["step"]) == (1, 7)
    assert "same command" in str(record["remedy"])


def test_memory_has_a_remedy_of_its_own(tmp_path: Path) -> None:
    end(tmp_path, RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert "--micro_batch_size" in str(found(tmp_path)["remedy"])


def test_a_place_that_does_not_answer_has_a_remedy_of_its_own(tmp_path: Path) -> None:
    end(tmp_path, Unreachable(errno.ETIMEDOUT, "does not answer", "s3://bucket/set"))
    assert found(tmp_path)["what"] == "Unreachable: s3://bucket/set: does not answer"
    assert "bring the place that does not answer back" in str(found(tmp_path)["remedy"])


def test_the_first_word_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), failure.reported(tmp_path, rank=0) as place:
        place.prepared = True
        end(tmp_path, OSError("the cause"), rank=1)
        raise RuntimeError("connection closed by peer")
    assert found(tmp_path)["what"] == "OSError: the cause"


@pytest.mark.parametrize("day", [-1, 1])
def test_the_word_of_an_earlier_run_does_not_whatever_the_clock_says(
    tmp_path: Path, day: int
) -> None:
    end(tmp_path, OSError("yesterday"))
    other = time.time() + 86_400 * day
    os.utime(tmp_path / failure.NAME, (other, other))
    end(tmp_path, OSError("today"))
    assert found(tmp_path)["what"] == "OSError: today"
    failure.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_this_runs_is_left_alone(tmp_path: Path) -> None:
    end(tmp_path, ValueError("not mine"), prepared=False)
    assert not list(tmp_path.iterdir())


def test_the_last_lines_of_all_ranks_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    failure.keep_stderr(tmp_path, 0)
    sys.stderr.write("".join(f"line {number}\n" for number in range(200)))
    failure.log_path(tmp_path, 1).write_text("of the other rank\n")
    end(tmp_path, ValueError("x"))
    logs = found(tmp_path)["logs"]
    assert isinstance(logs, dict)
    assert logs["rank-0.log"] == [f"line {number}" for number in range(150, 200)]
    assert logs["rank-1.log"] == ["of the other rank"]
