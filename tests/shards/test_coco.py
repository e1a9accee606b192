"""COCO: the official layout made here, and real images where they lie beside the project."""

import hashlib
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.source import COCO, ImageFolder
from shards.writing.write import write

REAL = Path(__file__).parents[3] / "shared" / "data" / "coco256.tar"
NAMES = ["000000000009.jpg", "000000000025.jpg", "000000000100.jpg"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for split in ("train2017", "unlabeled2017"):
        (root / split).mkdir(parents=True)
        for number, name in enumerate(NAMES):
            Image.new("RGB", (20 + number, 10)).save(root / split / name, quality=90 - number)
    images = [
        {"id": int(name[:12]), "file_name": name, "width": 20 + number, "height": 10}
        for number, name in enumerate(NAMES)
    ]
    boxes = [
        {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"id": 2, "image_id": 100, "category_id": 90, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 3, "image_id": 9, "category_id": 90, "bbox": [5, 5, 1, 1], "iscrowd": 0},
    ]
    boxes[0]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    categories = [{"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
    captions = [{"id": 7, "image_id": 25, "caption": "A giraffe."}]
    annotations = root / "annotations"
    annotations.mkdir()
    (annotations / "instances_train2017.json").write_text(
        json.dumps({"images": images[::-1], "annotations": boxes, "categories": categories})
    )
    (annotations / "captions_train2017.json").write_text(
        json.dumps({"images": images, "annotations": captions})
    )
    return root


def test_jpeg_bytes_and_annotations_are_kept(root: Path):
    source = COCO(root=root)
    assert [source[i].key for i in range(len(source))] == [name[:12] for name in NAMES]
    assert source.classes == []
    first, second, third = (source[i] for i in range(3))
    assert first.image == (root / "train2017" / NAMES[0]).read_bytes()
    assert (first.label, first.id, third.id) == (-1, 0, 2)
    assert first.metadata == {
        "file": f"train2017/{NAMES[0]}",
        "image_id": 9,
        "width": 20,
        "height": 10,
        "annotations": [
            {"id": 1, "bbox": [1, 2, 3.5, 4], "category_id": 18, "category": "dog", "iscrowd": 0},
            {
                "id": 3,
                "bbox": [5, 5, 1, 1],
                "category_id": 90,
                "category": "toothbrush",
                "iscrowd": 0,
            },
        ],
    }
    assert second.metadata["annotations"] == [] and second.metadata["captions"] == ["A giraffe."]
    assert [box["iscrowd"] for box in third.metadata["annotations"]] == [1]


def test_a_split_without_annotations_works(root: Path):
    source = COCO(root=root, split="unlabeled2017")
    assert len(source) == 3
    assert source[1].metadata == {"file": f"unlabeled2017/{NAMES[1]}"}
    assert "no boxes" in source.notes[0]


def test_image_info_stands_in_for_annotations(root: Path):
    info = {"images": [{"id": 9, "file_name": NAMES[0], "width": 20, "height": 10}]}
    (root / "annotations" / "image_info_unlabeled2017.json").write_text(
        json.dumps(info | {"categories": []})
    )
    source = COCO(root=root, split="unlabeled2017")
    assert source[0].metadata == {
        "file": f"unlabeled2017/{NAMES[0]}",
        "image_id": 9,
        "width": 20,
        "height": 10,
    }
    assert source.notes[1] == "2 images are not in the annotations"


def test_the_layout_of_2014_works(root: Path):
    (root / "train2017").rename(root / "val2014")
    annotations = root / "annotations"
    text = (annotations / "instances_train2017.json").read_text()
    for name in NAMES:
        (root / "val2014" / name).rename(root / "val2014" / f"COCO_val2014_{name}")
        text = text.replace(name, f"COCO_val2014_{name}")
    (annotations / "instances_val2014.json").write_text(text)
    source = COCO(root=root, split="val2014")
    assert source[0].key == "COCO_val2014_000000000009"
    assert len(source[0].metadata["annotations"]) == 2


def test_it_reads_from_a_store_as_from_a_disk(root: Path):
    local, remote = COCO(root=root), COCO(root=f"file://{root}")
    assert [local[i] for i in range(3)] == [remote[i] for i in range(3)]
    assert local.fingerprint() == remote.fingerprint()
    with pytest.raises(FileNotFoundError, match="it holds train2017, unlabeled2017"):
        COCO(root=f"file://{root}", split="val2017")


def test_it_pickles_and_its_fingerprint_changes_with_the_list(root: Path):
    source = COCO(root=str(root))
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
    Image.new("RGB", (5, 5)).save(root / "train2017" / "000000000001.jpg")
    assert COCO(root=root).fingerprint() != source.fingerprint()


def test_images_beyond_the_annotations_are_taken_and_noted(root: Path):
    Image.new("RGB", (5, 5)).save(root / "train2017" / "000000000001.jpg")
    source = COCO(root=root)
    assert len(source) == 4 and source[0].metadata == {"file": "train2017/000000000001.jpg"}
    assert source.notes == ["1 images are not in the annotations"]


def test_a_missing_split_names_those_that_are_there(root: Path):
    with pytest.raises(FileNotFoundError) as refused:
        COCO(root=root, split="val2017")
    for piece in (str(root), "'val2017'", "train2017, unlabeled2017", "--split", "--root"):
        assert piece in str(refused.value)
    assert "annotations" not in str(refused.value)


def test_a_subset_of_the_images_works_where_it_is_said_to_be_one(root: Path, tmp_path: Path):
    for name in NAMES[1:]:
        (root / "train2017" / name).unlink()
    source = COCO(root=root)
    assert len(source) == 1 and source.absent == 2
    assert source.notes == [
        f"2 of 3 annotated images are absent from train2017/, such as {NAMES[2]}"
    ]
    with pytest.raises(ValueError, match=r"2 of 3 samples .* are absent.*--max_missing 0.67"):
        write(source, tmp_path / "out")
    assert len(write(source, tmp_path / "out", max_missing=0.67)) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "instances_train2017.json is not JSON (Expecting property name"),
        ("[" * 100_000, "instances_train2017.json is not JSON"),
        ("3", "instances_train2017.json holds a int; expected an object with images"),
        ('[{"image_id": 9}]', "holds a list; expected an object with images and annotations"),
        ('{"images": []}', "has no annotations; it has images"),
        ('{"images": [{}], "annotations": []}', "images[0] has no id, file_name; it is {}"),
        ('{"images": [7], "annotations": []}', "images[0] has no id, file_name; it is 7"),
        ('{"images": {"id": 7}, "annotations": []}', "images is a dict; expected a list"),
        (
            '{"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"id": 1}]}',
            "annotations[0] has no image_id",
        ),
    ],
)
def test_annotations_that_cannot_be_are_refused_with_the_cause(root: Path, content: str, says: str):
    (root / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(ValueError) as refused:
        COCO(root=root)
    assert says in str(refused.value) and "npack" not in str(refused.value)


def test_an_image_of_malformed_exif_is_put_aside_as_from_a_folder(root: Path, tmp_path: Path):
    image = Image.new("RGB", (20, 10))
    image.save(root / "train2017" / NAMES[0], "WEBP", exif=b"no TIFF at all")
    put_aside = []
    for source in (ImageFolder(root=root, split="train2017"), COCO(root=root)):
        shard_set = write(source, out := tmp_path / "out" / source.name)
        told = json.loads((out / "quarantine" / "reasons.jsonl").read_text())
        put_aside.append((told["reason"], told["detail"], Path(told["origin"]).name))
        assert len(shard_set) == len(source) - 1
    assert put_aside[0] == put_aside[1] and put_aside[0][2] == NAMES[0]


def test_an_empty_split_and_a_missing_root_are_refused(root: Path):
    (root / "test2017").mkdir()
    with pytest.raises(ValueError, match=r"test2017 holds no images \(jpg, jpeg, png"):
        COCO(root=root, split="test2017")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        COCO(root=root / "nowhere")


@pytest.mark.skipif(not REAL.exists(), reason=f"needs real COCO images: {REAL} is absent")
def test_real_images_and_boxes_come_out_as_they_went_in(tmp_path: Path):
    kept: dict[str, Any] = {}
    with tarfile.open(REAL) as tar:
        tar.extractall(tmp_path / "coco", filter="data")
    for path in sorted((tmp_path / "coco" / "val2017").iterdir()):
        kept[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
    instances = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    expected = json.loads(instances.read_text())

    source = COCO(root=tmp_path / "coco", split="val2017")
    found, boxes = {}, 0
    for index in range(len(source)):
        sample = source[index]
        assert isinstance(sample.image, bytes)
        found[sample.key] = hashlib.sha256(sample.image).hexdigest()
        boxes += len(sample.metadata["annotations"])
    assert len(found) == 128 and found == kept
    assert boxes == len(expected["annotations"]) == 898
