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


def test_a_photo_that_its_file_turns_upright_keeps_the_frame_of_its_boxes(tmp_path: Path) -> None:
    coco = coco_folder(tmp_path, range(1))
    pixels, _ = drawn(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(coco / "train2017" / "000000.png", exif=exif)
    images = in_folder(coco, ["train2017"])
    assert len([*images.facts()]) == 1
    np.testing.assert_array_equal(images.pixels(0), pixels)


# Of an image that is mirrored or upside down, or has no size, nothing tells whether boxes are.
@pytest.mark.parametrize(
    ("orientation", "sized"), [(1, True), (1, False), (5, True), (6, True), (7, True), (8, True)]
)
def test_boxes_in_shards_are_on_what_they_are_of(
    orientation: int, sized: bool, tmp_path: Path
) -> None:
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
    images = ShardedImages(shards)
    (facts,) = images.facts()
    pixels = images.pixels(0)
    assert min(pixels.shape[:2]) == 32
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
    pixels, _ = drawn(3)
    path = voc / "JPEGImages" / "000003.jpg"
    Image.fromarray(pixels).resize((20, 30)).save(path)
    images = in_folder(voc, ["trainval"])
    (facts,) = images.facts()
    assert (facts["height"], facts["width"]) == pixels.shape[:2]
    assert images.pixels(0).shape == (30, 20, 3)


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
