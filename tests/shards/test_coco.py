"""COCO: the official layout made here, and real images where they lie beside the project."""

import hashlib
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.source import COCO
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


# ── Sets of COCO's format, as people have them ──────────────────────────────────────────────────


def annotated(
    root: Path,
    names: list[str],
    *,
    folder: str = "train2017",
    annotations: str = "annotations/instances_train2017.json",
    file_name: Callable[[str], str] = str,
    image_id: Callable[[int], Any] = int,
    annotation_image_id: Callable[[int], Any] | None = None,
    drop: tuple[str, ...] = (),
    **more: Any,
) -> Path:
    """Write images and their annotations, a box in each."""
    for number, name in enumerate(names):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 16), (number, 0, 0)).save(path)
    images = [
        {"id": image_id(i), "file_name": file_name(name), "width": 20 + i, "height": 16}
        for i, name in enumerate(names)
    ]
    boxes = [
        {
            "id": 0,
            "image_id": (annotation_image_id or image_id)(i),
            "category_id": 1,
            "bbox": [i] * 4,
        }
        for i in range(len(names))
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    content |= more
    for entry in (*content["images"], *content["annotations"]):
        for name in drop:
            entry.pop(name, None)
    path = root / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def boxes_of(source: COCO) -> dict[str, list[int]]:
    """First number of the boxes of each file; what it was made with is its place."""
    samples = [source[index] for index in range(len(source))]
    assert len({sample.key for sample in samples}) == len(samples)
    return {
        sample.metadata["file"]: [box["bbox"][0] for box in sample.metadata.get("annotations", [])]
        for sample in samples
    }


FILES = ["a.jpg", "b.jpg", "c.jpg"]
BOXES = {f"train2017/{name}": [place] for place, name in enumerate(FILES)}


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        (str, int),
        (int, str),
        (float, int),
        (lambda i: f"{i:012d}", int),
        (lambda i: f"x{i}", lambda i: f"x{i}"),
        (lambda i: 2**62 + i, lambda i: str(2**62 + i)),
    ],
)
def test_ids_of_any_type_find_each_other(tmp_path: Path, images, annotations):
    annotated(tmp_path, FILES, image_id=images, annotation_image_id=annotations)
    source = COCO(root=tmp_path)
    assert boxes_of(source) == BOXES and source.notes == []
    assert source[1].metadata["image_id"] == images(1)


@pytest.mark.parametrize(
    ("folder", "names", "file_name"),
    [
        ("train2017", FILES, lambda name: f"train2017/{name}"),
        ("train2017", FILES, lambda name: f"./{name}"),
        ("train2017", FILES, lambda name: f"images\\train2017\\{name}"),
        ("train2017", FILES, lambda name: f"/home/me/coco/train2017/{name}"),
        ("train2017", ["a/1.jpg", "a/2.png", "b/1.jpg"], str),
        ("train2017", ["a/1.jpg", "b/2.jpg", "b/3.jpg"], lambda name: name[2:]),
        ("images/train2017", FILES, str),
        ("images/train2017", FILES, lambda name: f"train2017/{name}"),
        ("images", FILES, str),
        ("images", FILES, lambda name: f"images/{name}"),
    ],
)
def test_images_are_found_where_people_put_them(tmp_path: Path, folder, names, file_name):
    annotated(tmp_path, names, folder=folder, file_name=file_name)
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {f"{folder}/{name}": [place] for place, name in enumerate(names)}
    assert source.notes == [] and isinstance(source[0].image, bytes)


def test_a_folder_of_all_splits_gives_each_its_own(tmp_path: Path):
    for split, names in (("train", FILES), ("default", ["d.jpg"])):
        where = f"annotations/instances_{split}.json"
        annotated(tmp_path, names, folder="images", annotations=where)
    train, default = COCO(root=tmp_path, split="train"), COCO(root=tmp_path, split="default")
    assert list(boxes_of(train)) == [f"images/{name}" for name in FILES]
    assert list(boxes_of(default)) == ["images/d.jpg"]
    with pytest.raises(FileNotFoundError, match="Annotations are there for --split default, train"):
        COCO(root=tmp_path)
    (note,) = COCO(root=tmp_path, split="images").notes
    assert note.startswith("no boxes:") and "there are some for default, train" in note


def test_annotations_among_the_images_are_read(tmp_path: Path):
    annotated(tmp_path, FILES, folder="valid", annotations="valid/_annotations.coco.json")
    assert boxes_of(COCO(root=tmp_path, split="valid")) == {
        f"valid/{name}": [place] for place, name in enumerate(FILES)
    }


def test_images_of_another_split_in_the_same_file_stay_there(tmp_path: Path):
    annotated(tmp_path, ["a.jpg"], folder="val2017")
    names = ["train2017/a.jpg", "val2017/a.jpg"]
    annotated(tmp_path, names, folder=".")
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {"train2017/a.jpg": [0]} and source.absent == 0
    assert source.notes == ["1 annotated images lie in other folders, and stay there"]


def test_what_is_not_needed_may_be_absent(tmp_path: Path):
    annotated(tmp_path, FILES, drop=("width", "height", "category_id"))
    source = COCO(root=tmp_path)
    assert boxes_of(source) == BOXES and source.notes == []
    assert source[0].metadata == {
        "file": "train2017/a.jpg",
        "image_id": 0,
        "annotations": [{"id": 0, "bbox": [0] * 4}],
    }


def test_images_of_all_kinds_are_taken(tmp_path: Path):
    names = ["a.png", "b.PNG", "c.webp", "d.jpeg", "e.jpg", "e.png"]
    annotated(tmp_path, names)
    (tmp_path / "train2017" / "@eaDir").mkdir()
    (tmp_path / "train2017" / "@eaDir" / "a.png").write_bytes(b"thumbnail")
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {f"train2017/{name}": [i] for i, name in enumerate(names)}
    assert [source[i].key for i in range(4)] == ["a", "b", "c", "d"]


def test_boxes_without_a_category_or_an_image_are_noted(tmp_path: Path):
    boxes = [
        {"image_id": 0, "category_id": 7, "bbox": [0] * 4},
        {"image_id": 9, "category_id": 1, "bbox": [9] * 4},
    ]
    where = "annotations/instances_train2017.json"
    annotated(tmp_path, FILES, annotations=where)
    content = json.loads((tmp_path / where).read_text())
    content["annotations"] += boxes
    (tmp_path / where).write_text(json.dumps(content))
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {**BOXES, "train2017/a.jpg": [0, 0]}
    assert source.notes == [
        "1 annotations of instances_train2017.json belong to no image: image_id 9",
        "1 annotations of instances_train2017.json have no category name: categories lacks id 7",
    ]


def test_an_image_that_is_listed_twice_is_taken_once(tmp_path: Path):
    image = {"id": 0, "file_name": "a.jpg"}
    annotated(tmp_path, ["a.jpg"], images=[image, image])
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {"train2017/a.jpg": [0]}
    assert source.notes == ["1 images are listed twice, and taken once"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"image_id": lambda _: 0},
            "id 0 is that of a.jpg and of b.jpg; expected an id of its own",
        ),
        (
            {"file_name": lambda _: "a.jpg"},
            "a.jpg occurs twice, with the ids 0 and 1; expected one",
        ),
        (
            {"categories": [{"id": 1, "name": "cat"}, {"id": "1", "name": "dog"}]},
            "category 1 is called both 'cat' and 'dog'",
        ),
        (
            {"annotation_image_id": lambda i: 50 + i},
            "none of 3 annotations belongs to an image: their image_id is 50, 51, 52; the ids of",
        ),
        (
            {"file_name": lambda name: f"{ord(name[0])}.png"},
            "none of 3 images of TMP/annotations/instances_train2017.json is in TMP/train2017: it "
            "lists 97.png, 98.png, 99.png, and there are a.jpg, b.jpg, c.jpg",
        ),
        (
            {"file_name": lambda name: f"{name[0]}/a.jpg"},
            "a/a.jpg and b/a.jpg would both be train2017/a.jpg; expected a file for each",
        ),
    ],
)
def test_what_cannot_be_told_apart_is_refused_with_the_cause(tmp_path: Path, settings, says: str):
    annotated(tmp_path, FILES, **settings)
    with pytest.raises(ValueError) as refused:
        COCO(root=tmp_path)
    assert says.replace("TMP", str(tmp_path)) in str(refused.value)
    assert "npack" not in str(refused.value)


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
