"""The figures of evaluations: what people call them, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

NAMES = {
    "knn_top1": "k-NN",
    "linear_top1": "linear probe",
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
    "alignment": "alignment",
    "uniformity": "uniformity",
    "effective_dimension": "effective dimension",
    "rank_me": "RankMe",
    "lidar": "LiDAR",
    "rank_me_h": "RankMe of features",
    "lidar_h": "LiDAR of features",
    "linear_l2": "linear probe, L2 strength",
}
"""{figure: its name}, in the order in which they are shown."""
NOT_SHARES = ("alignment", "uniformity", "effective_dimension", "linear_l2")
NOT_SHARES += ("rank_me", "lidar", "rank_me_h", "lidar_h")
"""Figures that are no shares of 1, and so are not shown in percent."""


def ordered(figures: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield (figure, its name, its value as text) as people read them, the most telling first.

    Half an interval, such as few_shot_1_ci, stands behind its figure, few_shot_1_top1.
    """
    for figure in sorted(figures, key=lambda name: list(NAMES).index(name)):
        value, half = figures[figure], figures.get(figure.replace("_top1", "_ci"))
        if figure.endswith("_ci") and figure.replace("_ci", "_top1") in figures:
            continue
        text = f"{value:.4g}" if figure in NOT_SHARES else f"{100 * value:.1f} %"
        if figure.endswith("_top1") and half is not None:
            text = f"{100 * value:.1f} ± {100 * half:.1f} %"
        yield figure, NAMES[figure], text
