"""DCL, decoupled contrastive learning: NT-Xent without the positive in the denominator.

Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", ECCV 2022,
https://arxiv.org/abs/2110.06848

Differs from the authors' code (raminnakhli/Decoupled-Contrastive-Learning, 0b9b76d): more than two
views are allowed; at V = 2 the loss is theirs, as a mean over the 2A queries where theirs adds up
two means over A; the query's other views are left out altogether, where theirs adds log(1e-45) to
their logits. The weighted variant, DCLW, is not here.
"""

import torch
from torch import Tensor

from model.objective.queries import MeanOverQueries, PerQuery


class DCL(MeanOverQueries):
    """The mean of what each positive's score lacks of all negatives' soft maximum.

        loss = mean over queries q and positives k of -s_qk / temperature + log Σ_n e_qn,
               e = exp(score / temperature)

    The negatives n are all V(A - 1) views of the other samples. In NT-Xent a positive that is
    already likely silences the negatives' gradient; here it does not, which the authors found to
    help small batches most. The loss has no floor at 0.

    Args:
        temperature: divides the cosines; the authors' default.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.1.")
        self.temperature = temperature

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return the mean loss of each query's positives; see `MeanOverQueries.per_query`."""
        K = positive_QK.shape[1]
        negative_QG = S_QG.scatter_(1, positive_QK, -torch.inf).div_(self.temperature)
        logit_QK = S_QK / self.temperature

        top_Q1 = negative_QG.amax(-1, keepdim=True)
        weight_QG = negative_QG.sub_(top_Q1).exp_()  # 0 at the positives and the query itself
        sum_Q1 = weight_QG.sum(-1, keepdim=True)
        loss_Q = (top_Q1 + sum_Q1.log() - logit_QK).mean(-1)
        if not grad:
            return PerQuery(loss_Q)

        pull_QK = torch.full_like(S_QK, -1 / (K * self.temperature))
        return PerQuery(loss_Q, weight_QG.div_(sum_Q1 * self.temperature), pull_QK)
