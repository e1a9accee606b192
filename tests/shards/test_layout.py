"""Opening a shard set: what is whole opens fast, what is not is refused with a remedy."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.layout import FORMAT, Manifest, Shard, ShardSet, open_shards
from shards.source import Folder
from shards.write import write


@pytest.fixture
def shard_set(class_folders, tmp_path: Path) -> ShardSet:
    return write(Folder(root=class_folders()), tmp_path / "out", samples_per_shard=5)


def edit(shard_set: ShardSet, **changes: Any) -> None:
    path = shard_set.root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(root: Path) -> str:
    """The message, which must be of two lines at most, each worth reading."""
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        open_shards(root)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_what_was_written_opens_with_all_its_parts(shard_set: ShardSet):
    opened = open_shards(shard_set.root)
    assert opened == shard_set
    assert len(opened) == 12 == sum(shard.samples for shard in opened.manifest.shards)
    assert [path.name for path in opened.tars] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [path.name for path in opened.indexes] == ["00000.idx", "00001.idx", "00002.idx"]
    assert all(path.is_file() for path in opened.tars + opened.indexes)
    assert opened.manifest.classes == ["class_00", "class_01", "class_02"]
    assert opened.manifest.extensions == ["jpg"]


def test_a_manifest_survives_its_json(shard_set: ShardSet):
    manifest = replace(shard_set.manifest, classes=["ä", "b c"], command="python -m 'x y'")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path):
    message = refusal(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in message
    assert "expected a folder of shards" in message
    assert "python -m tools.shard" in message


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in refusal(tmp_path / "file")


def test_an_empty_folder_is_refused(tmp_path: Path):
    message = refusal(tmp_path)
    assert f"{tmp_path} is empty" in message
    assert "Make one: python -m tools.shard" in message


def test_a_folder_of_other_things_is_refused(class_folders):
    message = refusal(class_folders())
    assert "holds no shards (class_00, …) and no manifest.json" in message
    assert "--out" in message


def test_tars_without_a_manifest_are_refused(shard_set: ShardSet):
    (shard_set.root / "manifest.json").unlink()
    message = refusal(shard_set.root)
    assert "holds 3 tar files but no manifest.json, which is written last" in message
    assert "writing did not finish" in message
    assert "python -m tools.shard" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b'{"format": 1, "sour', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON (not even text)"),
        (b"[]", 'has no "format"'),
        (b'{"format": 1}', "lacks source, split, samples, classes, extensions, shards"),
    ],
)
def test_a_broken_manifest_is_refused(shard_set: ShardSet, content: bytes, says: str):
    (shard_set.root / "manifest.json").write_bytes(content)
    message = refusal(shard_set.root)
    assert f"{shard_set.root / 'manifest.json'} {says}" in message
    assert "Write it again: python -m tools.shard" in message


def test_a_manifest_of_another_format_is_refused(shard_set: ShardSet):
    edit(shard_set, format=FORMAT + 1)
    message = refusal(shard_set.root)
    assert f"has format {FORMAT + 1}, but this version of viewrank reads {FORMAT}" in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": "12"}, "is damaged: samples is '12', expected int"),
        ({"classes": "cat"}, "is damaged: classes is 'cat', expected a list"),
        ({"extensions": [1]}, "is damaged: extensions[0] is 1, expected str"),
        ({"statistics": {}}, "lacks statistics.median_shorter_side"),
        ({"shards": [{"name": "00000"}]}, "lacks shards[0].samples, shards[0].bytes"),
        ({"samples": 13}, "contradicts itself: samples is not the sum over its shards"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(shard_set: ShardSet, changes: Any, says: str):
    edit(shard_set, **changes)
    assert says in refusal(shard_set.root)


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_missing_file_is_refused(shard_set: ShardSet, suffix: str):
    path = shard_set.root / f"00001.{suffix}"
    path.unlink()
    message = refusal(shard_set.root)
    assert f"{path} is missing, but manifest.json lists it" in message
    assert "Copy it again, or write the shards again" in message


def test_a_truncated_tar_is_refused(shard_set: ShardSet):
    path = shard_set.root / "00002.tar"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    message = refusal(shard_set.root)
    assert f"{path} has {size - 1:,} bytes, but manifest.json says {size:,}" in message
    assert "it is truncated. Copy it again" in message


def test_a_tar_that_is_too_long_is_refused(shard_set: ShardSet):
    with open(shard_set.root / "00000.tar", "ab") as file:
        file.write(bytes(512))
    assert "it is not the tar that was written" in refusal(shard_set.root)


@pytest.mark.parametrize("line", [b"v1.2 3\n", b"v1.1 4\n", b"", b"v1.2 4"])
def test_an_index_of_another_length_or_version_is_refused(shard_set: ShardSet, line: bytes):
    path = shard_set.root / "00001.idx"
    path.write_bytes(line)
    message = refusal(shard_set.root)
    assert f"{path} starts with {line.decode().strip()!r}" in message
    assert "expects 'v1.2 4'" in message
    assert f"wds2idx {shard_set.root / '00001.tar'} {path}" in message


def test_ten_thousand_shards_open_within_a_second(shard_set: ShardSet):
    count = 10_000
    shards = [Shard(f"{i:05d}", 5, 0, "0" * 64) for i in range(count)]
    for shard in shards:
        (shard_set.root / f"{shard.name}.tar").write_bytes(b"")
        (shard_set.root / f"{shard.name}.idx").write_bytes(b"v1.2 5\n")
    manifest = replace(shard_set.manifest, shards=shards, samples=5 * count)
    (shard_set.root / "manifest.json").write_text(manifest.to_json())
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        assert len(open_shards(shard_set.root)) == 5 * count
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1
