"""Smooth-AP: one minus average precision, each comparison of two scores relaxed to a sigmoid.

Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image
Retrieval", ECCV 2020, https://arxiv.org/abs/2007.12163

As a loss over many views of each image it is our form of S2R2: Varamesh, Diba, Tuytelaars, Van
Gool, "Self-Supervised Ranking for Representation Learning", 2020, https://arxiv.org/abs/2010.07258,
whose own relaxation of AP is not known to us.

Differs from the authors' code (Andrew-Brown1/Smooth_AP, 59927ec):
- a query is not its own positive (theirs is, which raises AP by about 1/V);
- only comparisons with a positive are made, O(N²(V-1)) of them, which gives the same value as
  their O(N³), and never more than a few chunks of queries by N are stored;
- the sigmoid's exponent is not clamped to ±50; the default temperature is 0.05, not 0.01.
"""

import torch
from torch import Tensor

from .queries import MeanOverQueries, PerQuery


class SmoothAP(MeanOverQueries):
    """The mean of 1 - AP over all views as queries, with the sigmoid in place of the step.

    For a query, with s its scores, P its positives and G its gallery (all views but itself):

        position_k       = 1 + Σ_{g ∈ G, g ≠ k} σ((s_g - s_k) / temperature)
        among_positives_k = the same sum over P
        AP               = mean over k ∈ P of among_positives_k / position_k

    Args:
        temperature: width of the sigmoid in units of cosine. The paper's 0.01 gives a gradient
            only where two scores differ by less than about 0.05. With 8 views of 32 images 0.05
            did best in a trial on CIFAR-10 (k-NN 0.495, against 0.490 at 0.02, 0.469 at 0.1).
    """

    def __init__(self, *, temperature: float = 0.05) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.05.")
        self.temperature = temperature

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return 1 - AP of each query; see `MeanOverQueries.per_query`."""
        K = positive_QK.shape[1]
        S_QG, S_QK = S_QG.div_(self.temperature), S_QK / self.temperature

        # [q, k, p]: how surely positive p stands above positive k. Each sum holds k itself too:
        # sigmoid(0) is one half, and the 0.5 in front of it the other.
        above_QKK = torch.sigmoid(S_QK[:, None, :] - S_QK[:, :, None])
        among_positives_QK = 0.5 + above_QKK.sum(-1)

        # One positive at a time: its comparisons are used up while they are in the cache.
        position_QK = torch.empty_like(S_QK)
        above_QG = torch.empty_like(S_QG)
        dS_QG = torch.zeros_like(S_QG) if grad else None
        dS_QK = torch.zeros_like(S_QK)
        for k in range(K):
            torch.sub(S_QG, S_QK[:, k, None], out=above_QG).sigmoid_()
            position_Q = position_QK[:, k] = 0.5 + above_QG.sum(-1)
            if dS_QG is not None:
                # -∂AP/∂position, times σ(1 - σ): towards each g, and from k as much as to all g.
                pull_Q = among_positives_QK[:, k] / (position_Q.square() * (K * self.temperature))
                pull_QG = torch.ops.aten.sigmoid_backward.grad_input(
                    pull_Q[:, None], above_QG, grad_input=above_QG
                )
                dS_QG += pull_QG
                dS_QK[:, k] -= pull_QG.sum(-1)
        if dS_QG is not None:
            # -∂AP/∂among_positives, the same way with the opposite sign.
            push_QKK = above_QKK * (1 - above_QKK)
            push_QKK /= position_QK[..., None] * (K * self.temperature)
            dS_QK += push_QKK.sum(-1) - push_QKK.sum(-2)
        return PerQuery(1 - (among_positives_QK / position_QK).mean(-1), dS_QG, dS_QK)
