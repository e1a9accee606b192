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
    "disc21_map": "DISC21 normalised, µAP",
    "disc21_recall_at_p90": "DISC21 normalised, recall at 90 % precision",
    "disc21_r1": "DISC21 normalised, R@1",
    "disc21_r10": "DISC21 normalised, R@10",
    "disc21_raw_map": "DISC21, µAP",
    "disc21_raw_recall_at_p90": "DISC21, recall at 90 % precision",
    "disc21_raw_r1": "DISC21, R@1",
    "disc21_raw_r10": "DISC21, R@10",
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
