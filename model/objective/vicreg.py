"""VICReg: views of a sample close, every dimension spread out, no two dimensions correlated.

Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022, https://arxiv.org/abs/2105.04906

Differs from the authors' code (facebookresearch/vicreg, 4e12602): more than two views are allowed;
at V = 2 the loss is theirs, variance halved and covariance not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.objective.objective import Objective


class VICReg(Objective):
    """The mean over pairs of views of the paper's loss of two views.

        loss = invariance · s(z, z') + variance · (v(z) + v(z')) / 2
               + covariance · (c(z) + c(z'))

        s(z, z') = mean squared difference
        v(z)     = mean over dimensions of relu(1 - √(variance + 0.0001))
        c(z)     = Σ_i Σ_{j≠i} covariance_ij² / D

    Variances and covariances are those of one view over all A samples. Pairs are those with a view
    of the gallery, so two small crops are not compared. Embeddings are not normalised: the variance
    term gives them their length.

    Statistics are of all samples together, so every part of the samples has the loss of the whole.

    Args:
        invariance: weight of the views' distance.
        variance: weight of the dimensions' spread.
        covariance: weight of the dimensions' likeness.
    """

    def __init__(
        self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
    ) -> None:
        super().__init__()
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name}={weight}, expected a weight of 0 or more.")
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`."""
        del samples
        V, A, D = z_VAD.shape
        # In how many pairs a view is: one of the gallery with all others, a crop with the gallery.
        pairs_V = torch.full((V,), float(gallery_views), dtype=z_VAD.dtype, device=z_VAD.device)
        pairs_V[:gallery_views].fill_(V - 1)
        pairs = pairs_V.sum() / 2

        # All pairs' squared differences, from those to the gallery's mean m alone: n points differ
        # by Σ_{i<j} (x_i - x_j)² = n Σ (x_i - m)², and from y by Σ (x_i - m)² + n (y - m)².
        times_V = pairs_V.clone()
        times_V[:gallery_views] += 1
        apart_V = (z_VAD - z_VAD[:gallery_views].mean(0)).square().mean((1, 2))
        s = (times_V * apart_V).sum() / pairs

        centred_VAD = z_VAD - z_VAD.mean(1, keepdim=True)
        std_VD = torch.sqrt(z_VAD.var(1) + 1e-4)
        v_V = F.relu(1 - std_VD).mean(-1)

        covariance_VDD = centred_VAD.mT @ centred_VAD / (A - 1)
        other_DD = 1 - torch.eye(D, dtype=z_VAD.dtype, device=z_VAD.device)
        c_V = (covariance_VDD * other_DD).square().sum((1, 2)) / D

        v = (pairs_V * v_V).sum() / pairs
        c = (pairs_V * c_V).sum() / pairs
        return self.invariance * s + self.variance * v / 2 + self.covariance * c
