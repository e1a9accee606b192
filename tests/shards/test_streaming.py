"""A shard set as WebDataset's library reads it, against the set's own index and Pillow."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.compat import WebDataset

from shards import as_webdataset
from shards.health.repair import repair
from shards.layout import ShardSet, open_shards
from shards.source import ImageFolder
from shards.subset.selection import select
from shards.tar import component, components, index_lines
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures


def by_index(shard_set: ShardSet) -> dict[int, tuple[int, np.ndarray]]:
    """Return {id: (label, pixels)}, read component by component with Pillow."""
    found = {}
    for tar, index in zip(shard_set.tars, shard_set.indexes, strict=True):
        with open(tar, "rb") as file:
            for line in index_lines(Path(index).read_bytes()):
                part = {name: component(file, line, name) or b"" for name in PARTS}
                label, sample = (int.from_bytes(part[n], "little", signed=True) for n in PARTS[:2])
                if part["rgb"]:
                    shape = np.frombuffer(part["shape.i64"], np.int64)
                    pixels = np.frombuffer(part["rgb"], np.uint8).reshape(shape)
                else:
                    image = Image.open(io.BytesIO(part["jpg"] or part["png"]))
                    pixels = np.asarray(image.convert("RGB"))
                found[sample] = (label, pixels)
    return found


PARTS = ("y.i64", "id.i64", "jpg", "png", "rgb", "shape.i64")


def streamed(stream: Any) -> list[tuple[int, int, np.ndarray]]:
    return [(s["id"], s["label"], np.asarray(s["image"])) for s in stream]


@pytest.mark.parametrize("encoding", ["png", "raw", "jpeg:90"])
@pytest.mark.parametrize("shuffle", [0, 5])
def test_every_sample_comes_once_as_it_is_stored(
    make_shard_set: MakeShardSet, encoding: str, shuffle: int
) -> None:
    shard_set = make_shard_set(20, encoding=encoding)
    expected, found = by_index(shard_set), streamed(as_webdataset(shard_set.root, shuffle=shuffle))
    assert sorted(sample for sample, _, _ in found) == sorted(expected)
    for sample, label, pixels in found:
        assert label == expected[sample][0] and np.array_equal(pixels, expected[sample][1])


def test_it_is_a_webdataset_and_goes_on_with_its_methods(make_shard_set: MakeShardSet) -> None:
    stream: Any = as_webdataset(make_shard_set(20).root)
    assert issubclass(type(stream), WebDataset)
    ids = [sample for batch, _ in stream.to_tuple("id", "label").batched(6) for sample in batch]
    assert sorted(ids) == list(range(20))


def test_the_workers_of_a_data_loader_share_the_shards(make_shard_set: MakeShardSet) -> None:
    stream = as_webdataset(make_shard_set(42).root, shuffle=4).to_tuple("id")
    loader: Any = torch.utils.data.DataLoader(cast(Any, stream), batch_size=None, num_workers=2)
    assert sorted(int(sample) for (sample,) in loader) == list(range(42))


def test_a_subset_gives_its_own_samples(tmp_path: Path) -> None:
    shard_set = write(Pictures(30), str(tmp_path / "set"), samples_per_shard=8)
    subset = select(shard_set, "some", classes=["class 1", "class 4"])
    assert isinstance(subset, ShardSet)
    found = streamed(as_webdataset(subset.root))
    assert sorted(sample for sample, _, _ in found) == [1, 4, 11, 14, 21, 24]
    assert {label for _, label, _ in found} == {1, 4}


def test_what_a_repair_has_left_out_is_not_streamed(tmp_path: Path) -> None:
    shard_set = write(Pictures(30), str(tmp_path / "set"), samples_per_shard=8)
    line = index_lines(Path(shard_set.indexes[0]).read_bytes())[2]
    at = next(offset for name, offset, _, _ in components(line) if name == "y.i64")
    with open(shard_set.tars[0], "r+b") as tar:
        tar.seek(at)
        tar.write(b"\x07")
    repair(shard_set.root)
    found = streamed(as_webdataset(shard_set.root))
    assert len(found) == 29 == len(open_shards(shard_set.root))
    assert all(label == sample % 10 for sample, label, _ in found)


def test_a_class_whose_name_webdataset_passes_over_is_streamed(tmp_path: Path) -> None:
    for name in ("__ignore__", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / f"{number}.png")
    shard_set = write(ImageFolder(root=tmp_path / "images"), tmp_path / "out")
    assert len(streamed(as_webdataset(shard_set.root))) == 6


def test_a_folder_that_is_no_shard_set_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no files; expected a shard set"):
        as_webdataset(tmp_path)
