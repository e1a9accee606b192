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

from model.objective.queries import MeanOverQueries, PerQuery


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
        negative_QG = S_QG.scatter_(1, positive_QK, -torch.inf)
        among_QK = (S_QK[:, None, :] >= S_QK[:, :, None]).sum(-1).to(S_QK.dtype)
        calibration_Q, dS_QG, dS_QK = self.calibrate(negative_QG, S_QK)

        # Differences in units of the temperature. Comparisons are written as numbers, 0 and 1: on
        # the CPU that takes a fifth of the time of where() and of sums of bool.
        negative_QG, S_QK = negative_QG.div_(self.temperature), S_QK / self.temperature
        margin, slope = self.margin / self.temperature, self.slope * self.temperature
        position_QK = torch.empty_like(S_QK)
        difference_QG, far_QG, near_QG = (torch.empty_like(negative_QG) for _ in range(3))
        for k in range(K):  # one at a time: what it needs stays in the cache
            torch.sub(negative_QG, S_QK[:, k, None], out=difference_QG)
            above_Q = torch.gt(difference_QG, 0, out=near_QG).sum(-1)
            far_Q = torch.gt(difference_QG, margin, out=far_QG).sum(-1)
            # Far ones, like positives and the query itself at -inf, are to have a sigmoid of 0.
            torch.add(difference_QG, far_QG, alpha=-1e30, out=near_QG).sigmoid_()
            beyond_Q = difference_QG.sub_(margin).relu_().sum(-1)
            position_QK[:, k] = among_QK[:, k] + near_QG.sum(-1) + (above_Q - far_Q) / 2
            position_QK[:, k] += slope * beyond_Q + self.step * far_Q
            if grad:
                pull_Q1 = (among_QK[:, k] / position_QK[:, k].square())[:, None]
                pull_Q1 = pull_Q1 / (K * self.temperature)
                near_QG = torch.ops.aten.sigmoid_backward.grad_input(
                    pull_Q1, near_QG, grad_input=near_QG
                )
                pull_QG = near_QG.addcmul_(far_QG, pull_Q1 * slope)
                dS_QG += pull_QG
                dS_QK[:, k] -= pull_QG.sum(-1)
        loss_Q = 1 - (among_QK / position_QK).mean(-1) + calibration_Q
        return PerQuery(loss_Q, dS_QG, dS_QK) if grad else PerQuery(loss_Q)

    def calibrate(self, negative_QG: Tensor, S_QK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted calibration loss [Q] and its derivatives by both kinds of scores."""
        low_QK = (self.positive_cosine - S_QK).relu_()
        high_QG = (negative_QG - self.negative_cosine).relu_()
        loss_Q, derivatives = torch.zeros_like(S_QK[:, 0]), []
        for excess, weight in ((high_QG, self.calibration), (low_QK, -self.calibration)):
            sum_Q = excess.sum(-1)
            wrong = excess.sign_()
            wrong_Q = wrong.sum(-1).clamp_(min=1)
            loss_Q += self.calibration * sum_Q / wrong_Q
            derivatives.append(wrong.mul_((weight / wrong_Q)[:, None]))
        return loss_Q, derivatives[0], derivatives[1]
