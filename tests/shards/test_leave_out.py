"""Samples that cannot be read are found, and what is left is read once an epoch."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from shards.health.leave_out import find_bad, leave_out
from shards.health.verification import explain_failure
from shards.layout import ShardSet, open_shards
from shards.source.source import Sample
from shards.tar import components, index_lines
from shards.writing.prepare import Preparation
from shards.writing.write import shuffled, write
from tests.conftest import MakeShardSet, Pictures
from training.run import quarantine


def place_of(root: Path, shard: str, position: int) -> tuple[str, int, int]:
    """Key, offset and size of a sample's image."""
    line = index_lines((root / f"{shard}.idx").read_bytes())[position]
    ((offset, size, name),) = [(at, n, m) for e, at, n, m in components(line) if e == "png"]
    return name.partition(".")[0], offset, size


@pytest.fixture
def damaged(make_shard_set: MakeShardSet, tmp_path: Path) -> tuple[ShardSet, dict[str, str]]:
    """A set of 42 of which three images are zeros, and where."""
    root = tmp_path / "set"
    shutil.copytree(make_shard_set(42).root, root)
    keys = {}
    for shard, position in (("00000", 0), ("00003", 6), ("00003", 2)):
        key, offset, size = place_of(root, shard, position)
        with (root / f"{shard}.tar").open("r+b") as tar:
            tar.seek(offset)
            tar.write(bytes(size))
        keys[key] = shard
    return open_shards(root), keys


def seen(shard_set: ShardSet) -> list[int]:
    group = ViewGroup(count=2, size=16, policy=SimCLRViews(blur=0.0))
    with Loader(shard_set, [group], batch_size_per_rank=3, shuffle_buffer=4) as loader:
        return sorted(int(i) for batch in loader for i in batch.id_B)


def test_all_that_is_left_is_seen_once(
    damaged: tuple[ShardSet, dict[str, str]], tmp_path: Path
) -> None:
    shard_set, keys = damaged
    bad = find_bad(shard_set)
    assert {key: shard for shard, found in bad.items() for key in found} == keys
    before = {path: path.read_bytes() for path in Path(shard_set.root).iterdir()}
    left = leave_out(shard_set, bad, tmp_path / "out")
    assert len(left) == 39
    assert seen(left) == sorted(set(range(42)) - {int(key) for key in keys})
    assert before == {path: path.read_bytes() for path in Path(shard_set.root).iterdir()}


def test_a_set_that_lacks_samples_already_is_blamed_for_the_others_alone(
    damaged: tuple[ShardSet, dict[str, str]], tmp_path: Path
) -> None:
    shard_set, keys = damaged
    first = next(key for key, shard in keys.items() if shard == "00000")
    sound = place_of(Path(shard_set.root), "00003", 1)[0]
    one = leave_out(shard_set, {"00000": {first: "x"}, "00003": {sound: "x"}}, tmp_path / "one")
    others = {key for key, shard in keys.items() if shard == "00003"}
    assert {key for found in find_bad(one).values() for key in found} == others
    explained = explain_failure(one)
    assert explained is not None and "00003.tar" in explained and "00000.tar" not in explained
    rest = leave_out(one, {"00003": dict.fromkeys(others, "x")}, tmp_path / "rest")
    assert find_bad(rest) == {} and explain_failure(rest) is None


def test_a_shard_without_a_good_sample_goes_whole(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    shard_set = make_shard_set(42)
    root = Path(shard_set.root)
    count = shard_set.manifest.shards[0].samples
    bad = {"00000": {place_of(root, "00000", i)[0]: "x" for i in range(count)}}
    left = leave_out(shard_set, bad, tmp_path)
    assert len(left.tars) == len(shard_set.tars) - 1 and len(left) == 42 - count
    every = {
        shard.name: {place_of(root, shard.name, i)[0]: "x" for i in range(shard.samples)}
        for shard in shard_set.manifest.shards
    }
    with pytest.raises(ValueError, match=r"no sample of .* can be read"):
        leave_out(shard_set, every, tmp_path)


class WithOneCut(Pictures):
    """Pictures of which one is a file that was cut off."""

    cut = int(shuffled(42, 0)[-1])

    def __getitem__(self, index: int) -> Sample:
        sample, file = super().__getitem__(index), io.BytesIO()
        if index != self.cut:
            return sample
        Image.fromarray(self.pixels(index)).save(file, "JPEG")
        return replace(sample, image=file.getvalue()[:-100])


def test_samples_in_quarantine_hide_none_of_an_intact_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written undecodable has the right sums: only decoding its shard finds it."""
    monkeypatch.setattr("shards.writing.write.MEASURED", 1)  # for its colours the first is decoded
    root, run = tmp_path / "set", tmp_path / "run"
    run.mkdir()
    how = Preparation(verify_decode=False)
    shard_set = write(WithOneCut(42), root, samples_per_shard=8, preparation=how)
    zeros, offset, size = place_of(root, "00000", 2)
    with (root / "00000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    (found,) = quarantine.extend(run, shard_set, limit=10)
    assert found.startswith(f"00000.tar, sample {zeros} ")
    assert quarantine.extend(run, shard_set, limit=1) == []
    (found,) = quarantine.extend(run, shard_set, limit=2)
    assert found == f"00005.tar, sample {WithOneCut.cut:06d} cannot be decoded"
    left, count = quarantine.without(run, shard_set, rank=0)
    assert count == 2 and len(left) == 40
    assert {*seen(left)}.isdisjoint({int(zeros), WithOneCut.cut})
    assert quarantine.extend(run, shard_set, limit=10) == []


def test_a_sound_set_has_nothing_to_find(make_shard_set: MakeShardSet) -> None:
    assert find_bad(make_shard_set(42)) == {}
