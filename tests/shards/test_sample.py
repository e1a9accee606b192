"""The generated set: read back by torchvision, and measured by rules that must fail on it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from shards.source.generated import draw, generated
from shards.source.generated.draw import portrait
from shards.source.generated.generated import Generated, generate_coco, generate_stl10
from shards.source.generated.kinds import CLASSES, KINDS
from shards.writing.write import write

COUNTS = {"train": 300, "test": 300, "unlabeled": 12}
SMALL = {"train": 10, "test": 10, "unlabeled": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    generate_stl10(folder, seed=3, **COUNTS)
    return folder


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read binaries that are not the official ones."""
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda _: True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def colour_means(dataset: torchvision.datasets.STL10) -> np.ndarray:
    return dataset.data.mean((2, 3), dtype=np.float64)


# ── STL-10 ──────────────────────────────────────────────────────────────────────────────────────


def test_torchvision_reads_back_what_was_drawn(root: Path):
    for split, number in (("train", 0), ("test", 1), ("unlabeled", 2)):
        read = torchvision.datasets.STL10(root, split=split)
        assert len(read) == COUNTS[split]
        assert read.classes == CLASSES
        for index in (0, 11):
            image, label = read[index]
            kinds = [label] if split != "unlabeled" else range(10)
            drawn = [portrait(k, np.random.default_rng([3, number, index])) for k in kinds]
            assert any(np.array_equal(np.asarray(image), d.transpose(1, 2, 0)) for d in drawn)


def test_labels_are_balanced_and_shuffled(root: Path):
    for split in ("train", "test"):
        labels = torchvision.datasets.STL10(root, split=split).labels
        assert labels is not None
        assert np.bincount(labels, minlength=10).tolist() == [COUNTS[split] // 10] * 10
        assert len(np.unique(labels.reshape(-1, 10), axis=0)) > 20  # orders of the ten


def test_each_fold_is_a_balanced_fifth_of_the_training_images(root: Path):
    whole = torchvision.datasets.STL10(root, split="train")
    every = {image.tobytes() for image in whole.data}
    seen = set()
    for fold in range(10):
        read = torchvision.datasets.STL10(root, split="train", folds=fold)
        assert read.labels is not None
        assert np.bincount(read.labels, minlength=10).tolist() == [6] * 10
        images = {image.tobytes() for image in read.data}
        assert len(images) == 60
        assert images <= every
        seen.add(frozenset(images))
    assert len(seen) == 10


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate_stl10(tmp_path / name, seed=seed, **SMALL)
        generate_coco(tmp_path / name / "coco", seed=seed, train=2, val=1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    changed = {name for name in a if a[name] != c[name]}
    assert {"stl10_binary/train_X.bin", "coco/train2017/000000000001.jpg"} <= changed


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path, root: Path):
    generate_stl10(tmp_path, seed=3, **SMALL)
    for name in ("train_X.bin", "train_y.bin", "test_X.bin", "unlabeled_X.bin"):
        small, large = (f / "stl10_binary" / name for f in (tmp_path, root))
        assert large.read_bytes().startswith(small.read_bytes())


def test_no_two_images_are_alike(root: Path):
    data = np.concatenate([torchvision.datasets.STL10(root, split=split).data for split in COUNTS])
    assert len({image.tobytes() for image in data}) == sum(COUNTS.values())


# ── Difficulty ──────────────────────────────────────────────────────────────────────────────────


def test_mean_colour_does_not_tell_the_class(root: Path):
    train, test = (torchvision.datasets.STL10(root, split=s) for s in ("train", "test"))
    means = [colour_means(train)[train.labels == label].mean(0) for label in range(10)]
    distance = np.linalg.norm(colour_means(test)[:, None] - np.stack(means), axis=-1)
    right = np.mean(distance.argmin(1) == test.labels)
    assert right < 0.18  # chance is 0.1, and 0.017 is one standard deviation


def test_the_nearest_pixels_do_not_tell_the_class(root: Path):
    train, test = (torchvision.datasets.STL10(root, split=s) for s in ("train", "test"))
    rows = []
    for data in (train.data, test.data):
        coarse = data.reshape(-1, 3, 12, 8, 12, 8).mean((3, 5)).reshape(len(data), -1)
        coarse = coarse - coarse.mean(1, keepdims=True)
        rows.append(coarse / np.linalg.norm(coarse, axis=1, keepdims=True))
    assert train.labels is not None
    nearest = (rows[1] @ rows[0].T).argmax(1)
    assert np.mean(train.labels[nearest] == test.labels) < 0.3


@pytest.mark.parametrize("label", range(10), ids=CLASSES)
def test_a_specimen_is_large_and_leaves_background(label: int):
    """A view may be a fifth of the image, so the specimen must be most of what there is."""
    shares = []
    for index in range(20):
        u, v = np.meshgrid(*[np.linspace(-1.2, 1.2, 61, dtype=np.float32)] * 2)
        surface = KINDS[label](u, v, np.random.default_rng(index))
        assert surface.depth.dtype == surface.tone.dtype == np.float32
        assert surface.depth[30, 30] > 0  # the centre is inside
        # The window reaches to 1.2, and bending moves the outline by up to 0.06.
        assert surface.depth[np.hypot(u, v) > 1.14].max() < 0
        assert surface.tone.min() >= 0
        assert surface.tone.max() <= 1
        shares.append(np.mean(surface.depth > 0) * 1.2**2)  # of the square it is inscribed in
    assert 0.2 < np.mean(shares) < 0.85


# ── COCO ────────────────────────────────────────────────────────────────────────────────────────


def test_generated_scenes_are_written_with_their_categories(tmp_path: Path):
    source = Generated(root=tmp_path / "root", split="val2017", portion=0.05)
    shard_set = write(source, tmp_path / "out")
    assert shard_set.manifest.categories == tuple(CLASSES)


def test_coco_annotations_fit_the_files(tmp_path: Path):
    root = tmp_path / "coco"
    generate_coco(root, train=6, val=3)
    ids: list[int] = []
    for split, count in (("train2017", 6), ("val2017", 3)):
        instances = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        files = sorted(p.name for p in (root / split).iterdir())
        assert [image["file_name"] for image in instances["images"]] == files
        assert len(files) == count
        assert [category["name"] for category in instances["categories"]] == CLASSES
        size = {}
        for image in instances["images"]:
            with Image.open(root / split / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
                assert opened.format == "JPEG"
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            assert 320 <= image["width"] <= 480
            assert 240 <= image["height"] <= 360
            size[image["id"]] = image["width"], image["height"]
        assert {a["image_id"] for a in instances["annotations"]} == set(size)
        for annotation in instances["annotations"]:
            left, top, width, height = annotation["bbox"]
            assert min(left, top) >= 0
            assert min(width, height) > 0
            assert left + width <= size[annotation["image_id"]][0]
            assert top + height <= size[annotation["image_id"]][1]
            assert 0 < annotation["area"] <= width * height
            assert 1 <= annotation["category_id"] <= 10
        ids += [*size, *(annotation["id"] for annotation in instances["annotations"])]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("label", range(10), ids=CLASSES)
def test_a_box_is_tight_around_what_is_painted(label: int):
    for x, y in ((150.0, 120.0), (20.0, 120.0), (290.0, 230.0)):  # whole, and cut by borders
        canvas_CHW = np.zeros((3, 240, 300), np.float32)  # black: shadows do not show
        box = draw._specimen(canvas_CHW, label, x, y, 80.0, np.random.default_rng(label))
        painted = canvas_CHW.max(0) > 0.02
        rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 2
        assert np.array([box.left, box.top, box.right, box.bottom]) == pytest.approx(tight, abs=1.5)
        assert box.area == pytest.approx(painted.sum() / 4, rel=0.08)
        assert 0 <= box.left < box.right <= 150
        assert 0 <= box.top < box.bottom <= 120


# ── Source ──────────────────────────────────────────────────────────────────────────────────────


def test_the_source_generates_once_and_reads_by_the_stl10_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = Generated(root=tmp_path, split="train", portion=0.01)
    assert len(first) == 10
    assert first.classes == CLASSES
    assert sorted(first[i].label for i in range(10)) == list(range(10))
    monkeypatch.setattr(generated, "portrait", None)  # would fail if anything was drawn again
    again = Generated(root=tmp_path, split="train+unlabeled", portion=0.01)
    assert len(again) == 40
    assert np.array_equal(again[0].image, first[0].image)
    assert again[39].label == -1
    read = torchvision.datasets.STL10(tmp_path, split="train")
    assert np.array_equal(first[4].image, np.asarray(read[4][0]))
    assert first.fingerprint() not in (b"", again.fingerprint())


def test_the_source_reads_scenes_by_the_coco_source(tmp_path: Path):
    scenes = Generated(root=tmp_path, split="val2017", portion=0.01)
    assert len(scenes) == 10
    assert isinstance(scenes[0].image, bytes) and scenes[0].image.startswith(b"\xff\xd8")
    assert scenes[0].metadata["annotations"][0]["category"] in CLASSES


def test_another_set_in_the_folder_is_refused_by_name(tmp_path: Path):
    Generated(root=tmp_path, split="train", portion=0.01)
    with pytest.raises(FileExistsError, match=r"'seed': 0.*asked for is.*'seed': 5.*--root"):
        Generated(root=tmp_path, split="train", portion=0.01, generation_seed=5)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        generate_stl10(tmp_path, **SMALL)
    (tmp_path / "real" / "stl10_binary").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="it was not generated"):
        Generated(root=tmp_path / "real", split="train")


def test_a_remote_root_is_refused():
    with pytest.raises(ValueError, match=r"s3://bucket/a is not on this machine"):
        Generated(root="s3://bucket/a")


def test_impossible_sizes_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="train=9"):
        generate_stl10(tmp_path, train=9)
    with pytest.raises(ValueError, match="val=0"):
        generate_coco(tmp_path / "coco", val=0)
    with pytest.raises(ValueError, match="portion=0"):
        Generated(root=tmp_path, portion=0)
    assert not any(tmp_path.iterdir())


# ── Interrupted ─────────────────────────────────────────────────────────────────────────────────


def test_an_interrupted_generator_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generated, "_folds", interrupted)  # the last but one thing to be written
    monkeypatch.setattr(generated, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_stl10(tmp_path, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        generate_coco(tmp_path / "coco", train=1, val=1)
    assert not any(tmp_path.iterdir())


def test_a_killed_generator_leaves_nothing_that_looks_complete(tmp_path: Path):
    program = (
        "from pathlib import Path; from shards.source.generated.generated import generate_stl10; "
        f"generate_stl10(Path({str(tmp_path)!r}), train=100_000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(generated.__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size for p in tmp_path.glob(".stl10_binary-*/train_X.bin")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "stl10_binary").exists()
    assert len(Generated(root=tmp_path, split="test", portion=0.01)) == 10


def test_the_slower_of_two_generators_accepts_the_same_set(tmp_path: Path):
    with generated._written_aside(tmp_path / "stl10_binary") as aside:
        generated._record(aside, 0, SMALL)
        generate_stl10(tmp_path, **SMALL)
    assert (tmp_path / "stl10_binary" / "train_X.bin").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["stl10_binary"]
