"""Quantised AP: average precision from soft histograms of the scores.

He, Lu, Sclaroff, "Local Descriptors Optimized for Average Precision", CVPR 2018,
https://arxiv.org/abs/1804.05312, and for images Revaud, Almazán, Rezende, de Souza, "Learning with
Average Precision: Training Image Retrieval with a Listwise Loss", ICCV 2019,
https://arxiv.org/abs/1906.07589

Differs from the authors' code (naver/deep-image-retrieval, 610247f):
- a query is not its own positive, nor in its own gallery;
- bins cover all cosines, -1 to 1, and there are 20 of them, as in ROADMAP's re-implementation;
  theirs are 25 on [0, 1] (bins=25, lowest=0), where two views that disagree have no gradient;
- a score is put into its two bins, at a cost that does not grow with their number; theirs compares
  every score with every bin.
"""

from torch import Tensor

from model.objective.histogram import histogram_ap
from model.objective.queries import MeanOverQueries, PerQuery


class QuantizedAP(MeanOverQueries):
    """The mean of 1 - AP over all views as queries, precision and recall taken at score bins.

        AP = Σ_b precision_b · recall_b, over the bins b from the highest score down

    A score has a gradient only between two bins that differ in what they say: more bins tell
    finer differences apart, fewer reach further.

    Args:
        bins: number of bins, with evenly spaced centres.
        lowest: centre of the last bin, a cosine; what lies below counts for it, without gradient.
        highest: centre of the first bin; what lies above counts for it, without gradient.
    """

    def __init__(self, *, bins: int = 20, lowest: float = -1.0, highest: float = 1.0) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins={bins}, expected 2 or more, such as 20.")
        if not lowest < highest:
            raise ValueError(
                f"lowest={lowest} and highest={highest}, expected the first below the second: the "
                "range of cosines to tell apart, such as -1 and 1."
            )
        self.bins = bins
        self.lowest = lowest
        self.highest = highest

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return 1 - AP of each query; see `MeanOverQueries.per_query`."""
        del positive_QK  # their own histogram needs only their scores
        return histogram_ap(
            S_QG, S_QK, bins=self.bins, lowest=self.lowest, highest=self.highest, grad=grad
        )
