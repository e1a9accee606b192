"""The figures of evaluations: what people call them, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

NAMES = {
    "knn_top1": "k-NN",
    "linear_top1": "linear probe",
    "multi_label_map": "multi-label probe, mAP",
    "multi_label_voc_map": "multi-label probe, mAP as VOC has it since 2010",
    "multi_label_voc07_map": "multi-label probe, mAP at 11 recalls (VOC 2007)",
    "multi_label_knn_map": "multi-label k-NN, mAP",
    "category_map": "retrieval of a shared category, mAP",
    "category_ndcg": "retrieval by shared categories, nDCG",
    "few_shot_1_top1": "few-shot, 1 image a class",
    "few_shot_1_ci": "few-shot, 1 image a class, half the 95 % interval",
    "few_shot_5_top1": "few-shot, 5 images a class",
    "few_shot_5_ci": "few-shot, 5 images a class, half the 95 % interval",
    "few_shot_10_top1": "few-shot, 10 images a class",
    "few_shot_10_ci": "few-shot, 10 images a class, half the 95 % interval",
    "label_map": "retrieval of the same class, mAP",
    "label_r1": "retrieval of the same class, R@1",
    "label_r5": "retrieval of the same class, R@5",
    "view_map": "retrieval of the same image's views, mAP",
    "view_r1": "retrieval of the same image's views, R@1",
    "view_r5": "retrieval of the same image's views, R@5",
    "copy_map": "copy detection, µAP",
    "copy_recall_at_p90": "copy detection, recall at 90 % precision",
    "copy_r1": "copy detection, R@1",
    "copy_r10": "copy detection, R@10",
    "copy_z_map": "copy detection by embeddings, µAP",
    "copy_z_recall_at_p90": "copy detection by embeddings, recall at 90 % precision",
    "copy_z_r1": "copy detection by embeddings, R@1",
    "copy_z_r10": "copy detection by embeddings, R@10",
    "disc21_map": "DISC21 normalised, µAP",
    "disc21_recall_at_p90": "DISC21 normalised, recall at 90 % precision",
    "disc21_r1": "DISC21 normalised, R@1",
    "disc21_r10": "DISC21 normalised, R@10",
    "disc21_raw_map": "DISC21, µAP",
    "disc21_raw_recall_at_p90": "DISC21, recall at 90 % precision",
    "disc21_raw_r1": "DISC21, R@1",
    "disc21_raw_r10": "DISC21, R@10",
    "detection_ap": "detection, COCO's AP",
    "detection_ap50": "detection, COCO's AP50",
    "detection_ap75": "detection, COCO's AP75",
    "detection_voc_ap50": "detection, VOC's AP50",
    "detection_voc07_ap": "detection, VOC2007's AP (11 points)",
    "detection_voc07_ap50": "detection, VOC2007's AP50 (11 points)",
    "detection_voc07_ap75": "detection, VOC2007's AP75 (11 points)",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "effective_dimension": "effective dimension",
    "rank_me": "RankMe",
    "lidar": "LiDAR",
    "rank_me_h": "RankMe of features",
    "lidar_h": "LiDAR of features",
    "linear_l2": "linear probe, L2 strength",
    "multi_label_l2": "multi-label probe, L2 strength",
    "augmented_probe_top1": "linear probe on random crops",
    "augmented_probe_top5": "linear probe on random crops, top 5",
    "augmented_probe_rate": "linear probe on random crops, learning rate",
}
"""{figure: its name}, in the order in which they are shown."""
FAMILIES = {
    "fine_tuned_#_top1": "fine-tuned on # % of the labels",
    "fine_tuned_#_sd": "fine-tuned on # % of the labels, sd of the draws",
    "fine_tuned_#_top5": "fine-tuned on # % of the labels, top 5",
    "fine_tuned_#_rate": "fine-tuned on # % of the labels, learning rate",
    "head_tuned_#_top1": "linear layer on # % of the labels",
    "head_tuned_#_sd": "linear layer on # % of the labels, sd of the draws",
    "head_tuned_#_top5": "linear layer on # % of the labels, top 5",
    "head_tuned_#_rate": "linear layer on # % of the labels, learning rate",
}
"""{figures that there are of any number #: their names}; they follow those above, by number."""
NOT_SHARES = ("alignment", "uniformity", "effective_dimension", "linear_l2", "augmented_probe_rate")
NOT_SHARES += ("multi_label_l2", "rank_me", "lidar", "rank_me_h", "lidar_h")
"""Figures that are no shares of 1, and so are not shown in percent; nor are any …_rate."""
OF_EMBEDDINGS = ("view_map", "view_r1", "view_r5", "alignment", "uniformity")
OF_EMBEDDINGS += ("effective_dimension", "rank_me", "lidar")
"""Figures of embeddings; of an encoder without its projector they are of features, other ones."""
_NUMBER = re.compile(r"(?<=_)\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=_)")


def ordered(figures: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield (figure, its name, its value as text) as people read them, the most telling first.

    Half an interval, such as few_shot_1_ci, stands behind its figure, few_shot_1_top1.
    """
    for figure in sorted(figures, key=_place):
        value, half = figures[figure], figures.get(figure.replace("_top1", "_ci"))
        if figure.endswith("_ci") and figure.replace("_ci", "_top1") in figures:
            continue
        text = f"{100 * value:.1f} %" if is_share(figure) else f"{value:.4g}"
        if figure.endswith("_top1") and half is not None:
            text = f"{100 * value:.1f} ± {100 * half:.1f} %"
        yield figure, name_of(figure), text


def name_of(figure: str) -> str:
    """Return what people call a figure; one that is not known is its own name."""
    if figure in NAMES or (family := _family(figure)) is None:
        return NAMES.get(figure, figure)
    return FAMILIES[family[0]].replace("#", family[1])


def is_share(figure: str) -> bool:
    """Whether a figure is a share of 1, which people read in percent."""
    return figure not in NOT_SHARES and not figure.endswith("_rate")


def more_is_better(figure: str) -> bool:
    """Whether a figure is known, and the better the higher it is; a spread is neither."""
    known = figure in NAMES or _family(figure) is not None
    return known and is_share(figure) and not figure.endswith(("_sd", "_ci"))


def _place(figure: str) -> tuple[int, float, int]:
    """Return what figures are ordered by."""
    if figure in NAMES:
        return [*NAMES].index(figure), 0.0, 0
    found = _family(figure)
    assert found, figure
    family, number = found
    place = [*FAMILIES].index(family)
    first = next(i for i, each in enumerate(FAMILIES) if each.split("#")[0] == family.split("#")[0])
    return len(NAMES) + first, float(number), place


def _family(figure: str) -> tuple[str, str] | None:
    """Return a figure's family and its number; None if it is of none."""
    number = _NUMBER.search(figure)
    if number is None:
        return None
    family = figure[: number.start()] + "#" + figure[number.end() :]
    return (family, number[0]) if family in FAMILIES else None
