"""Average precision from histograms of scores: what quantised AP and FastAP have in common.

A score counts for the two bins whose centres it lies between, for each the more the nearer:

    centre b          centre b+1
       │◀─ f ─▶ s ◀─ 1-f ─▶│          bin b gets 1 - f, bin b+1 gets f (distances in bin widths)

That is the triangular kernel max(0, 1 - |s - centre| / width) of both papers, of which only two
bins ever see anything: so a score costs the same whatever the number of bins, and its derivative is
the difference of the two bins' derivatives.
"""

import torch.nn.functional as F
from torch import Tensor

from model.objective.queries import PerQuery


def histogram_ap(
    S_QG: Tensor, S_QK: Tensor, *, bins: int, lowest: float, highest: float, grad: bool
) -> PerQuery:
    """Return 1 - AP of each query, with precision and recall taken at the bins, best first.

        AP = Σ_b precision_b · recall_b,   precision_b = H⁺_b / H_b,   recall_b = h⁺_b / K

    with h and h⁺ the histograms of the gallery and of the positives, H and H⁺ their running sums.

    Args:
        S_QG: see `MeanOverQueries.per_query`; is overwritten.
        S_QK: see there.
        bins: number of bins, centred evenly from `highest` down to `lowest`.
        lowest: what lies below is in the last bin, and has no gradient.
        highest: what lies above is in the first bin, and has no gradient.
        grad: whether the derivatives are wanted.
    """
    K = S_QK.shape[1]
    per_score = (bins - 1) / (highest - lowest)  # bins, best first, by score: the slope is negative

    # A query that is in the gallery itself has the score -inf there: not to be counted.
    itself_Q = S_QG.amin(-1).isneginf().to(S_QG.dtype)
    h_QB, below_QG = _histogram(S_QG, bins, per_score, highest)
    h_QB[:, -1] -= itself_Q
    right_QB, below_QK = _histogram(S_QK.clone(), bins, per_score, highest)

    # Where H is 0 so is H⁺: the floor only keeps 0/0 away.
    H_QB = h_QB.cumsum(-1).clamp_(min=1e-16)
    precision_QB = right_QB.cumsum(-1) / H_QB
    loss_Q = 1 - (precision_QB * right_QB).sum(-1) / K
    if not grad:
        return PerQuery(loss_Q)

    # A count moves its own bin's running sums and those of all bins behind it.
    dh_QB = _sum_from_behind(precision_QB * right_QB / H_QB) / K
    dright_QB = -(precision_QB + _sum_from_behind(right_QB / H_QB)) / K
    return PerQuery(
        loss_Q,
        _derivative(dh_QB, per_score).gather(1, below_QG),
        _derivative(dright_QB, per_score).gather(1, below_QK),
    )


def _histogram(S_QG: Tensor, bins: int, per_score: float, highest: float) -> tuple[Tensor, Tensor]:
    """Return the soft histogram [Q, bins] and, for every score, the place before its two bins.

    Places 0 to bins + 1 are the bins with one more at either end, for what lies outside: it counts
    for the outermost bin alone. So place p is bin p - 1. Overwrites S [Q, G].
    """
    place_QG = S_QG.mul_(-per_score).add_(1 + highest * per_score).clamp_(0, bins)
    before_QG = place_QG.long().clamp_(0, bins)  # NaN becomes a number that is no place
    further_QG = place_QG.frac_()
    count_QP = S_QG.new_zeros(len(S_QG), bins + 2)
    count_QP[:, 1:].scatter_add_(1, before_QG, further_QG)
    count_QP.scatter_add_(1, before_QG, further_QG.neg_().add_(1))
    count_QP[:, 1] += count_QP[:, 0]
    count_QP[:, -2] += count_QP[:, -1]
    return count_QP[:, 1:-1], before_QG


def _derivative(dh_QB: Tensor, per_score: float) -> Tensor:
    """Return the derivative by a score, from the derivatives by the counts of its two bins.

    By the place before it, [Q, bins + 1]: nothing changes outside the outermost centres.
    """
    between_QB = (dh_QB[:, :-1] - dh_QB[:, 1:]) * per_score
    return F.pad(between_QB, (1, 1))


def _sum_from_behind(x_QB: Tensor) -> Tensor:
    return x_QB.flip(-1).cumsum(-1).flip(-1)
