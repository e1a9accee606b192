"""Batches of images with boxes: their law, and what of them does not depend on ranks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rectangles import coco_folder, drawn, voc_folder

from evaluation.detection.annotated_images import in_folder
from evaluation.detection.detection_set import (
    BatchOrder,
    DetectionSet,
    DrawnImage,
    collated,
    to_device,
)

IMAGES = range(22)
HOW: dict[str, Any] = {"batch_size": 4, "shorter": [48, 64], "longest": 120, "seed": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DetectionSet:
    folder = coco_folder(tmp_path_factory.mktemp("rectangles"), IMAGES)
    return DetectionSet.read(in_folder(folder, ["train2017"]), clip=True)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shorter", [40, 64, 150])
def test_boxes_stay_around_what_they_were_drawn_around(
    images: DetectionSet, flip: bool, shorter: int
) -> None:
    for index in (1, 2, 3):
        height, width = images.resized(index, shorter=shorter, longest=1000)
        sample = images[DrawnImage(index, height, width, (height, width), flip)]
        assert sample["image"].shape == (3, height, width) and min(height, width) == shorter
        red_HW = (sample["image"][0] > 180) & (sample["image"][1] < 60)
        blue_HW = (sample["image"][2] > 180) & (sample["image"][1] < 60)
        names = [images.categories[label - 1] for label in sample["labels"]]
        assert sorted(names) == sorted(color for color, _ in drawn(index)[1])
        for name, box_4 in zip(names, sample["boxes"].tolist(), strict=True):
            left, top, right, bottom = (round(side) for side in box_4)
            inside = (red_HW if name == "red" else blue_HW)[top:bottom, left:right]
            assert inside.float().mean() > 0.8  # the resizing blurs an edge
        for colour_HW, name in ((red_HW, "red"), (blue_HW, "blue")):
            mine = [b for n, b in zip(names, sample["boxes"].tolist(), strict=True) if n == name]
            rows, columns = torch.where(colour_HW)
            for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
                assert any(b[0] - 1 < x < b[2] + 1 and b[1] - 1 < y < b[3] + 1 for b in mine)


def test_the_longer_side_is_bounded(images: DetectionSet) -> None:
    assert images.resized(0, shorter=128, longest=120) == (80, 120)  # 96 × 64 before
    assert images.resized(0, shorter=32, longest=120) == (32, 48)


def test_two_ranks_share_the_batches_of_one(images: DetectionSet) -> None:
    whole = [*BatchOrder(images, **HOW, start=0, stop=12)]
    parts = [BatchOrder(images, **HOW, start=0, stop=12, rank=r, world_size=2) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch == first + second
        assert len({each.padded for each in batch}) == 1
        assert all(side % 32 == 0 for side in batch[0].padded)


def test_batches_go_on_where_they_were_left(images: DetectionSet) -> None:
    whole = [*BatchOrder(images, **HOW, start=0, stop=12)]
    assert [*BatchOrder(images, **HOW, start=7, stop=12)] == whole[7:]
    other = BatchOrder(images, **{**HOW, "seed": 4}, start=0, stop=12)
    assert [*other] != whole


def test_an_epoch_repeats_no_image_and_draws_anew(images: DetectionSet) -> None:
    batches = [*BatchOrder(images, **HOW, start=0, stop=20)]
    epochs = [batches[start : start + 5] for start in range(0, 20, 5)]  # 22 images, 5 batches
    for epoch in epochs:
        indices = [each.index for batch in epoch for each in batch]
        assert len(set(indices)) == 20
    first, second = ({d.index: d for b in e for d in b} for e in epochs[:2])
    both = first.keys() & second.keys()
    assert any(first[i].flip != second[i].flip for i in both)
    assert {d.height for b in batches for d in b if images.frame_N2[d.index][0] == 96} == {48, 64}
    wide = [[images.frame_N2[d.index][0] == 96 for d in b] for e in epochs for b in e]
    assert sum(len(set(batch)) == 1 for batch in wide) >= 16, "one of an epoch's five is mixed"


def test_padding_is_below_and_right_of_the_images(images: DetectionSet) -> None:
    (draws,) = BatchOrder(images, **HOW, start=0, stop=1)
    batch_BCHW, targets = to_device(collated([images[d] for d in draws]), torch.device("cpu"))
    assert batch_BCHW.is_contiguous(memory_format=torch.channels_last)
    for image_CHW, draw, target in zip(batch_BCHW, draws, targets, strict=True):
        alone = images[draw]
        torch.testing.assert_close(image_CHW[:, : draw.height, : draw.width], alone["image"])
        assert not image_CHW[:, draw.height :].any() and not image_CHW[:, :, draw.width :].any()
        torch.testing.assert_close(target["boxes"], alone["boxes"])


def test_a_group_is_no_box_to_train_on(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path, range(3, 4), iscrowd=1)
    images = DetectionSet.read(in_folder(folder, ["train2017"]), clip=True)
    assert images.boxes.crowd_M.all() and len(images.boxes) == 3
    assert len(images[images.tested(0, shorter=64, longest=100)]["boxes"]) == 0


def change_boxes(folder: Path, *boxes: Any) -> Path:
    """Replace the first boxes of a COCO folder."""
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for entry, box in zip(content["annotations"], boxes, strict=False):
        entry["bbox"] = box
    path.write_text(json.dumps(content))
    return folder


def test_boxes_beyond_their_image_are_cut_and_counted_and_empty_ones_left_out(
    tmp_path: Path,
) -> None:
    change_boxes(coco_folder(tmp_path, IMAGES), [-10, -5, 30, 20], [5, 5, 0, 9], [200, 0, 9, 9])
    images = DetectionSet.read(in_folder(tmp_path, ["train2017"]), clip=True)
    assert images.boxes.box_M4[0].tolist() == [0, 0, 20, 15]
    said = "\n".join(images.remarks)
    assert "2 boxes without an area" in said and "1 boxes reach beyond their image, and are" in said
    assert "of 22 images have no box, and are background" in said
    untouched = DetectionSet.read(in_folder(tmp_path, ["train2017"]), clip=False)
    assert untouched.boxes.box_M4[0].tolist() == [-10, -5, 30, 20]
    assert untouched.digest() != images.digest()


@pytest.mark.parametrize("flag", ["crowd_M", "difficult_M"])
def test_a_flag_of_one_box_changes_the_digest(images: DetectionSet, flag: str) -> None:
    def digest(flag_M: np.ndarray) -> str:
        return replace(images, boxes=replace(images.boxes, **{flag: flag_M})).digest()

    flag_M = getattr(images.boxes, flag)
    assert digest(flag_M) == images.digest()
    assert digest(flag_M ^ (np.arange(len(flag_M)) == 5)) != images.digest()


@pytest.mark.parametrize("box", [[1, 2, 3], None, ["a", 1, 2, 3], [float("nan"), 1, 2, 3]])
def test_what_is_no_box_is_named_with_its_image(box: Any, tmp_path: Path) -> None:
    change_boxes(coco_folder(tmp_path, IMAGES), box)
    with pytest.raises(ValueError, match=r"000001.png has the box .* expected \[x, y, width"):
        DetectionSet.read(in_folder(tmp_path, ["train2017"]), clip=True)


def test_a_set_without_boxes_is_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path, range(0, 9, 4))
    with pytest.raises(ValueError, match=r"none of its 3 images has a box"):
        DetectionSet.read(in_folder(folder, ["trainval"]), clip=True)


def test_an_image_that_cannot_be_read_ends_in_its_name(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path, range(1, 5))
    images = DetectionSet.read(in_folder(folder, ["train2017"]), clip=True)
    (folder / "train2017" / "000002.png").write_bytes(b"no image")
    batch = collated([images[images.tested(i, shorter=64, longest=99)] for i in range(4)])
    with pytest.raises(ValueError, match=r"000002.png cannot be decoded"):
        to_device(batch, torch.device("cpu"))


def test_labels_of_a_test_set_are_those_of_training(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path, IMAGES)
    named = ["car", "blue"]
    images = DetectionSet.read(in_folder(folder, ["train2017"]), clip=False, categories=named)
    assert images.categories == ["car", "blue", "red"]
    assert np.unique(images.boxes.label_M).tolist() == [1, 2]
