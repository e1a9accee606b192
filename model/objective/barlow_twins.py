"""Barlow Twins: a dimension agrees with itself in another view, and with no other dimension.

Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", ICML 2021, https://arxiv.org/abs/2103.03230

Differs from the authors' code (facebookresearch/barlowtwins, 046eec3): more than two views are
allowed; at V = 2 the loss is theirs, with dimensions standardised over the samples of all ranks, as
their synchronised batch norm does. Their batch norms see a view at a time: `views_apart`.
"""

import torch
from torch import Tensor

from model.objective.objective import Objective


class BarlowTwins(Objective):
    """The mean over pairs of views of how far their cross-correlation is from the identity.

        loss = Σ_i (1 - C_ii)² + redundancy · Σ_i Σ_{j≠i} C_ij²

    where C [D, D] correlates the dimensions of one view with those of the other over all A samples.
    Pairs are those with a view of the gallery, so two small crops are not compared. A sum over
    dimensions, as in the paper: it grows with D. Embeddings are standardised over the samples
    instead of being normalised one by one.

    Statistics are of all samples together, so every part of the samples has the loss of the whole.

    Args:
        redundancy: λ, weight of what different dimensions have in common.
    """

    def __init__(self, *, redundancy: float = 0.0051) -> None:
        super().__init__()
        if redundancy < 0:
            raise ValueError(f"redundancy={redundancy}, expected a weight of 0 or more.")
        self.redundancy = redundancy

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`."""
        del samples
        V, A, D = z_VAD.shape
        centred_VAD = z_VAD - z_VAD.mean(1, keepdim=True)
        # 1e-5 is batch normalisation's, which the authors standardise with.
        z_VAD = centred_VAD / torch.sqrt(centred_VAD.square().mean(1, keepdim=True) + 1e-5)

        identity_DD = torch.eye(D, dtype=z_VAD.dtype, device=z_VAD.device)
        weight_DD = identity_DD + self.redundancy * (1 - identity_DD)
        losses = []
        for v in range(min(gallery_views, V - 1)):  # with every view after it
            C_WDD = z_VAD[v].mT @ z_VAD[v + 1 :] / A
            losses.append((weight_DD * (C_WDD - identity_DD).square()).sum((1, 2)))
        return torch.cat(losses).mean()
