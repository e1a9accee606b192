"""SupAP: average precision with an upper bound of each position, and calibrated scores.

Ramzi, Thome, Rambour, Audebert, Bitot, "Robust and Decomposable Average Precision for Image
Retrieval" (ROADMAP), NeurIPS 2021, https://arxiv.org/abs/2110.01445

Differs from the authors' code (elias-ramzi/ROADMAP, fed37d7):
- a query is neither its own positive nor in its own gallery;
- the calibration loss is averaged over a query's wrong pairs, then over queries; theirs is averaged
  over the wrong pairs of the whole batch, of which a part of the samples cannot know the number.
"""

import torch
from torch import Tensor

from .queries import MeanOverQueries, PerQuery


class SupAP(MeanOverQueries):
    """The mean of 1 - AP⁻ over all views as queries, with AP⁻ ≤ AP, plus a calibration loss.

    For a query, with s its scores, P its positives and N its negatives:

        among_k    = number of positives that score as high as k or higher; no gradient
        position_k = among_k + Σ_{n ∈ N} H(s_n - s_k)
        AP⁻        = mean over k ∈ P of among_k / position_k

        H(d) = σ(d / temperature)          for d ≤ 0
               1/2 + σ(d / temperature)    for 0 < d ≤ margin
               slope · (d - margin) + step beyond

    H is 1 or more where the true step is 1, and goes on rising: a negative far above a positive
    keeps its gradient, where Smooth-AP's sigmoid has none left. AP is of one query at a time; so
    that scores mean the same for all, pairs on the wrong side of fixed cosines cost what they lack:

        calibration = mean of (positive_cosine - s_k) over the k with s_k below positive_cosine
                    + mean of (s_n - negative_cosine) over the n with s_n above negative_cosine

    Args:
        temperature: width of the sigmoid in units of cosine.
        margin: up to where H is a sigmoid, in units of cosine.
        slope: slope of H beyond the margin.
        step: what H begins with beyond the margin.
        calibration: weight of the calibration loss; 0 leaves SupAP alone.
        positive_cosine: what positives should reach.
        negative_cosine: what negatives should stay below.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.01,
        margin: float = 0.05,
        slope: float = 100.0,
        step: float = 1.44,
        calibration: float = 1.0,
        positive_cosine: float = 0.9,
        negative_cosine: float = 0.6,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.01.")
        if margin < 0:
            raise ValueError(f"margin={margin}, expected a number of 0 or more, such as 0.05.")
        if slope < 0:
            raise ValueError(f"slope={slope}, expected a number of 0 or more, such as 100.")
        if step < 1:
            raise ValueError(
                f"step={step}, expected 1 or more, such as 1.44: below it positions would no "
                "longer be bounded from above."
            )
        if calibration < 0:
            raise ValueError(f"calibration={calibration}, expected a weight of 0 or more.")
        if not negative_cosine <= positive_cosine:
            raise ValueError(
                f"negative_cosine={negative_cosine} is above positive_cosine={positive_cosine}, "
                "expected the reverse, such as 0.6 and 0.9."
            )
        self.temperature = temperature
        self.margin = margin
        self.slope = slope
        self.step = step
        self.calibration = calibration
        self.positive_cosine = positive_cosine
        self.negative_cosine = negative_cosine

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return 1 - AP⁻ plus calibration of each query; see `MeanOverQueries.per_query`."""
        K = positive_QK.shape[1]
        negative_QG = S_QG.scatter_(1, positive_QK, -torch.inf)  # H(-inf) is 0
        among_QK = (S_QK[:, None, :] >= S_QK[:, :, None]).sum(-1).to(S_QK.dtype)

        position_QK = torch.empty_like(S_QK)
        dS_QG = torch.zeros_like(S_QG) if grad else None
        dS_QK = torch.zeros_like(S_QK) if grad else None
        for k in range(K):  # one at a time, as in Smooth-AP
            above_QG, slope_QG = self.above(negative_QG - S_QK[:, k, None])
            position_Q = position_QK[:, k] = among_QK[:, k] + above_QG.sum(-1)
            if dS_QG is not None and dS_QK is not None:
                pull_QG = slope_QG.mul_((among_QK[:, k] / (position_Q.square() * K))[:, None])
                dS_QG += pull_QG
                dS_QK[:, k] = -pull_QG.sum(-1)
        loss_Q = 1 - (among_QK / position_QK).mean(-1)

        for S, cosine, sign, dS in (
            (S_QK, self.positive_cosine, -1, dS_QK),
            (negative_QG, self.negative_cosine, 1, dS_QG),
        ):
            excess = (S - cosine).mul_(sign).relu_()
            wrong_Q = (excess > 0).sum(-1).clamp_(min=1).to(S.dtype)
            loss_Q += self.calibration * excess.sum(-1) / wrong_Q
            if dS is not None:
                dS += (excess > 0) * (sign * self.calibration / wrong_Q)[:, None]
        return PerQuery(loss_Q, dS_QG, dS_QK)

    def above(self, difference_QG: Tensor) -> tuple[Tensor, Tensor]:
        """Return H of s_n - s_k, and its derivative."""
        sigmoid_QG = torch.sigmoid(difference_QG / self.temperature)
        slope_QG = (sigmoid_QG * (1 - sigmoid_QG)).div_(self.temperature)
        above_QG = sigmoid_QG.add_(difference_QG > 0, alpha=0.5)
        far_QG = difference_QG > self.margin
        line_QG = (difference_QG - self.margin).mul_(self.slope).add_(self.step)
        return torch.where(far_QG, line_QG, above_QG), slope_QG.masked_fill_(far_QG, self.slope)
