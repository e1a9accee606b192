"""The figures of evaluations: what people call them, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

NAMES = {
    "knn_top1": "k-NN",
    "linear_top1": "linear probe",
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
    "linear_l2": "linear probe, L2 strength",
}
"""{figure: its name}, in the order in which they are shown."""
NOT_SHARES = ("alignment", "uniformity", "effective_dimension", "linear_l2")
"""Figures that are no shares of 1, and so are not shown in percent."""


def ordered(figures: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield (figure, its name, its value as text) as people read them, the most telling first."""
    for figure in sorted(figures, key=lambda name: list(NAMES).index(name)):
        value = figures[figure]
        text = f"{value:.4g}" if figure in NOT_SHARES else f"{100 * value:.1f} %"
        yield figure, NAMES[figure], text
