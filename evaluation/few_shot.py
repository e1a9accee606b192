"""Few-shot classification of frozen features: a class is the mean of a few labelled images.

Wang, Chao, Weinberger, van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for
Few-Shot Learning", 2019, https://arxiv.org/abs/1911.04623, its L2N: features of unit length, a
class is the mean of its images, and the nearest mean by Euclidean distance wins. Known differences:
all classes of the set compete (theirs: 5 of them), every test image is a query, and the few are
drawn from the training set. The figure is the mean over draws with 1.96 standard errors, as there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features, number_classes
from evaluation.label_draw import shuffled_by_class
from evaluation.score import blocks
from shards.one_line import few

SHOTS = (1, 5, 10)
DRAWS = 100
MEANS = 2**24  # numbers in the class means that are held at once: 64 MiB


@torch.no_grad()
def run(
    train: Features,
    test: Features,
    *,
    shots: int,
    draws: int = DRAWS,
    seed: int = 0,
    classes: Sequence[str] = (),
    rows: int | None = None,
) -> dict[str, float]:
    """Classify all labelled test samples by class means of a few train samples, in many draws.

    A draw of 5 images a class begins with those of the draw of 1 with the same seed.

    Args:
        train: samples to draw from; those without a label are left out.
        test: samples to classify; those without a label are left out.
        shots: images of each class in a draw.
        draws: how many are made, 2 or more.
        seed: of the draws; the order of the samples does not matter.
        classes: their names, for messages.
        rows: test samples per block; changes memory and speed only.

    Returns:
        few_shot_{shots}_top1: mean over draws of the share classified rightly, 0 to 1.
        few_shot_{shots}_ci: half of its 95 % interval: 1.96 standard errors over the draws.

    Raises:
        ValueError: a setting is out of range, a class has too few samples, or the labels do not
            allow classification.
    """
    if shots < 1 or draws < 2:
        raise ValueError(
            f"shots={shots} and draws={draws}, but it takes an image a class, and two draws for an "
            "interval; the usual values are 1, 5 and 10, and 100."
        )
    label_K, train, test = number_classes(train, test)
    _refuse_few(train, label_K, shots, classes)
    K, size = len(label_K), train.h_NF.shape[1]
    test_QF = F.normalize(test.h_NF.float(), dim=1)
    index_RKS = draw(train.label_N, train.id_N, shots=shots, draws=draws, seed=seed)
    right_R = torch.zeros(draws, dtype=torch.int64, device=test_QF.device)
    together = max(1, MEANS // (K * shots * size))
    for first in range(0, draws, together):
        drawn_RKS = index_RKS[first : first + together]
        h_RKSF = F.normalize(train.h_NF[drawn_RKS].float(), dim=-1)
        mean_GF = h_RKSF.mean(dim=2).flatten(0, 1)  # every class of every draw
        length_G = mean_GF.square().sum(dim=1) / 2
        for start, S_QG in blocks(test_QF, mean_GF, rows=rows):
            # |x - m|² = 1 - 2 (xm - |m|²/2): the largest of these is the nearest mean.
            nearest_QR = (S_QG - length_G).unflatten(1, (-1, K)).argmax(dim=2)
            class_Q = test.label_N[start : start + len(S_QG)]
            right_R[first : first + together] += (nearest_QR == class_Q[:, None]).sum(dim=0)
    top1_R = right_R.double() / len(test)
    return {
        f"few_shot_{shots}_top1": float(top1_R.mean()),
        f"few_shot_{shots}_ci": float(1.96 * top1_R.std() / draws**0.5),
    }


def draw(class_N: Tensor, id_N: Tensor, *, shots: int, draws: int, seed: int) -> Tensor:
    """Return rows [R, K, S] of R draws of S samples, without repetition, of each of K classes.

    Args:
        class_N: class numbers, 0 to K - 1, each with `shots` samples or more.
        id_N: sample ids; with them the order in which the samples came does not matter.
        shots: S.
        draws: R.
        seed: of the draws.
    """
    generator, order_N = torch.Generator().manual_seed(seed), id_N.argsort(stable=True)
    count_K = class_N.bincount()
    first_K = count_K.cumsum(0) - count_K
    place_KS = first_K[:, None] + torch.arange(shots, device=class_N.device)
    found = [shuffled_by_class(class_N, order_N, generator)[place_KS] for _ in range(draws)]
    return torch.stack(found)


def _refuse_few(train: Features, label_K: Tensor, shots: int, classes: Sequence[str]) -> None:
    """Refuse classes with fewer samples than are drawn of each, by their names."""
    count_K = train.label_N.bincount()
    short = (count_K < shots).nonzero()[:, 0].tolist()
    if not short:
        return
    labels = {int(label_K[k]): int(count_K[k]) for k in short}
    named = [
        f"{classes[label] if label < len(classes) else label} has {count}"
        for label, count in labels.items()
    ]
    raise ValueError(
        f"{len(short)} of {len(count_K)} classes have fewer than {shots} train images "
        f"({few(named, 3)}), so that {shots} of each cannot be drawn"
    )
