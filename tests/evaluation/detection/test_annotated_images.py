"""The same images have the same boxes and pixels, wherever they lie."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rectangles import COLOURS, coco_folder, drawn, voc_folder

from evaluation.detection.annotated_images import (
    AnnotatedImages,
    ShardedImages,
    in_folder,
)
from evaluation.detection.detection_set import DetectionSet
from shards.source.coco import COCO
from shards.writing.prepare import Preparation
from shards.writing.write import write

IMAGES = range(10)


def test_shards_and_folders_have_the_rectangles_that_were_drawn(tmp_path: Path) -> None:
    coco = coco_folder(tmp_path / "coco", IMAGES)
    voc = voc_folder(tmp_path / "voc", IMAGES)
    found: list[AnnotatedImages] = [
        in_folder(coco, ["train2017"]),
        in_folder(voc, ["trainval"]),
        in_folder(tmp_path, ["voc/trainval"]),
    ]
    for encoding in ("png", "raw"):
        source = COCO(root=coco, split="train2017")
        preparation = Preparation(encoding=encoding)
        out = tmp_path / f"shards-{encoding}"
        found.append(
            ShardedImages(write(source, out, samples_per_shard=4, preparation=preparation))
        )
    for images in found:
        seen = []
        for position, facts in enumerate(images.facts()):
            index = position if "file" not in facts else int(Path(facts["file"]).stem)
            pixels, rectangles = drawn(index)
            np.testing.assert_array_equal(images.pixels(position), pixels)
            assert (facts["height"], facts["width"]) == pixels.shape[:2]
            boxes = [(a["category"], tuple(a["bbox"])) for a in facts.get("annotations", ())]
            assert boxes == rectangles, images
            seen.append(index)
        assert sorted(seen) == [*IMAGES]


def test_only_voc_says_what_is_difficult(tmp_path: Path) -> None:
    images = in_folder(voc_folder(tmp_path, range(3, 4)), ["trainval"])
    (facts,) = images.facts()
    assert [each["difficult"] for each in facts["annotations"]] == [1, 0, 0]


def test_several_splits_are_one_after_the_other(tmp_path: Path) -> None:
    coco_folder(tmp_path, range(3), "train2014")
    images = in_folder(coco_folder(tmp_path, range(3, 5), "val2014"), ["train2014", "val2014"])
    assert len([*images.facts()]) == 5
    np.testing.assert_array_equal(images.pixels(4), drawn(4)[0])


@pytest.mark.parametrize("index", [0, 2])  # without a rectangle, and with two
def test_a_size_with_its_sides_exchanged_squashes_no_image_and_cuts_no_box(
    index: int, tmp_path: Path
) -> None:
    """As where a tool took rows for columns; EXIF turns nothing."""
    coco = coco_folder(tmp_path / "coco", range(index, 4))
    voc = voc_folder(tmp_path / "voc", range(index, 4))
    for path in (coco / "annotations" / "instances_train2017.json", *voc.glob("Annotations/*")):
        text = re.sub('"width": 96, "height": 64', '"width": 64, "height": 96', path.read_text())
        text = text.replace("<width>96</width><height>64<", "<width>64</width><height>96<")
        path.write_text(text)
    for images in (in_folder(coco, ["train2017"]), in_folder(voc, ["trainval"])):
        read = DetectionSet.read(images, clip=True)
        pixels, rectangles = drawn(index)
        assert read.frame_N2[0].tolist() == [pixels.shape[1], pixels.shape[0]] == [96, 64]
        boxes = read.boxes.box_M4[read.boxes.image_M == 0]
        assert boxes.tolist() == [list(box) for _, box in rectangles]
        np.testing.assert_array_equal(images.pixels(0), pixels)


# Of an image that is mirrored or upside down, or has no size, nothing tells whether boxes are.
@pytest.mark.parametrize(
    ("orientation", "sized"), [(1, True), (1, False), (5, True), (6, True), (7, True), (8, True)]
)
def test_boxes_are_on_what_they_are_of(orientation: int, sized: bool, tmp_path: Path) -> None:
    """Whether its file turns the image, and its annotations say its size before that."""
    coco = coco_folder(tmp_path, range(2, 3), area=5.5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn(2)[0]).save(coco / "train2017" / "000002.png", exif=exif)
    if not sized:
        path = coco / "annotations" / "instances_train2017.json"
        path.write_text(re.sub(r', "width": \d+, "height": \d+', "", path.read_text()))
    preparation = Preparation(resize_shorter=32)
    shards = write(COCO(root=coco, split="train2017"), tmp_path / "out", preparation=preparation)
    found: list[tuple[AnnotatedImages, int]] = [
        (ShardedImages(shards), 32),
        (in_folder(coco, ["train2017"]), 64),
    ]
    for images, shorter in found:
        (facts,) = images.facts()
        pixels = images.pixels(0)
        assert min(pixels.shape[:2]) == shorter
        height, width = facts["height"] / pixels.shape[0], facts["width"] / pixels.shape[1]
        assert height == pytest.approx(width)
        assert len(facts["annotations"]) == 2
        for each in facts["annotations"]:
            x, y, w, h = each["bbox"]
            inside = pixels[int((y + h / 2) / height), int((x + w / 2) / width)]
            assert np.abs(inside.astype(int) - COLOURS[each["category"]]).max() < 40
            assert each["area"] == 5.5


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"], r"has no split 'test'; its lists are trainval"),
        ([], "no split is named"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    splits: list[str], message: str, tmp_path: Path
) -> None:
    voc_folder(tmp_path, IMAGES)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        in_folder(tmp_path, splits)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither annotations/.* nor JPEGImages/"):
        in_folder(tmp_path, ["train"])


def test_boxes_may_be_in_other_pixels_than_their_image_has(tmp_path: Path) -> None:
    """As where VOC's images were made smaller, and their XML was not."""
    voc = voc_folder(tmp_path, range(3, 4))
    pixels, rectangles = drawn(3)
    path = voc / "JPEGImages" / "000003.jpg"
    Image.fromarray(pixels).resize((20, 30)).save(path)
    images = in_folder(voc, ["trainval"])
    (facts,) = images.facts()
    assert (facts["width"], facts["height"]) == (20, 30)
    assert images.pixels(0).shape == (30, 20, 3)
    height, width, _ = pixels.shape
    scale_4 = np.array([20 / width, 30 / height] * 2)
    for each, (_, box) in zip(facts["annotations"], rectangles, strict=True):
        np.testing.assert_allclose(each["bbox"], scale_4 * box, atol=0.001)


def test_a_size_that_is_not_said_is_that_of_the_image(tmp_path: Path) -> None:
    path = voc_folder(tmp_path, range(3, 4)) / "Annotations" / "000003.xml"
    path.write_text(re.sub("<size>.*</size>", "", path.read_text()))
    (facts,) = in_folder(tmp_path, ["trainval"]).facts()
    assert (facts["height"], facts["width"]) == drawn(3)[0].shape[:2]


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = voc_folder(tmp_path, IMAGES) / "JPEGImages" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:900])
    images = in_folder(tmp_path, ["trainval"])
    assert len([*images.facts()]) == len(IMAGES)
    with pytest.raises(ValueError, match=r"000003.jpg cannot be decoded .*goes on"):
        images.pixels(3)
