"""Workers that die, fail, or are many: the same bytes, and no task lost or done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards.engine.workers
from shards.engine import Engine, Job, LocalWorkers, Report, Serial
from shards.layout import ShardSet
from shards.source import Sample, Source
from shards.writing.write import write

ROOT = Path(__file__).parents[2]


def contents(shard_set: ShardSet) -> dict[str, bytes]:
    root = Path(shard_set.root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class Noise(Source):
    """Small random pictures, of which some end whoever reads them."""

    name = "noise"

    def __init__(self, samples: int, deadly: dict[int, Callable[[], None]] | None = None) -> None:
        self.split, self.classes = "", ["a", "b"]
        self.samples, self.deadly = samples, deadly or {}

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        if index in self.deadly:
            self.deadly[index]()
        pixels = np.random.RandomState(index).randint(0, 256, (8, 9, 3)).astype(np.uint8)
        return Sample(f"{index:05d}", pixels, index % 2, index, {})


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, workers: int) -> None:
    alone = write(Noise(101), tmp_path / "alone", samples_per_shard=9, engine=Serial())
    many = write(Noise(101), tmp_path / "many", samples_per_shard=9, engine=LocalWorkers(workers))
    assert contents(alone) == contents(many)


def test_an_image_that_ends_its_worker_is_left_out_by_name(tmp_path: Path) -> None:
    source = Fatal(40, deadly=17)
    shard_set = write(source, tmp_path / "out", samples_per_shard=9, engine=LocalWorkers(2))
    account = shard_set.manifest.account
    assert (account.written, account.quarantined) == (39, 1)
    reasons = (tmp_path / "out" / "quarantine" / "reasons.jsonl").read_text()
    assert '"origin": "00017"' in reasons and '"reason": "deadly"' in reasons


class Fatal(Noise):
    """One picture is a file whose decoder, in this test, ends the process."""

    def __init__(self, samples: int, deadly: int) -> None:
        super().__init__(samples)
        self.bad = deadly

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index != self.bad:
            return sample
        return Sample(sample.key, Bomb(b"bomb"), sample.label, sample.id, {})


class Bomb(bytes):
    """Bytes that cannot be looked at."""

    def startswith(self, *_: Any) -> bool:
        end()
        return False


def test_a_sample_that_ends_whoever_reads_it_is_left_out(tmp_path: Path) -> None:
    shard_set = write(
        Noise(40, {23: end}), tmp_path / "out", samples_per_shard=9, engine=LocalWorkers(2)
    )
    assert shard_set.manifest.account.quarantined == 1
    (line,) = (tmp_path / "out" / "quarantine" / "reasons.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["origin"], told["reason"], told["file"]) == ("position 23", "deadly", "")


def test_a_decoder_that_always_dies_is_not_blamed_on_the_images(tmp_path: Path) -> None:
    source = Noise(40, dict.fromkeys(range(40), end))
    with pytest.raises(OSError, match="the decoder seems broken, not the images"):
        write(source, tmp_path / "out", samples_per_shard=40, engine=LocalWorkers(2))


def test_a_worker_that_stalls_over_an_image_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.engine.workers, "_STUCK", 0.5)
    source = Noise(20, {7: lambda: time.sleep(60)})
    shard_set = write(source, tmp_path / "out", samples_per_shard=5, engine=LocalWorkers(2))
    assert shard_set.manifest.account.quarantined == 1


class Unsendable(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


@dataclass(frozen=True)
class Fail(Job):
    def __call__(self, _task: int, _report: Report) -> None:
        raise Unsendable("the ", "reason")


def test_an_error_that_cannot_be_sent_arrives_as_text() -> None:
    with pytest.raises(RuntimeError, match="Unsendable: the reason"):
        list(LocalWorkers(1).run(Fail(), [0], lambda *_: None))


def test_a_worker_killed_once_costs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "killed"

    def end_once() -> None:
        if not mark.exists():
            mark.touch()
            end()

    shard_set = write(
        Noise(40, {23: end_once}), tmp_path / "out", samples_per_shard=9, engine=LocalWorkers(2)
    )
    assert mark.exists()
    plain = write(Noise(40), tmp_path / "plain", samples_per_shard=9)
    assert contents(shard_set) == contents(plain)


@dataclass(frozen=True)
class Square(Job):
    folder: Path

    def __call__(self, task: int, report: Report) -> int:
        with open(self.folder / "tasks", "a") as file:
            file.write(f"{task}\n")
        report(1, task)
        if task == 13:
            raise OSError(28, "No space left on device")
        return task * task


@pytest.mark.parametrize("engine", [Serial(), LocalWorkers(3)])
def test_every_task_is_done_once(tmp_path: Path, engine: Engine) -> None:
    found = dict(engine.run(Square(tmp_path), range(12), lambda *_: None))
    assert found == {task: task * task for task in range(12)}
    done = (tmp_path / "tasks").read_text().split()
    assert Counter(done) == {str(task): 1 for task in range(12)}


@pytest.mark.parametrize("engine", [Serial(), LocalWorkers(2)])
def test_what_a_task_raises_reaches_the_caller_and_ends_the_rest(
    tmp_path: Path, engine: Engine
) -> None:
    with pytest.raises(OSError, match="No space left") as raised:
        for _ in engine.run(Square(tmp_path), range(10, 1000), lambda *_: None):
            pass
    assert raised.value.errno == 28
    assert len((tmp_path / "tasks").read_text().split()) < 500


def test_no_tasks_are_no_work(tmp_path: Path) -> None:
    assert list(LocalWorkers(2).run(Square(tmp_path), [], lambda *_: None)) == []


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workers=0; expected 1 or more"):
        LocalWorkers(0)


WRITER = """
import sys
from shards.engine import LocalWorkers
from shards.writing.write import write
sys.path.insert(0, {tests!r})
from test_engine import Noise
class Slow(Noise):
    def __getitem__(self, index):
        import time
        time.sleep(0.004)
        return super().__getitem__(index)
print("begun", flush=True)
write(Slow(400), {out!r}, samples_per_shard=20, engine=LocalWorkers(2))
print("done", flush=True)
"""


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_bytes_are_the_same(times: int, tmp_path: Path) -> None:
    out, random = tmp_path / "out", np.random.RandomState(0)
    program = WRITER.format(tests=str(Path(__file__).parent), out=str(out))
    kills, rewritten = 0, []
    partial = tmp_path / "out.partial"
    while kills < times:
        before = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.jsonl")}
        writer = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        time.sleep(random.uniform(0, 0.12))
        writer.send_signal(signal.SIGKILL)
        if writer.stdout.read() == "done\n":
            break  # it was faster
        writer.wait()
        kills += 1
        after = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.jsonl")}
        rewritten += [name for name, time_ in before.items() if after.get(name) != time_]
    assert kills == times, "the writing must be slow enough to be killed"
    if not out.exists():
        subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert not partial.exists()
    assert rewritten == [], "complete shards are not written twice"
    at_once = write(Noise(400), tmp_path / "at-once", samples_per_shard=20)
    assert contents(at_once) == {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
