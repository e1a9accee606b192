"""Weighted k-nearest-neighbour classification of frozen features: no training, no choices.

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018, section 3.4, https://arxiv.org/abs/1805.01978: the k nearest train samples by cosine s
vote for their classes with weight exp(s / T). k = 20 is DINO's; the paper has k = 200, T = 0.07.
"""

import torch
from torch import Tensor

from evaluation.features import Features, number_classes
from evaluation.score import nearest

VOTES = 2**26  # samples × classes that are counted at once: 256 MiB


def run(
    train: Features,
    test: Features,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    rows: int | None = None,
) -> dict[str, float]:
    """Classify every labelled test sample by its nearest labelled train samples.

    Classes with equal votes go to the lowest label. Neighbours that tie for the last place are
    chosen by `torch.topk`: the same ones in every run on one device.

    Args:
        train: the samples that vote; those without a label are left out.
        test: the samples to classify; those without a label are left out.
        neighbours: votes per test sample; all of train where it is smaller.
        temperature: T of exp(s / T); small makes the nearest neighbour decide.
        rows: test samples per block; changes memory and speed only.

    Returns:
        {"knn_top1": share of test samples classified rightly, 0 to 1}.

    Raises:
        ValueError: a setting is out of range, or the labels do not allow classification.
    """
    check(neighbours, temperature)
    label_K, train, test = number_classes(train, test)
    s_QK, row_QK = nearest(test.h_NF, train.h_NF, count=neighbours, rows=rows)
    few = max(1, VOTES // len(label_K))
    parts = zip(s_QK.split(few), train.label_N[row_QK].split(few), strict=True)
    class_Q = torch.cat([_classify(*part, len(label_K), temperature) for part in parts])
    return {"knn_top1": int((class_Q == test.label_N).sum()) / len(test)}


def check(neighbours: int, temperature: float) -> None:
    """Refuse settings that are out of range.

    Raises:
        ValueError: one is.
    """
    if neighbours < 1 or temperature <= 0:
        raise ValueError(
            f"neighbours={neighbours} and temperature={temperature}, but k-NN needs at least one "
            "neighbour and a temperature above 0; the usual values are 20 and 0.07."
        )


def weights(s_QK: Tensor, temperature: float) -> Tensor:
    """Return the weights [Q, K] of the votes of neighbours, nearest first, by their cosines.

    They are relative to the nearest, so that no temperature overflows; the largest vote is the
    same.
    """
    return ((s_QK - s_QK[:, :1]) / temperature).exp()


def _classify(s_QK: Tensor, class_QK: Tensor, classes: int, temperature: float) -> Tensor:
    """Return the class [Q] with the most votes among each query's neighbours, nearest first."""
    weight_QK = weights(s_QK, temperature)
    # C is for classes here, K for neighbours.
    votes_QC = s_QK.new_zeros(len(s_QK), classes)
    # One neighbour at a time: within a call no class is added to twice, so the order of the
    # additions, and with it the sum, is the same in every run, also on a GPU.
    for k in range(s_QK.shape[1]):
        votes_QC.scatter_add_(1, class_QK[:, k : k + 1], weight_QK[:, k : k + 1])
    return votes_QC.argmax(dim=1)
