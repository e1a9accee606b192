"""Average precision of each category: the images are ranked by its scores, and some show it.

Three definitions are in use. With precision and recall after each place of the ranking:

    step     mean of the precisions at the positives: scikit-learn's, and that of papers on COCO
    voc      the same of interpolated precisions, the highest at this recall or a larger one: the
             area under the curve, PASCAL VOC's since 2010
    voc07    mean of the interpolated precisions at the recalls 0, 0.1, … 1: VOC's until 2009

Everingham, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes (VOC) Challenge",
IJCV 2010, section 4.2, https://doi.org/10.1007/s11263-009-0275-4; VOCap.m and VOCevalcls.m of its
development kit. Known differences: images that score alike are all found at once, at the last of
their places, so that nothing is gained by scoring alike; and recalls are compared exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.retrieval import positions
from shards.layout import PRESENT

STEPS = 10
"""Of `voc07`, from recall 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class CategoryPrecision:
    """Average precision of each category [K] by each definition; nan where no image shows it."""

    step_K: Tensor
    voc_K: Tensor
    voc07_K: Tensor

    def by_name(self, names: Sequence[str]) -> dict[str, float]:
        """Return {category: its AP by `step`} of those that an image shows."""
        found = zip(names, self.step_K.tolist(), strict=True)
        return {name: ap for name, ap in found if ap == ap}  # not nan


@torch.no_grad()
def category_precision(score_NK: Tensor, category_NK: Tensor) -> CategoryPrecision:
    """Rank the images by the scores of each category.

    Args:
        score_NK: higher where a category is thought to be in an image; float32, finite.
        category_NK: 0 where it is absent, 1 where it is present, more where it does not count: the
            image is neither right nor wrong then.

    Raises:
        ValueError: no image shows any category.
    """
    category_KN = category_NK.T
    present_KN = category_KN == PRESENT
    positives_K = present_KN.sum(dim=1)
    if not bool(positives_K.any()):
        raise ValueError(
            f"None of the {len(category_NK)} images shows any of the {len(positives_K)} categories."
        )
    # A category is a query, the images are its gallery; -inf takes one out.
    S_KN = score_NK.T.masked_fill(category_KN > PRESENT, -torch.inf)
    # P is for the positives of a category, the lowest score first: their recall falls.
    position_KP, hits_KP = positions(S_KN, present_KN)
    precision_KP = hits_KP / position_KP
    interpolated_KP = precision_KP.cummax(dim=1).values
    at_recall = [
        precision_KP.masked_fill(STEPS * hits_KP < step * positives_K[:, None], 0).amax(dim=1)
        for step in range(STEPS + 1)
    ]
    return CategoryPrecision(
        step_K=precision_KP.sum(dim=1) / positives_K,
        voc_K=interpolated_KP.sum(dim=1) / positives_K,
        voc07_K=torch.stack(at_recall).mean(dim=0).masked_fill(positives_K == 0, torch.nan),
    )


def mean_precision(ap_K: Tensor) -> float:
    """Return the mean over the categories that an image shows."""
    return float(ap_K.double().nanmean())
