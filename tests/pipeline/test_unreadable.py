"""A place that does not answer is waited for, no batch is lost, and damage is found at once."""

import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import pipeline.loader
import pipeline.unreadable
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Batch, Loader
from shards.outage import Unreachable
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

SMALL = ViewGroup(policy=SimCLRViews(), count=2, size=16)


def take(loader: Loader, count: int) -> list[Batch]:
    return list(islice(loader.endless(), count))


def same(left: Batch, right: Batch) -> bool:
    views = zip(left.views, right.views, strict=True)
    return left.id_B.tolist() == right.id_B.tolist() and all((a == b).all() for a, b in views)


def lost() -> RuntimeError:
    return RuntimeError("Error in CPU operator `nvidia.dali.fn.readers.webdataset`: curlCode: 28")


def fail_once(loader: Loader, method: str) -> None:
    """Let the next call of a method of the loader's pipeline fail, and no other call."""
    pipeline: Any = loader._pipeline

    def fail(*_: object) -> None:
        delattr(pipeline, method)
        raise lost()

    setattr(pipeline, method, fail)


@pytest.mark.parametrize("method", ["share_outputs", "schedule_run", "release_outputs"])
def test_a_batch_that_could_not_be_read_is_the_next_one_all_the_same(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(pipeline.unreadable, "is_remote", lambda _: True)
    monkeypatch.setattr(pipeline.loader, "PAUSES", (0.0,))
    shard_set = make_shard_set(42)
    with Loader(shard_set, [SMALL], batch_size_per_rank=4) as loader:
        expected = [*take(loader, 25)]
    with Loader(shard_set, [SMALL], batch_size_per_rank=4) as loader:
        batches = take(loader, 13)
        state = loader.state_dict()
        fail_once(loader, method)
        batches += take(loader, 12)
    assert all(map(same, batches, expected))
    with Loader(shard_set, [SMALL], batch_size_per_rank=4) as loader:
        loader.load_state_dict(state)
        fail_before_it_gives(loader, monkeypatch)
        assert all(map(same, take(loader, 12), expected[13:]))


def fail_before_it_gives(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first pipeline of a loader that continues fail before its first batch."""
    real = Loader._run

    def fail(self: Loader) -> tuple[Any, ...]:
        monkeypatch.setattr(Loader, "_run", real)
        self._pipeline = pipeline.loader.views_pipeline(
            self.shard_set, self.groups, self._settings, checkpoint=self._checkpoint
        )
        self._pipeline.build()
        raise lost()

    monkeypatch.setattr(Loader, "_run", fail)


def test_a_folder_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.loader, "PAUSES", (0.0, 0.0, 0.7, 0.0))
    shard_set = write(Pictures(24), tmp_path / "shards", samples_per_shard=8)
    waited: list[str] = []
    with Loader(shard_set, [SMALL], batch_size_per_rank=8, waiting=waited.append) as loader:
        (tmp_path / "shards").rename(tmp_path / "away")
        back = threading.Timer(0.3, lambda: (tmp_path / "away").rename(tmp_path / "shards"))
        back.start()
        assert sorted(i for batch in loader for i in batch.id_B.tolist()) == list(range(24))
    assert set(waited) == {shard_set.root}
    assert (
        "is not there any more. Is its disk mounted?; it is read again in"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("reader", [Loader, Images])
def test_a_folder_that_stays_away_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: type
) -> None:
    monkeypatch.setattr(pipeline.loader, "PAUSES", (0.0, 0.0))
    shard_set = write(Pictures(24), tmp_path / "shards", samples_per_shard=8)
    if reader is Loader:
        batches: Any = Loader(shard_set, [SMALL], batch_size_per_rank=8)
    else:
        batches = Images(shard_set, size=16)
    (tmp_path / "shards").rename(tmp_path / "away")
    with pytest.raises(Unreachable, match=r"shards: is not there any more. Is its disk mounted\?"):
        next(iter(batches))


def test_a_damaged_set_on_a_disk_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.loader, "PAUSES", (60.0,))
    shard_set = write(Pictures(24), tmp_path / "shards", samples_per_shard=8)
    (tmp_path / "shards" / "00001.tar").unlink()
    searched: list[None] = []
    with (
        pytest.raises(ValueError, match=r"00001\.tar is missing"),
        Loader(
            shard_set, [SMALL], batch_size_per_rank=8, searching=lambda: searched.append(None)
        ) as loader,
    ):
        list(loader)
    assert len(searched) > 2  # it says that it gets on
