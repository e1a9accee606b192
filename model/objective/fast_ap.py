"""FastAP: average precision from soft histograms of squared distances.

Cakir, He, Xia, Kulis, Sclaroff, "Deep Metric Learning to Rank", CVPR 2019,
https://openaccess.thecvf.com/content_CVPR_2019/html/Cakir_Deep_Metric_Learning_to_Rank_CVPR_2019_paper.html

Of unit vectors the squared distance is 2 - 2 · cosine, so L + 1 bins of it on [0, 4] are L + 1 bins
of the cosine on [-1, 1]; and the paper's Σ_l H⁺_l h⁺_l / (H_l N⁺) is Σ precision · recall. Thus
FastAP with L is quantised AP with L + 1 bins, and both share their code; the papers differ in where
the formula comes from and in how batches are drawn.

Differs from the authors' code (kunhe/FastAP-metric-learning, ca85b2a): batches are the loader's,
while theirs draws classes of one category together, and they say that this matters.
"""

from torch import Tensor

from model.objective.histogram import histogram_ap
from model.objective.queries import MeanOverQueries, PerQuery


class FastAP(MeanOverQueries):
    """The mean of 1 - AP over all views as queries, precision and recall taken at distance bins.

    Args:
        intervals: L, into how many intervals the squared distances 0 to 4 are divided; their
            L + 1 limits are the bins' centres. The paper's is 10.
    """

    def __init__(self, *, intervals: int = 10) -> None:
        super().__init__()
        if intervals < 1:
            raise ValueError(f"intervals={intervals}, expected 1 or more, such as 10.")
        self.intervals = intervals

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return 1 - AP of each query; see `MeanOverQueries.per_query`."""
        del positive_QK  # their own histogram needs only their scores
        bins = self.intervals + 1
        return histogram_ap(S_QG, S_QK, bins=bins, lowest=-1.0, highest=1.0, grad=grad)
