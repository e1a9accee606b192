"""Folders of images: labels, order, keys, and what is stored of each format."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from shards.source import ImageFolder
from shards.writing.write import write
from shards.writing.writing_plan import is_of


def save(path: Path, **settings) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **{"format": "PNG"} | settings)
    return pixels


def test_files_and_labels_are_those_of_torchvision(class_folders):
    root = class_folders(classes=4, per_class=3)
    oracle = torchvision.datasets.ImageFolder(str(root))
    source = ImageFolder(root=root)
    assert source.classes == oracle.classes
    for index, (path, label) in enumerate(oracle.samples):
        sample = source[index]
        assert (sample.image, sample.label, sample.id) == (Path(path).read_bytes(), label, index)
        assert sample.metadata["file"] == os.path.relpath(path, root)
    assert len(source) == len(oracle.samples)


def test_a_split_is_a_folder_under_the_root(class_folders):
    whole = class_folders(name="data/train")
    source = ImageFolder(root=whole.parent, split="train")
    assert source.split == "train" and source.classes == ["class_00", "class_01", "class_02"]
    assert source[0].metadata == {"file": "train/class_00/0000.jpg"}
    assert source[0].key == "class_00/0000"


def test_a_flat_folder_has_no_labels_and_counts_like_people(tmp_path: Path):
    for name in ("img10.png", "img9.png", "img1.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "readme.txt").touch()
    source = ImageFolder(root=tmp_path)
    assert [source[i].key for i in range(len(source))] == ["img1", "img9", "img10"]
    assert source.classes == [] and {source[i].label for i in range(3)} == {-1}
    assert source.notes == ["1 files passed over: their names are not those of images (1 .txt)"]


def test_classes_may_be_nested_linked_and_empty(tmp_path: Path):
    save(tmp_path / "in" / "cat" / "indoors" / "1.jpg")
    save(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "cat" / "loop").symlink_to(tmp_path / "in" / "cat")
    (tmp_path / "in" / "eel").mkdir()
    source = ImageFolder(root=tmp_path / "in")
    assert [source[i].key for i in range(len(source))] == ["cat/indoors/1", "dog/2"]
    assert source.classes == ["cat", "dog"]
    assert source.notes == ["no images, so no class, in eel"]


def test_every_file_with_the_name_of_an_image_is_a_sample_as_it_is(tmp_path: Path):
    for name in ("a.jpg", "b.PNG", "c.TiFf", "d.webp", "e.jpeg"):
        (tmp_path / name).write_bytes(f"no image: {name}".encode())
    save(tmp_path / "f.jpg", format="BMP")
    (tmp_path / "g.jpg").touch()
    (tmp_path / "h.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name in ("i.txt", "j.TXT", "jpg", "k.csv"):
        (tmp_path / name).touch()
    source = ImageFolder(root=tmp_path)
    assert len(source) == 8
    for index, name in enumerate(
        ("a.jpg", "b.PNG", "c.TiFf", "d.webp", "e.jpeg", "f.jpg", "g.jpg")
    ):
        assert source[index].image == (tmp_path / name).read_bytes()
        assert source[index].metadata == {"file": name}
    with pytest.raises(OSError, match=r"h\.jpg"):
        source[7]
    assert source.notes == [
        "4 files passed over: their names are not those of images (2 .txt, 1 .csv, "
        "1 without an ending)"
    ]


def test_files_that_differ_in_their_ending_alone_have_keys_of_their_own(tmp_path: Path):
    names = ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.bmp", "b.jpg", "c.JPG", "c.jpg"]
    for name in names:
        save(tmp_path / "in" / name, format="PNG")
        save(tmp_path / "in2" / "x" / name, format="PNG")
    for root, plain in ((tmp_path / "in", "b"), (tmp_path / "in2", "x/b")):
        source = ImageFolder(root=root)
        keys = {source[i].key for i in range(len(source))}
        assert len(keys) == len(names) and plain in keys


def test_it_reads_from_a_store_as_from_a_disk(class_folders):
    root = class_folders(classes=11, per_class=2)
    (root / "class_05" / "deeper").mkdir()
    save(root / "class_05" / "deeper" / "1.jpg")
    (root / "class_00" / "readme.txt").touch()
    root.rename(root.parent / "train")
    url = f"file://{root.parent}"  # any protocol goes through fsspec
    local, remote = ImageFolder(root=root.parent / "train"), ImageFolder(root=url, split="train")
    assert len(local) == len(remote) == 23
    for index in range(23):
        here, there = local[index], remote[index]
        assert (here.key, here.image, here.label) == (there.key, there.image, there.label)
        assert there.metadata["file"] == f"train/{here.metadata['file']}"
    assert local.fingerprint() == remote.fingerprint() and local.notes == remote.notes
    with pytest.raises(FileNotFoundError, match="has no folder 'val'; it holds train"):
        ImageFolder(root=url, split="val")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ImageFolder(root=f"{url}/nowhere")


def test_it_pickles_in_few_bytes_and_its_fingerprint_changes_with_the_list(tmp_path: Path):
    for label in range(10):
        (tmp_path / f"class{label}").mkdir()
        for number in range(1000):
            (tmp_path / f"class{label}" / f"{number:08d}.jpg").touch()
    source = ImageFolder(root=str(tmp_path))
    pickled = pickle.dumps(source)
    assert len(pickled) < 22 * len(source)  # 12 of them are the name
    again = pickle.loads(pickled)
    assert [again[i] for i in (0, 999, 1000, 9999)] == [source[i] for i in (0, 999, 1000, 9999)]
    assert again[1000].key == "class1/00000000" and again[1000].label == 1
    with pytest.raises(IndexError):
        source[len(source)]
    assert again.fingerprint() == ImageFolder(root=tmp_path).fingerprint()
    (tmp_path / "class3" / "00000000.jpg").rename(tmp_path / "class4" / "a.jpg")
    assert again.fingerprint() != ImageFolder(root=tmp_path).fingerprint()


def test_awkward_names_give_keys_that_every_reader_agrees_on(tmp_path: Path):
    names = ["a.b.jpg", "a.b.png", "a b.jpg", "a-b.jpg", "a_b.jpg", "ä.jpg", "日本.jpg", "x'\".jpg"]
    names += ["v1.0/img.1.jpg", f"{'long' * 50}1.jpg", f"{'long' * 50}2.jpg", "c.JPEG", "c.png"]
    names += ["tab\there.jpg", "new\nline.jpg", "back\\slash.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    for name in names:
        save(tmp_path / "in" / "class" / name, format="PNG")
    source = ImageFolder(root=tmp_path / "in")
    keys = [source[i].key for i in range(len(source))]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 90 and "." not in key and key.isascii() for key in keys)
    assert {"class/a-b", "class/a_b"} <= set(keys)  # a plain name stays what it is


def test_a_root_or_split_that_does_not_exist_is_refused(class_folders):
    root = class_folders(name="data/train").parent
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        ImageFolder(root=root / "nowhere")
    with pytest.raises(FileNotFoundError) as refused:
        ImageFolder(root=root, split="val")
    assert f"{root} has no folder 'val'; it holds train." in str(refused.value)


def test_a_folder_without_images_is_refused(tmp_path: Path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "notes.txt").touch()
    with pytest.raises(ValueError) as refused:
        ImageFolder(root=tmp_path)
    assert f"{tmp_path} holds no images (jpg, jpeg, png" in str(refused.value)
    assert "--root" in str(refused.value)


def test_splits_are_not_taken_for_classes(class_folders):
    root = class_folders(name="data/train").parent
    class_folders(name="data/test")
    with pytest.raises(ValueError) as refused:
        ImageFolder(root=root)
    assert "holds test, train, which look like splits, not like classes" in str(refused.value)
    assert "--split test" in str(refused.value)


def test_images_beside_class_folders_are_refused(class_folders):
    root = class_folders()
    save(root / "stray.jpg")
    with pytest.raises(ValueError) as refused:
        ImageFolder(root=root)
    assert "holds both images (stray.jpg, …) and folders of images (class_00, …)" in str(
        refused.value
    )


# ── Splits, leftovers and deep classes ──────────────────────────────────────────────────────────


def images_in(root: Path, *names: str) -> Path:
    for name in names:
        save(root / name)
    return root


def labels(source: ImageFolder) -> dict[str, str]:
    """Class of each file."""
    samples = [source[i] for i in range(len(source))]
    return {sample.metadata["file"]: source.classes[sample.label] for sample in samples}


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train/cat/1.jpg", "val/cat/1.jpg", "annotations/notes.txt"], "train"),
        (["Training/glioma/1.jpg", "Testing/glioma/1.jpg"], "Testing"),
        (["train/cat/1.jpg", "valid/cat/1.jpg", "__MACOSX/train/._1.jpg"], "train"),
        (["TRAIN/cat/1.jpg", "TEST/cat/1.jpg", "extra/cat/1.jpg"], "TEST"),
        (["train_images/1.jpg", "test-set/1.jpg", "@eaDir/train/1.jpg"], "test-set"),
        (["train2017/1.jpg", "val2017/1.jpg", "unlabeled2017/1.jpg"], "train2017"),
        (["train/cat/1.jpg", "masks/cat.txt"], "train"),
        (["images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt"], "images/train"),
        (["data/Train/cat/1.jpg", "data/dev/cat/1.jpg"], "data/Train"),
        (["evaluation/1.jpg", "training_256/1.jpg"], "evaluation"),
    ],
)
def test_splits_are_not_taken_for_classes_whatever_lies_beside_them(
    tmp_path: Path, names: list[str], split: str
):
    for name in names:
        save(tmp_path / name, format="PNG")
    with pytest.raises(ValueError, match="which look like splits, not like classes") as refused:
        ImageFolder(root=tmp_path)
    assert f"Choose one: --split {split}; or" in str(refused.value)
    assert len(ImageFolder(root=tmp_path, split=split)) == 1
    # Whoever says that the first folder is the class means it.
    first = ImageFolder(root=tmp_path, class_of="first")
    assert set(labels(first).values()) == {
        name.partition("/")[0] for name in names if name.endswith(".jpg") and name[0] not in "_@"
    }


@pytest.mark.parametrize(
    "classes", [["bus", "train"], ["testudo", "trainer"], ["dev", "develop"], ["valley", "values"]]
)
def test_classes_that_only_sound_like_splits_are_classes(tmp_path: Path, classes: list[str]):
    source = ImageFolder(root=images_in(tmp_path, *(f"{name}/1.jpg" for name in classes)))
    assert source.classes == classes
    alone = {"bus": "train", "dev": "dev"}.get(classes[0])
    expected = f"taken for a class: {alone}; if it is a split, choose it: --split {alone}"
    assert source.notes == ([expected] if alone else [])


def test_splits_within_classes_are_named_and_no_deepest_classes(tmp_path: Path):
    images_in(tmp_path, *(f"{c}/{s}/1.jpg" for c in ("cat", "dog") for s in ("train", "test")))
    source = ImageFolder(root=tmp_path)
    assert source.classes == ["cat", "dog"]
    assert "cat holds test, train, which look like splits" in source.notes
    with pytest.raises(ValueError, match=r"cat holds test, train, .*--split cat/test"):
        ImageFolder(root=tmp_path, class_of="deepest")


def test_what_systems_leave_in_a_folder_is_no_sample(tmp_path: Path):
    images = ("cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg")
    left = ("@eaDir/cat/t.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/cat/1.jpg")
    left += ("cat/deep/@eaDir/2.jpg/t.jpg", "$RECYCLE.BIN/x.jpg", "#recycle/cat/1.jpg")
    hidden = (".ipynb_checkpoints/1-checkpoint.jpg", "cat/.ipynb_checkpoints/1.jpg", "cat/._1.jpg")
    hidden += (".thumbnails/1.jpg", "dog/.DS_Store", ".git/1.jpg")
    for name in (*images, *left, *hidden):
        save(tmp_path / name, format="PNG")
    (tmp_path / "dog" / "Thumbs.db").touch()
    for root in (tmp_path, f"file://{tmp_path}"):
        source = ImageFolder(root=root)
        assert tuple(labels(source)) == images and source.classes == ["cat", "dog"]
        assert source.notes == [
            "1 files passed over: their names are not those of images (1 .db)",
            "6 folders left out, which a system made: #recycle, $RECYCLE.BIN, @eaDir, __MACOSX",
        ]


@pytest.mark.parametrize(
    ("class_of", "classes"),
    [
        (None, ["a", "b"]),
        ("first", ["a", "b"]),
        ("deepest", ["a/airfield", "a/house/indoor", "a/house/outdoor", "b/bar", "b/house/indoor"]),
    ],
)
def test_the_first_or_the_deepest_folder_names_the_class(tmp_path: Path, class_of, classes):
    names = ["airfield/1.jpg", "house/outdoor/1.jpg", "house/outdoor/2.jpg", "house/indoor/1.jpg"]
    images_in(tmp_path, *(f"a/{name}" for name in names), "b/house/indoor/1.jpg", "b/bar/1.jpg")
    source = ImageFolder(root=tmp_path, class_of=class_of)
    assert source.classes == classes
    folders = {file: file.rpartition("/")[0] for file in labels(source)}
    depth = None if class_of == "deepest" else 1
    assert labels(source) == {
        file: "/".join(folder.split("/")[:depth]) for file, folder in folders.items()
    }
    advice = "all images lie deeper than the 2 class folders, such as in a/airfield: --class_of"
    assert any(note.startswith(advice) for note in source.notes) == (class_of is None)


@pytest.mark.parametrize("flat", [True, False])
def test_an_output_among_the_images_is_no_image(
    class_folders, tmp_path: Path, flat: bool, monkeypatch: pytest.MonkeyPatch
):
    whole = class_folders(classes=2, per_class=6)
    root = whole / "class_00" if flat else whole
    out, link, count = root / "out" / "shards", tmp_path / "link", 6 if flat else 12
    link.symlink_to(root)
    for number in range(2):
        (whole / "class_00" / f"000{number}.jpg").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="cannot be read or decoded: 2 not an image"):
        write(ImageFolder(root=root), out, max_missing=0)
    left = [*out.with_name("shards.partial").rglob("*.jpg")]
    assert left and all("quarantine" in path.parts for path in left)

    monkeypatch.chdir(root)
    shard_set = write(ImageFolder(root="."), "out/shards", max_missing=0.9)
    assert len(shard_set) == count - 2 and [*out.rglob("*.jpg")]
    for place in (root, ".", link, f"file://{root}"):
        assert len(ImageFolder(root=place)) == count
    assert is_of(shard_set, ImageFolder(root=root))


def test_a_class_may_be_called_quarantine(tmp_path: Path):
    source = ImageFolder(root=images_in(tmp_path, "healthy/1.jpg", "quarantine/1.jpg"))
    assert source.classes == ["healthy", "quarantine"]


def test_messages_and_notes_about_odd_names_stay_on_one_line(tmp_path: Path):
    images_in(tmp_path, "two\nlines/a/1.jpg", "two\nlines/b/1.jpg", "esc\x1b[2J/a/1.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    save(tmp_path / "esc\x1b[2J" / "notes.a\nb")
    source = ImageFolder(root=tmp_path)
    assert source.classes == ["esc\x1b[2J", "two\nlines"]  # data stay what they are
    assert all(note.isprintable() for note in source.notes) and len(source.notes) == 3
    assert "no images, so no class, in caf\\udce9" in source.notes
    save(tmp_path / "1.jpg")
    with pytest.raises(ValueError) as refused:
        ImageFolder(root=tmp_path)
    assert str(refused.value).isprintable()
