"""Folders of images: labels, order, keys, and what is stored of each format."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
import wds2idx
from PIL import Image
from webdataset.compat import WebDataset

from shards.source import Folder
from shards.write import write


def save(path: Path, **settings) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return pixels


def test_files_and_labels_are_those_of_torchvision(class_folders):
    root = class_folders(classes=4, per_class=3)
    oracle = torchvision.datasets.ImageFolder(str(root))
    source = Folder(root=root)
    assert source.classes == oracle.classes
    for index, (path, label) in enumerate(oracle.samples):
        sample = source[index]
        assert (sample.image, sample.label, sample.id) == (Path(path).read_bytes(), label, index)
        assert sample.metadata["file"] == os.path.relpath(path, root)
    assert len(source) == len(oracle.samples)


def test_a_split_is_a_folder_under_the_root(class_folders):
    whole = class_folders(name="data/train")
    source = Folder(root=whole.parent, split="train")
    assert source.split == "train" and source.classes == ["class_00", "class_01", "class_02"]
    assert source[0].metadata == {"file": "train/class_00/0000.jpg"}
    assert source[0].key == "class_00/0000"


def test_a_flat_folder_has_no_labels_and_counts_like_people(tmp_path: Path):
    for name in ("img10.png", "img9.png", "img1.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "readme.txt").touch()
    source = Folder(root=tmp_path)
    assert [source[i].key for i in range(len(source))] == ["img1", "img9", "img10"]
    assert source.classes == [] and {source[i].label for i in range(3)} == {-1}
    assert source.notes == ["1 files passed over: their names are not those of images"]


def test_classes_may_be_nested_linked_and_empty(tmp_path: Path):
    save(tmp_path / "in" / "cat" / "indoors" / "1.jpg")
    save(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "cat" / "loop").symlink_to(tmp_path / "in" / "cat")
    (tmp_path / "in" / "eel").mkdir()
    source = Folder(root=tmp_path / "in")
    assert [source[i].key for i in range(len(source))] == ["cat/indoors/1", "dog/2"]
    assert source.classes == ["cat", "dog"]
    assert source.notes == ["no images, so no class, in eel"]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp", "ppm"])
def test_what_is_neither_jpeg_nor_png_becomes_png_of_the_same_pixels(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    save(path, **({"lossless": True} if suffix == "webp" else {}))
    pixels = np.asarray(Image.open(path).convert("RGB"))
    sample = Folder(root=tmp_path)[0]
    assert sample.extension == "png"
    stored = Image.open(io.BytesIO(sample.image))
    assert stored.format == "PNG" and np.array_equal(np.asarray(stored.convert("RGB")), pixels)
    if suffix == "png":
        assert sample.image == path.read_bytes() and sample.metadata == {"file": "a.png"}
    else:
        assert sample.metadata["file"] == f"a.{suffix}"
        assert sample.metadata["stored_as_png_from"].split()[0] in {
            "BMP", "TIFF", "GIF", "WEBP", "PPM"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[(mode, "tif") for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16")],
        *[(mode, "png") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")],
        *[(mode, "jpg") for mode in ("L", "CMYK")],
    ],
)
def test_every_mode_is_stored_and_measured(tmp_path: Path, mode: str, suffix: str):
    (tmp_path / "in").mkdir()
    Image.new(mode, (6, 4)).save(tmp_path / "in" / f"a.{suffix}")
    statistics = write(Folder(root=tmp_path / "in"), tmp_path / "out").manifest.statistics
    white = mode == "CMYK"  # no ink
    assert statistics.mean == pytest.approx([float(white)] * 3)


def test_sixteen_bit_grey_is_measured_by_its_upper_bits(tmp_path: Path):
    (tmp_path / "in").mkdir()
    pixels = np.full((4, 4), 0x80FF, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    statistics = write(Folder(root=tmp_path / "in"), tmp_path / "out").manifest.statistics
    assert statistics.mean == pytest.approx([128 / 255] * 3, abs=1e-6)


def test_the_content_decides_what_a_file_is(tmp_path: Path):
    save(tmp_path / "a.jpg", format="PNG")
    save(tmp_path / "b.png", format="JPEG")
    save(tmp_path / "c.jpg", format="BMP")
    source = Folder(root=tmp_path)
    assert [source[i].extension for i in range(3)] == ["png", "jpg", "png"]
    assert source[0].image == (tmp_path / "a.jpg").read_bytes()


def test_awkward_names_give_keys_that_every_reader_agrees_on(tmp_path: Path):
    names = ["a.b.jpg", "a.b.png", "a b.jpg", "a-b.jpg", "a_b.jpg", "ä.jpg", "日本.jpg", "x'\".jpg"]
    names += ["v1.0/img.1.jpg", f"{'long' * 50}1.jpg", f"{'long' * 50}2.jpg", "c.JPEG", "c.png"]
    names += ["tab\there.jpg", "new\nline.jpg", "back\\slash.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    for name in names:
        save(tmp_path / "in" / "class" / name, format="PNG")
    source = Folder(root=tmp_path / "in")
    keys = [source[i].key for i in range(len(source))]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 90 and "." not in key and key.isascii() for key in keys)
    assert {"class/a-b", "class/a_b"} <= set(keys)  # a plain name stays what it is

    shard_set = write(source, tmp_path / "out")
    dataset = WebDataset([str(shard_set.tars[0])], shardshuffle=False)
    assert {sample["__key__"] for sample in dataset} == set(keys)
    with wds2idx.IndexCreator(
        str(shard_set.tars[0]), str(tmp_path / "oracle.idx"), verbose=False
    ) as oracle:
        oracle.create_index()
    assert shard_set.indexes[0].read_bytes() == (tmp_path / "oracle.idx").read_bytes()


def test_a_root_or_split_that_does_not_exist_is_refused(class_folders):
    root = class_folders(name="data/train").parent
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        Folder(root=root / "nowhere")
    with pytest.raises(FileNotFoundError) as refused:
        Folder(root=root, split="val")
    assert f"{root} has no folder 'val'; it holds train." in str(refused.value)


def test_a_folder_without_images_is_refused(tmp_path: Path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "notes.txt").touch()
    with pytest.raises(ValueError) as refused:
        Folder(root=tmp_path)
    assert f"{tmp_path} holds no images (jpg, jpeg, png" in str(refused.value)
    assert "--root" in str(refused.value)


def test_splits_are_not_taken_for_classes(class_folders):
    root = class_folders(name="data/train").parent
    class_folders(name="data/test")
    with pytest.raises(ValueError) as refused:
        Folder(root=root)
    assert "holds test, train, which look like splits, not like classes" in str(refused.value)
    assert "--split test" in str(refused.value)


def test_images_beside_class_folders_are_refused(class_folders):
    root = class_folders()
    save(root / "stray.jpg")
    with pytest.raises(ValueError) as refused:
        Folder(root=root)
    assert "holds both images (stray.jpg, …) and folders of images (class_00, …)" in str(
        refused.value
    )
