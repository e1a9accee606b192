"""STL-10: binaries written here from known pixels, read by torchvision beside us."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from shards.source import STL10

CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
COUNTS = {"train": 12, "test": 7, "unlabeled": 9}


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    """The official layout: [N, 3, column, row] bytes, labels from 1, folds of positions."""
    folder = tmp_path / "raw" / "stl10_binary"
    folder.mkdir(parents=True)
    for split, count in COUNTS.items():
        row, column = np.mgrid[:96, :96]
        images_NHWC = np.stack(
            [np.stack([row + n, 2 * column, row * column + 7 * n], -1) for n in range(count)]
        ).astype(np.uint8)
        images_NHWC.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.arange(count) * 3 % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    folds = ["0 1 2 3", "2 3 4", *[str(n) for n in range(2, 10)]]
    (folder / "fold_indices.txt").write_text("".join(f"{line} \n" for line in folds))
    return tmp_path / "raw"


@pytest.mark.parametrize("split", ["train", "test", "unlabeled", "train+unlabeled"])
def test_every_pixel_and_label_is_that_of_torchvision(binaries: Path, split, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda _: True)
    oracle = torchvision.datasets.STL10(str(binaries), split=split)
    source = STL10(root=binaries, split=split)
    assert len(source) == len(oracle) == sum(COUNTS[part] for part in split.split("+"))
    for index in range(len(source)):
        image, label = oracle[index]
        sample = source[index]
        assert isinstance(sample.image, np.ndarray)
        assert sample.image.dtype == np.uint8 and sample.image.flags.c_contiguous
        assert np.array_equal(sample.image, np.asarray(image))
        assert (sample.label, sample.id) == (label, index)
    assert len({source[index].key for index in range(len(source))}) == len(source)


def test_rows_and_columns_are_not_exchanged(binaries: Path):
    image = STL10(root=binaries, split="test")[3].image
    assert isinstance(image, np.ndarray)
    assert image[10, 50].tolist() == [10 + 3, 100, (500 + 21) % 256]


def test_classes_folds_and_origin_are_kept(binaries: Path):
    source = STL10(root=binaries)
    assert source.split == "train+unlabeled" and source.classes == CLASSES
    assert source[2].metadata == {"split": "train", "index": 2, "folds": [0, 1, 2]}
    assert source[11].metadata == {"split": "train", "index": 11, "folds": []}
    assert source[12].metadata == {"split": "unlabeled", "index": 0}
    assert (source[11].key, source[12].key) == ("train-000011", "unlabeled-000000")
    assert STL10(root=binaries, split="unlabeled").classes == []


def test_the_folder_of_the_binaries_itself_is_accepted_and_folds_may_be_absent(binaries: Path):
    folder = binaries / "stl10_binary"
    (folder / "fold_indices.txt").unlink()
    source = STL10(root=folder, split="train")
    assert source[0].metadata == {"split": "train", "index": 0}
    assert "no folds" in source.notes[0]


def test_it_is_small_when_pickled_and_its_fingerprint_is_that_of_its_list(binaries: Path):
    source = STL10(root=str(binaries))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[5].image, source[5].image)
    assert again.fingerprint() == source.fingerprint() == STL10(root=binaries).fingerprint()
    assert source.fingerprint() != STL10(root=binaries, split="train").fingerprint()
    labels = binaries / "stl10_binary" / "train_y.bin"
    labels.write_bytes(labels.read_bytes()[::-1])
    assert source.fingerprint() != STL10(root=binaries).fingerprint()


def test_binaries_that_shrank_are_an_unreadable_file(binaries: Path):
    source = STL10(root=binaries, split="train")
    (binaries / "stl10_binary" / "train_X.bin").write_bytes(bytes(27648 * 3 + 1))
    assert source[2].label >= 0
    with pytest.raises(OSError, match=r"train_X.bin has become shorter"):
        source[3]


def test_a_remote_root_is_refused():
    with pytest.raises(ValueError, match=r"s3://bucket/stl is not on this machine.*--root"):
        STL10(root="s3://bucket/stl")


def test_a_missing_split_names_the_file_and_the_remedy(binaries: Path):
    (binaries / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert len(STL10(root=binaries, split="train")) == 12
    with pytest.raises(FileNotFoundError) as refused:
        STL10(root=binaries)
    for piece in ("unlabeled_X.bin is missing", "split train+unlabeled", "--download true"):
        assert piece in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("test_X.bin", bytes(27648 + 5), "has 27,653 bytes; expected a multiple of 27,648"),
        ("test_X.bin", b"", "has 0 bytes"),
        ("test_y.bin", bytes([1] * 6), "has 6 labels, but test_X.bin has 7 images"),
        ("test_y.bin", bytes([0] * 7), "holds labels 0 to 0; expected 1 to 10"),
        ("class_names.txt", b"cat dog", "holds 2 names; expected 10"),
    ],
)
def test_damaged_binaries_are_refused(binaries: Path, name: str, content: bytes, says: str):
    (binaries / "stl10_binary" / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        STL10(root=binaries, split="test")
    assert str(binaries / "stl10_binary" / name) in str(refused.value)
    assert says in str(refused.value)
    assert "Unpack stl10_binary.tar.gz again." in str(refused.value)


def test_folds_that_are_no_numbers_are_refused(binaries: Path):
    (binaries / "stl10_binary" / "fold_indices.txt").write_text("1 2\n3 x\n")
    with pytest.raises(ValueError, match=r"fold_indices.txt, line 2, holds more than numbers"):
        STL10(root=binaries, split="train")


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch):
    def fail(self: object, root: str, **flags: object) -> None:
        Path(root).mkdir()
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision.datasets.STL10, "__init__", fail)
    with pytest.raises(ValueError) as refused:
        STL10(root=tmp_path / "raw", download=True)
    assert not (tmp_path / "raw").exists()
    assert "could not be downloaded" in str(refused.value)
    assert "unpack it, and leave --download out" in str(refused.value)


def test_a_root_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        STL10(root=tmp_path / "nowhere")
