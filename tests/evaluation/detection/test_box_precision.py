"""Average precision of boxes, beside the definition written out and beside others' code."""

import io
import sys
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from rectangles import boxes_of

from evaluation.detection import Detection, box_precision
from evaluation.detection.box_precision import FoundBoxes
from evaluation.detection.detection_set import TrueBoxes


def random_case(
    seed: int, *, difficult: float = 0.2, crowd: float = 0.0, whole: bool = False
) -> tuple[FoundBoxes, TrueBoxes]:
    """Return boxes in 12 images of 3 categories, and detections near them and elsewhere."""
    random = np.random.default_rng(seed)
    rows, found = [], []
    for image in range(12):
        for _ in range(random.integers(0, 5)):
            box = [*random.uniform(0, 60, 2), *random.uniform(8, 40, 2)]
            box = [float(round(side)) if whole else float(side) for side in box]
            label = int(random.integers(3))
            rows.append(
                (
                    image,
                    label,
                    box,
                    bool(random.random() < crowd),
                    bool(random.random() < difficult),
                )
            )
            for _ in range(random.integers(0, 3)):
                near = np.array(box) + random.normal(0, 2.5, 4)
                found.append((image, label, random.random(), *near))
        found.append((image, int(random.integers(3)), random.random(), *random.uniform(5, 50, 4)))
    table = np.array(found)
    if whole:
        table[:, 3:] = table[:, 3:].round()
    whole_D2 = table[:, :2].astype(np.int64)
    return FoundBoxes(whole_D2[:, 0], whole_D2[:, 1], table[:, 2], table[:, 3:]), boxes_of(*rows)


def devkit(
    found: FoundBoxes, truth: TrueBoxes, label: int, threshold: float
) -> tuple[float, float]:
    """Return area and 11-point AP as the devkit's text defines them: whole, inclusive corners."""
    asked, used = 0, set()
    for number in range(len(truth)):
        asked += truth.label_M[number] == label and not truth.difficult_M[number]
    curve, right, wrong = [], 0, 0
    for place in np.argsort(-found.score_D, kind="stable"):
        if found.label_D[place] != label:
            continue
        best, which = -1.0, -1
        x, y, w, h = found.box_D4[place]
        one = (x + 1, y + 1, x + w, y + h)
        for number in range(len(truth)):
            if truth.label_M[number] != label or truth.image_M[number] != found.image_D[place]:
                continue
            x, y, w, h = truth.box_M4[number]
            other = (x + 1, y + 1, x + w, y + h)
            iw = min(one[2], other[2]) - max(one[0], other[0]) + 1
            ih = min(one[3], other[3]) - max(one[1], other[1]) + 1
            if iw > 0 and ih > 0:
                both = iw * ih
                sizes = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, other)]
                if both / (sum(sizes) - both) > best:
                    best, which = both / (sum(sizes) - both), number
        if best >= threshold and truth.difficult_M[which]:
            continue
        if best >= threshold and which not in used:
            used.add(which)
            right += 1
        else:
            wrong += 1
        curve.append((right / asked, right / (right + wrong)))
    area = sum(
        (recall - before) * max(p for r, p in curve if r >= recall)
        for before, (recall, _) in zip([0.0, *(r for r, _ in curve)], curve, strict=False)
    )
    points = sum(max([p for r, p in curve if r >= t], default=0) for t in np.arange(0, 1.1, 0.1))
    return area, points / 11


@pytest.mark.parametrize("seed", range(5))
def test_voc_s_figures_are_those_of_its_definition(seed: int) -> None:
    found, truth = random_case(seed, whole=True)
    figures, of_label = box_precision.voc(found, truth)
    naive = {t: [devkit(found, truth, label, t) for label in of_label] for t in (0.5, 0.75)}
    assert list(of_label.values()) == pytest.approx([area for area, _ in naive[0.5]], abs=1e-12)
    assert figures["detection_voc_ap50"] == pytest.approx(np.mean([a for a, _ in naive[0.5]]))
    for threshold, name in ((0.5, "ap50"), (0.75, "ap75")):
        expected = np.mean([points for _, points in naive[threshold]])
        assert figures[f"detection_voc07_{name}"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_coco_s_figures_are_those_of_another_implementation(seed: int) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    found, truth = random_case(seed, crowd=0.2)
    frame_N2 = np.full((12, 2), 120.0)
    figures = box_precision.coco(found, truth, frame_N2)
    with redirect_stdout(io.StringIO()):
        api = COCO(box_precision._as_coco(truth, frame_N2))
        rows = [
            {"image_id": int(i), "category_id": int(c), "score": float(s), "bbox": b.tolist()}
            for i, c, s, b in zip(
                found.image_D, found.label_D, found.score_D, found.box_D4, strict=True
            )
        ]
        judge: Any = COCOeval_faster(api, api.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert [*figures.values()] == pytest.approx(judge.stats[:3].tolist(), abs=1e-12)
    assert 0 < figures["detection_ap"] < figures["detection_ap50"] < 1


@pytest.mark.parametrize("seed", range(3))
def test_both_rules_agree_but_for_how_the_curve_is_summed(seed: int) -> None:
    """COCO sums it at 101 recalls, VOC as it is; without difficult boxes all else is alike."""
    found, truth = random_case(seed, difficult=0.0)
    ours = box_precision.voc(found, truth)[0]["detection_voc_ap50"]
    coco = box_precision.coco(found, truth, np.full((12, 2), 120.0))["detection_ap50"]
    assert ours == pytest.approx(coco, abs=0.01)


def test_a_second_find_of_a_box_is_wrong_and_a_difficult_one_counts_for_nothing() -> None:
    box = [10.0, 10.0, 20.0, 20.0]
    truth = boxes_of((0, 0, box, False, False), (1, 0, box, False, True), (2, 0, box, True, False))
    image_D, score_D = np.array([0, 0, 1, 2]), np.array([0.9, 0.95, 0.99, 0.97])
    found = FoundBoxes(image_D, np.zeros(4, np.int64), score_D, np.array([box] * 4))
    figures, _ = box_precision.voc(found, truth)
    assert figures["detection_voc_ap50"] == 1
    missed = boxes_of((0, 0, box, False, False), (3, 0, box, False, False))
    # The surest two are of images without a box; the third finds one of two, at a third right.
    area = box_precision.voc(found, missed)[0]["detection_voc_ap50"]
    assert area == pytest.approx(1 / 2 * 1 / 3)


def test_a_detector_that_finds_nothing_has_figures() -> None:
    truth = boxes_of((0, 0, [1, 1, 9, 9], False, False))
    none = np.zeros(0, np.int64)
    nothing = FoundBoxes(none, none, np.zeros(0), np.zeros((0, 4)))
    assert not any(box_precision.voc(nothing, truth)[0].values())
    assert not any(box_precision.coco(nothing, truth, np.full((1, 2), 20.0)).values())


def test_without_coco_s_code_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.installed import remedy

    monkeypatch.setitem(sys.modules, box_precision.PACKAGE, None)
    with pytest.raises(ModuleNotFoundError) as error:
        Detection().check(None)  # pyright: ignore[reportArgumentType]
    assert ".[detection]" in remedy(error.value)
