"""The same images have the same boxes and pixels, wherever they lie."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rectangles import coco_folder, drawn, voc_folder

from evaluation.detection.annotated_images import (
    AnnotatedImages,
    COCOImages,
    ShardedImages,
    VOCImages,
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
    assert [type(each) for each in found] == [COCOImages, VOCImages, VOCImages]
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
            index = int(Path(facts["file"]).stem)
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


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"], r"ImageSets/Main/test.txt is not there.* splits here are trainval"),
        ([], "no split is named"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    splits: list[str], message: str, tmp_path: Path
) -> None:
    voc_folder(tmp_path, IMAGES)
    with pytest.raises(ValueError, match=message):
        in_folder(tmp_path, splits)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither JPEGImages/.* nor annotations/"):
        in_folder(tmp_path, ["train"])


def test_an_annotation_that_is_not_whole_is_named(tmp_path: Path) -> None:
    path = voc_folder(tmp_path, IMAGES) / "Annotations" / "000003.xml"
    whole = path.read_text()
    for text, reason in ((whole[:-20], "unclosed token"), (whole.replace("xmax", "x"), "xmax")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"000003.xml is no annotation .*{reason}"):
            [*in_folder(tmp_path, ["trainval"]).facts()]


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = voc_folder(tmp_path, IMAGES) / "JPEGImages" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"000003.jpg cannot be decoded .*goes on"):
        in_folder(tmp_path, ["trainval"]).pixels(3)
