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

On a GPU with Triton `model.kernel.fused_smooth_ap` computes the same without storing scores.
"""

from typing import Literal

import torch
from torch import Tensor

from model.kernel import runs_on
from model.objective.queries import MeanOverQueries, PerQuery


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
        precision: of what is multiplied to scores and to the gradient; sums and sigmoids are
            float32 always. bf16, for speed on a GPU, rounds embeddings to 8 bits. On 8 views of 64
            CIFAR-10 images (as 128 principal components) it changed the loss by 1e-4 at most, the
            gradient by 0.4 % at temperature 0.1, 0.7 % at 0.05, 3.4 % at 0.01; float32 by 5e-6 at
            most, and fused by 1e-5.
    """

    def __init__(
        self, *, temperature: float = 0.05, precision: Literal["float32", "bf16"] = "float32"
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.05.")
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision={precision!r}, expected 'float32' or 'bf16'.")
        self.temperature = temperature
        self.precision: Literal["float32", "bf16"] = precision

    def value_and_gradient(
        self, z_VAD: Tensor, gallery_views: int, samples: slice, *, grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `OnePass.value_and_gradient`."""
        if z_VAD.dtype == torch.float32 and runs_on(z_VAD.device):
            from model.kernel.fused_smooth_ap import smooth_ap

            return smooth_ap(
                z_VAD,
                gallery_views,
                samples,
                temperature=self.temperature,
                precision=self.precision,
                grad=grad,
            )
        if self.precision == "bf16":
            z_VAD = z_VAD.bfloat16().to(z_VAD.dtype)
        return super().value_and_gradient(z_VAD, gallery_views, samples, grad=grad)

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
