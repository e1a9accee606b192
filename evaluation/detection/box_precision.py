"""Average precision of detected boxes, by COCO's rule and by PASCAL VOC's.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, https://arxiv.org/abs/1405.0312:
computed by pycocotools, the data set's own code. Everingham et al., "The PASCAL Visual Object
Classes Challenge: A Retrospective", IJCV 2015, https://doi.org/10.1007/s11263-014-0733-5: the
devkit's VOCevaldet, with the area below the curve as since 2010, and with 11 points as in 2007.

Differs from the devkit: boxes are areas between real numbers there and here, but here without the
pixel that it adds to whole-numbered corners; boxes in that sense have the same overlaps.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from evaluation.detection.detection_set import TrueBoxes

PACKAGE = "pycocotools"
THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""Overlaps from which a box counts as found; COCO's AP is the mean over them."""


@dataclass(frozen=True)
class FoundBoxes:
    """What a detector found in a set of images: D boxes."""

    image_D: NDArray[np.int64]
    """Positions of their images."""
    label_D: NDArray[np.int64]
    score_D: NDArray[np.float64]
    """The higher, the surer."""
    box_D4: NDArray[np.float64]
    """x, y, width and height, in pixels of the image's frame."""

    def __len__(self) -> int:
        return len(self.image_D)


def coco(found: FoundBoxes, truth: TrueBoxes, frame_N2: NDArray[np.float64]) -> dict[str, float]:
    """Return AP (the mean over overlaps of 50 to 95 %), AP50 and AP75 as COCO defines them.

    Groups (crowds) are ignored by its rule. It knows no difficult boxes: they count as all others.

    Args:
        found: what the detector found.
        truth: what there is.
        frame_N2: width and height of each image.
    """
    if not len(found):
        return {"detection_ap": 0.0, "detection_ap50": 0.0, "detection_ap75": 0.0}
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # its code prints
        api: Any = COCO()
        api.dataset = _as_coco(truth, frame_N2)
        api.createIndex()
        rows_D7 = np.column_stack([found.image_D, found.box_D4, found.score_D, found.label_D])
        judge = COCOeval(api, api.loadRes(rows_D7), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ap, ap50, ap75 = (float(value) for value in judge.stats[:3])
    return {"detection_ap": ap, "detection_ap50": ap50, "detection_ap75": ap75}


def _as_coco(truth: TrueBoxes, frame_N2: NDArray[np.float64]) -> dict[str, Any]:
    """Return boxes in the form of COCO's annotation files."""
    annotations = [
        {
            "id": number + 1,  # 0 would be taken for no match
            "image_id": int(truth.image_M[number]),
            "category_id": int(truth.label_M[number]),
            "bbox": truth.box_M4[number].tolist(),
            "area": float(truth.area_M[number]),
            "iscrowd": int(truth.crowd_M[number]),
        }
        for number in range(len(truth))
    ]
    images = [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(frame_N2.tolist())]
    categories = [{"id": int(label), "name": str(label)} for label in np.unique(truth.label_M)]
    return {"images": images, "categories": categories, "annotations": annotations, "info": {}}


def voc(found: FoundBoxes, truth: TrueBoxes) -> tuple[dict[str, float], dict[int, float]]:
    """Return VOC's figures, and AP50 of each label that is to be found.

    detection_voc_ap50 is the area below the curve; detection_voc07_… are of 11 points: AP50, AP75,
    and their mean over COCO's overlaps, as MoCo and others report them for VOC2007.

    Args:
        found: what the detector found.
        truth: what there is; difficult boxes and groups count neither as missed
            nor as wrong.
    """
    labels = np.unique(truth.label_M[~(truth.difficult_M | truth.crowd_M)]).tolist()
    overlap_D, at_D = _best_overlaps(found, truth)
    area_L = np.zeros(len(labels))
    points_LT = np.zeros((len(labels), len(THRESHOLDS)))
    ignored_M = truth.difficult_M | truth.crowd_M
    for number, label in enumerate(labels):
        ours_D = np.flatnonzero(found.label_D == label)
        ours_D = ours_D[np.argsort(-found.score_D[ours_D], kind="stable")]
        asked = int(((truth.label_M == label) & ~ignored_M).sum())
        for place, threshold in enumerate(THRESHOLDS):
            right_D = _judged(overlap_D[ours_D], at_D[ours_D], ignored_M, threshold)
            recall_D = (right_D == 1).cumsum() / asked
            precision_D = (right_D == 1).cumsum() / np.maximum((right_D >= 0).cumsum(), 1)
            points_LT[number, place] = eleven_points(recall_D, precision_D)
            if place == 0:
                area_L[number] = area_below(recall_D, precision_D)
    figures = {
        "detection_voc_ap50": float(area_L.mean()) if labels else 0.0,
        "detection_voc07_ap": float(points_LT.mean()) if labels else 0.0,
        "detection_voc07_ap50": float(points_LT[:, 0].mean()) if labels else 0.0,
        "detection_voc07_ap75": float(points_LT[:, 5].mean()) if labels else 0.0,
    }
    return figures, dict(zip(labels, area_L.tolist(), strict=True))


def area_below(recall_D: NDArray[np.float64], precision_D: NDArray[np.float64]) -> float:
    """Return the area below the curve, where precision is the best of equal or higher recall."""
    best_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    return float((np.diff(recall_D, prepend=0.0) * best_D).sum())


def eleven_points(recall_D: NDArray[np.float64], precision_D: NDArray[np.float64]) -> float:
    """Return the mean of the best precision at recalls of 0, 0.1, … 1 or higher."""
    found = (precision_D[recall_D >= point] for point in np.linspace(0, 1, 11))
    return sum(float(each.max(initial=0.0)) for each in found) / 11


def _judged(
    overlap_D: NDArray[np.float64],
    at_D: NDArray[np.int64],
    ignored_M: NDArray[np.bool_],
    threshold: float,
) -> NDArray[np.int64]:
    """Return 1 for each right box, 0 for each wrong one, -1 for each that does not count.

    Args:
        overlap_D: the largest overlap of each found box, the surest first.
        at_D: with which box of the truth.
        ignored_M: whether one of the truth is ignored.
        threshold: overlap from which a box is found.
    """
    right_D = np.zeros(len(overlap_D), np.int64)
    hits_D = np.flatnonzero(overlap_D >= threshold)
    ignored = ignored_M[at_D[hits_D]]
    right_D[hits_D[ignored]] = -1
    hits_D = hits_D[~ignored]
    _, first = np.unique(at_D[hits_D], return_index=True)  # others find it a second time
    right_D[hits_D[first]] = 1
    return right_D


def _best_overlaps(
    found: FoundBoxes, truth: TrueBoxes
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each found box's largest overlap with a true box of its image and label, and which."""
    overlap_D, at_D = np.full(len(found), -1.0), np.zeros(len(found), np.int64)
    places: dict[tuple[int, int], list[int]] = {}
    for number, key in enumerate(zip(truth.image_M, truth.label_M, strict=True)):
        places.setdefault(key, []).append(number)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, key in enumerate(zip(found.image_D, found.label_D, strict=True)):
        groups.setdefault(key, []).append(number)
    for key in groups.keys() & places.keys():
        ours, theirs = np.array(groups[key]), np.array(places[key])
        overlap_DM = _overlaps(found.box_D4[ours], truth.box_M4[theirs])
        at_D[ours] = theirs[overlap_DM.argmax(1)]
        overlap_D[ours] = overlap_DM.max(1)
    return overlap_D, at_D


def _overlaps(box_D4: NDArray[np.float64], box_M4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union [D, M] of boxes x, y, width, height."""
    return box_iou(torch.from_numpy(box_D4), torch.from_numpy(box_M4), fmt="xywh").numpy()
