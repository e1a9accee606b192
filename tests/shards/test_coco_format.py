"""Sets of COCO's format, as people have them: each works, or is refused with the cause."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from shards.source import COCO
from shards.writing.write import write


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
        ("train2017", FILES, lambda name: f"/elsewhere/coco/train2017/{name}"),
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
    with Image.open(tmp_path / "train2017" / "a.jpg") as image:
        width, height = image.size
    assert source[0].metadata == {
        "file": "train2017/a.jpg",
        "image_id": 0,
        "annotations": [{"id": 0, "bbox": [0] * 4}],
        "width": width,
        "height": height,
    }


def test_what_is_no_box_is_noted_and_a_caption_does_not_hide_one(tmp_path: Path):
    where = "annotations/instances_train2017.json"
    annotated(tmp_path, FILES, annotations=where)
    content = json.loads((tmp_path / where).read_text())
    first, second = content["annotations"][:2]
    first |= {"caption": "a region", "bbox": [1, 2, 3, 4]}
    second |= {"bbox": None, "area": [1]}
    (tmp_path / where).write_text(json.dumps(content))
    source = COCO(root=tmp_path)
    (box,) = source[first["image_id"]].metadata["annotations"]
    assert box["bbox"] == [1, 2, 3, 4]
    assert source[first["image_id"]].metadata["captions"] == ["a region"]
    assert any("2 boxes and areas of" in note for note in source.notes)
    assert "bbox" not in source[second["image_id"]].metadata["annotations"][0]


@pytest.mark.parametrize("side", ["20", math.nan, math.inf, [20], None], ids=repr)
def test_a_width_that_is_no_number_is_as_if_it_were_absent(tmp_path: Path, side: Any):
    annotated(tmp_path, ["a.jpg", "b.jpg"])
    where = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(where.read_text())
    for image in content["images"]:
        image["width"] = side
    del content["annotations"][1]
    where.write_text(json.dumps(content))
    source = COCO(root=tmp_path)
    with_a_box, without = source[0].metadata, source[1].metadata
    assert (with_a_box["width"], with_a_box["height"]) == (20, 16)  # as Pillow opens it
    assert with_a_box["annotations"][0]["bbox"] == [0] * 4
    assert (without["width"], without["height"]) == (21, 16)
    assert len(write(source, tmp_path / "out")) == 2


def test_images_of_all_kinds_are_taken(tmp_path: Path):
    names = ["a.png", "b.PNG", "c.webp", "d.jpeg", "e.jpg", "e.png"]
    annotated(tmp_path, names)
    (tmp_path / "train2017" / "@eaDir").mkdir()
    (tmp_path / "train2017" / "@eaDir" / "a.png").write_bytes(b"thumbnail")
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {f"train2017/{name}": [i] for i, name in enumerate(names)}
    assert [source[i].key for i in range(4)] == ["a", "b", "c", "d"]


def test_names_that_begin_with_each_other_have_keys_of_their_own(tmp_path: Path):
    names = ["a.jpg", "a.jpg.png", "a.png", "b.jpg", "b.jpg.png", "c.jpg"]
    annotated(tmp_path, names)
    source = COCO(root=tmp_path)
    assert boxes_of(source) == {f"train2017/{name}": [i] for i, name in enumerate(names)}
    keys = [source[i].key for i in range(len(names))]
    assert len(set(keys)) == len(names) and (keys[3], keys[5]) == ("b", "c")


def test_ids_of_one_name_are_one_category(tmp_path: Path):
    """As Roboflow writes an id 0 with the name of a class."""
    names = ["dog", "cat", "dog"]
    annotated(tmp_path, FILES, categories=[{"id": i, "name": n} for i, n in enumerate(names)])
    where = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(where.read_text())
    for entry, number in zip(content["annotations"], (2, 1, 0), strict=True):
        entry["category_id"] = number
    where.write_text(json.dumps(content))
    source = COCO(root=tmp_path)
    assert source.categories == ["dog", "cat"]
    assert [source[i].categories for i in range(3)] == [b"\1\0", b"\0\1", b"\1\0"]
    assert source.notes == ["several ids have one name, and are one category: dog"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_background_photo_has_the_size_that_it_is_seen_in(tmp_path: Path, orientation: int):
    """Its annotations, none of which has a box, say the size before EXIF turns it."""
    annotated(tmp_path, ["a.jpg", "b.jpg"], annotations="annotations/instances_train2017.json")
    where = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(where.read_text())
    content["annotations"] = [{"image_id": 1, "category_id": 1}]
    where.write_text(json.dumps(content))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number, name in enumerate(("a.jpg", "b.jpg")):
        path = tmp_path / "train2017" / name
        Image.new("RGB", (20 + number, 16)).save(path, exif=exif)
        with Image.open(path) as image:
            seen = ImageOps.exif_transpose(image).size
        facts = COCO(root=tmp_path)[number].metadata
        assert (facts["width"], facts["height"]) == seen


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


def test_many_files_and_splits_are_counted_as_what_they_are(tmp_path: Path):
    files = [f"{number}.jpg" for number in range(1200)]
    annotated(tmp_path, files[:2], file_name=lambda name: f"x{name}")
    for name in files:
        (tmp_path / "train2017" / name).touch()
    with pytest.raises(
        ValueError, match=r"there are 0\.jpg, 1\.jpg, .*, … \(1,200 files\)\. Choose"
    ):
        COCO(root=tmp_path)
    for number in range(8):
        (tmp_path / "annotations" / f"instances_fold{number}.json").touch()
    message = r"there for --split fold0, fold1, fold2, fold3, fold4, fold5, … \(9 splits\)\. Choose"
    with pytest.raises(FileNotFoundError, match=message):
        COCO(root=tmp_path, split="val2017")
