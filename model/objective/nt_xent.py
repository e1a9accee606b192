"""NT-Xent: normalised, temperature-scaled cross-entropy, with any number of views.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, https://arxiv.org/abs/2002.05709

Differs from the authors' code (google-research/simclr, 383d414): more than two views are allowed;
at V = 2 the loss is theirs, as a mean over the 2A queries where theirs adds up two means over A.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.objective.queries import MeanOverQueries, PerQuery


class NTXent(MeanOverQueries):
    """The mean cross-entropy of each positive against all views of all other samples.

        loss = mean over queries q and positives k of -log( e_qk / (e_qk + Σ_n e_qn) ),
               e = exp(score / temperature)

    The negatives n are all V(A - 1) views of the other samples; a query's other positives are not
    in the denominator. There is a variant that averages two-view NT-Xent over all pairs of views,
    with the 2(A - 1) negatives of the pair only: at V > 2 its values differ from these.

    Memory is O(N · chunk), as for all objectives over queries.

    Args:
        temperature: divides the cosines. 0.1 is the paper's choice for ImageNet; it also did best
            in a trial on CIFAR-10 with 8 views of 32 images (k-NN 0.493, against 0.466 at 0.2).
            The paper's choice for CIFAR-10, with two views, was 0.5.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.1.")
        self.temperature = temperature

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return the mean cross-entropy of each query; see `MeanOverQueries.per_query`."""
        K = positive_QK.shape[1]
        negative_QG = S_QG.scatter_(1, positive_QK, -torch.inf).div_(self.temperature)
        logit_QK = self.logits(S_QK)

        # The negatives' part of the denominator, once for all positives, kept as a logarithm.
        top_Q1 = negative_QG.amax(-1, keepdim=True)
        weight_QG = negative_QG.sub_(top_Q1).exp_()  # 0 at the positives and the query itself
        sum_Q1 = weight_QG.sum(-1, keepdim=True)
        margin_QK = logit_QK - (top_Q1 + sum_Q1.log())
        loss_Q = -F.logsigmoid(margin_QK).mean(-1)
        if not grad:
            return PerQuery(loss_Q)

        wrong_QK = torch.sigmoid(-margin_QK) / (K * self.temperature)  # 1 - the probability of k
        return PerQuery(loss_Q, weight_QG.mul_(wrong_QK.sum(-1, keepdim=True) / sum_Q1), -wrong_QK)

    def logits(self, S_QK: Tensor) -> Tensor:
        """Return what stands for the positives in the cross-entropy, from their cosines [Q, K].

        Its derivative by a cosine is to be 1 / temperature.
        """
        return S_QK / self.temperature
