"""Shard sets in an object store: a local S3 server (moto), and the same promises as on a disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from shards import as_webdataset
from shards.engine import LocalWorkers
from shards.health.repair import repair
from shards.health.verification import verify
from shards.layout import open_shards
from shards.source import ImageFolder
from shards.storage import folder_at
from shards.writing.write import Progress, write
from tests.conftest import Pictures
from tests.object_store import BUCKET, object_store

pytest.importorskip("s3fs", reason="the optional package s3fs is not installed")
pytest.importorskip("moto", reason="moto, which plays S3, is not installed")


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    with object_store():
        yield


def test_a_set_in_a_store_has_the_bytes_of_one_on_a_disk(tmp_path: Path) -> None:
    here = write(Pictures(30), tmp_path / "here", samples_per_shard=7, engine=LocalWorkers(2))
    there = write(Pictures(30), f"{BUCKET}/same", samples_per_shard=7, engine=LocalWorkers(2))
    assert there.manifest == here.manifest
    for name in here.folder.sizes():
        assert there.folder.read(name) == here.folder.read(name), name
    assert there.folder.sizes() == here.folder.sizes()


def test_training_reads_every_sample_from_a_store(tmp_path: Path) -> None:
    write(Pictures(24), f"{BUCKET}/train", samples_per_shard=9)
    shard_set = open_shards(f"{BUCKET}/train")
    group = ViewGroup(policy=SimCLRViews(), count=2, size=16)
    with Loader(shard_set, [group], batch_size_per_rank=8) as loader:
        batches = list(loader)
    assert sorted(i for batch in batches for i in batch.id_B.tolist()) == list(range(24))
    here = write(Pictures(24), tmp_path / "train", samples_per_shard=9)
    with Loader(here, [group], batch_size_per_rank=8) as loader:
        for remote, local in zip(batches, loader, strict=True):
            assert remote.id_B.tolist() == local.id_B.tolist()
            assert (remote.views[0] == local.views[0]).all()


def test_a_folder_in_a_store_is_a_source(class_folders, tmp_path: Path) -> None:
    root = class_folders(classes=2, per_class=4)
    store = folder_at(f"{BUCKET}/images")
    for path in root.rglob("*.jpg"):
        store.write(str(path.relative_to(root)), path.read_bytes())
    there = write(ImageFolder(root=f"{BUCKET}/images"), tmp_path / "there", samples_per_shard=3)
    here = write(ImageFolder(root=root), tmp_path / "here", samples_per_shard=3)
    assert there.manifest == here.manifest


def test_a_broken_off_writing_does_not_open_and_goes_on(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.samples == 20:
            raise KeyboardInterrupt

    out = f"{BUCKET}/broken"
    with pytest.raises(KeyboardInterrupt):
        write(Pictures(30), out, samples_per_shard=7, progress=interrupt)
    with pytest.raises(FileNotFoundError, match=r"3 shards but no manifest.*goes on there"):
        open_shards(out)
    calls: list[Progress] = []
    write(Pictures(30), out, samples_per_shard=7, progress=calls.append)
    assert calls[0].resumed == 18  # three shards of six
    here = write(Pictures(30), tmp_path / "here", samples_per_shard=7)
    assert open_shards(out).manifest == here.manifest
    with pytest.raises(FileExistsError, match="already holds a shard set"):
        write(Pictures(30), out, samples_per_shard=7)


def test_damage_in_a_store_is_found_and_repaired() -> None:
    shard_set = write(Pictures(30), f"{BUCKET}/damaged", samples_per_shard=7)
    tar = bytearray(shard_set.folder.read("00001.tar"))
    tar[tar.index(b"\x89PNG") + 60] ^= 4
    shard_set.folder.write("00001.tar", bytes(tar))
    found = verify(shard_set.root)
    assert [problem.file for problem in found.problems] == ["00001.tar", "00001.tar"]
    assert found.problems[1].key
    assert len(repair(shard_set.root).quarantined) == 1
    assert verify(shard_set.root, deep=True).problems == []
    assert len(open_shards(shard_set.root)) == 29


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/nowhere is not a folder of shards"):
        open_shards(f"{BUCKET}/nowhere")
    with pytest.raises(ValueError, match=r"nosuch://x cannot be opened"):
        open_shards("nosuch://x")
    with pytest.raises(OSError, match="s3://no-such-bucket/x"):
        write(Pictures(3), "s3://no-such-bucket/x")


def test_a_set_in_a_store_is_a_webdataset() -> None:
    shard_set = write(Pictures(20), f"{BUCKET}/stream", samples_per_shard=7)
    assert sorted(sample["id"] for sample in as_webdataset(shard_set.root)) == list(range(20))
