"""Blackbox AP: exact average precision, with a gradient from how positions answer to a push.

Rolínek, Musil, Paulus, Vlastelica, Michaelis, Martius, "Optimizing Rank-based Metrics with Blackbox
Differentiation", CVPR 2020, https://arxiv.org/abs/1912.03500

Differs from the authors' code (martius-lab/blackbox-backprop, 075bf56):
- a query is not in its own gallery;
- the margin is added as it is; theirs is multiplied by |N(0, 1)|, drawn for each score and step.
  With draws, the loss of a batch would be a random number, the parts of the ranks would not add
  up to the whole, and nothing could be compared. The mean of |N(0, 1)| is 0.8;
- positions are whole numbers and a query's loss its own, where theirs divides positions by the
  gallery's size G and the loss by the number of queries N before the push. Both cancel if N = G:
  our λ is theirs times G / N, and the gradient is the same;
- equal scores share the last of their positions, as in the step-wise precision-recall curve;
  theirs orders them by chance, so that a collapsed encoder is sometimes right. Their 1e-5 in the
  denominator of AP is left out.
"""

import torch
from torch import Tensor

from model.objective.queries import MeanOverQueries, PerQuery


class BlackboxAP(MeanOverQueries):
    """The mean of 1 - AP over all views as queries, exact but for the margin.

        position_k = number of gallery views that score as high as k or higher, k itself included
        AP         = mean over positives k of among_positives_k / position_k

    Its gradient by the scores s is not that of the loss, which is a step function, but that of an
    interpolation of it: with the loss's derivative by the positions, which is zero but at the
    positives, push the scores, look where all then stand, and divide by the push:

        s' = s + λ ∂loss/∂position(s),     ∂loss/∂s ≈ (position(s') - position(s)) / λ

    So negatives are pushed down which a positive passes on its way from s to s'. With rising λ it
    is a coarser and smoother loss whose exact gradient this is.

    Args:
        interpolation: λ, how far the scores are pushed for a derivative of one. 4 is the setting
            of ROADMAP's authors (elias-ramzi/ROADMAP).
        margin: by how much a positive's cosine is to exceed a negative's: positives are ranked
            half of it lower and negatives half of it higher. Without it a query that ranks
            perfectly has no gradient; 0.02 as in ROADMAP. 0 gives exact AP.
    """

    def __init__(self, *, interpolation: float = 4.0, margin: float = 0.02) -> None:
        super().__init__()
        if interpolation <= 0:
            raise ValueError(
                f"interpolation={interpolation}, expected a number above 0, such as 4."
            )
        if margin < 0:
            raise ValueError(f"margin={margin}, expected a number of 0 or more, such as 0.02.")
        self.interpolation = interpolation
        self.margin = margin

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return 1 - AP of each query and the published differences; see `MeanOverQueries`."""
        K = positive_QK.shape[1]
        negative_QG = S_QG.scatter_(1, positive_QK, -torch.inf)
        S_QK = S_QK - self.margin

        among_QK = _not_below(S_QK, S_QK)
        position_QK = among_QK + _not_below(negative_QG, S_QK)
        loss_Q = 1 - (among_QK / position_QK).mean(-1)
        if not grad:
            return PerQuery(loss_Q)

        # Positions are minimised, so the push is upwards, and of the positives only.
        pushed_QK = S_QK + self.interpolation * among_QK / (position_QK.square() * K)
        pushed_position_QK = _not_below(pushed_QK, pushed_QK) + _not_below(negative_QG, pushed_QK)
        # A positive on its way passes the negatives that are above where it was, but not above
        # where it gets to.
        passed_QG, above_QG = torch.zeros_like(negative_QG), torch.empty_like(negative_QG)
        for k in range(K):
            passed_QG += torch.gt(negative_QG, S_QK[:, k, None], out=above_QG)
            passed_QG -= torch.gt(negative_QG, pushed_QK[:, k, None], out=above_QG)
        dS_QK = (pushed_position_QK - position_QK) / self.interpolation
        return PerQuery(loss_Q, passed_QG.div_(self.interpolation), dS_QK)


def _not_below(S_QG: Tensor, S_QK: Tensor) -> Tensor:
    """Return how many of a query's scores [Q, G] are as high as each of its positives' [Q, K].

    K comparisons, written as numbers, because a sum of bool takes six times as long on the CPU.
    To sort the gallery takes as long as some hundred of them.
    """
    count_QK, found_QG = torch.empty_like(S_QK), torch.empty_like(S_QG)
    for k in range(S_QK.shape[1]):
        count_QK[:, k] = torch.ge(S_QG, S_QK[:, k, None], out=found_QG).sum(-1)
    return count_QK
