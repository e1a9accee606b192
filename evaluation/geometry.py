"""Geometry on the unit sphere: do views agree, are samples spread, and in how many directions.

Alignment and uniformity: Wang, Isola, "Understanding Contrastive Representation Learning through
Alignment and Uniformity on the Hypersphere", ICML 2020, https://arxiv.org/abs/2005.10242, with
their alpha = 2 and t = 2. Lower is better for both.

Effective dimension: Roy, Vetterli, "The effective rank: A measure of effective dimensionality",
EUSIPCO 2007, of the covariance; D for an isotropic cloud, 1 for a line or a point. RankMe (Garrido,
Balestriero, Najman, LeCun, 2023, https://arxiv.org/abs/2210.02885) takes it of the embeddings
themselves, neither centred nor squared, and so reports larger numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.score import blocks


@torch.no_grad()
def run(z_VAD: Tensor, *, rows: int | None = None) -> dict[str, float]:
    """Measure embeddings [V, A, D] of any floating dtype; they need not be normalised.

    Args:
        z_VAD: embeddings, at least 2 views of at least 2 samples.
        rows: samples per block of the uniformity; changes memory and speed only.

    Returns:
        alignment: mean squared distance of two views of one sample, 0 (equal) to 4; 2 is chance.
        uniformity: log of the mean of exp(-2 * squared distance) over all pairs of *different*
            samples, by their *first* views only; 0 (all equal) down to about -4 (orthogonal).
        effective_dimension: 1 to D, over all views of all samples.

    Raises:
        ValueError: there are fewer than 2 views or 2 samples.
    """
    if z_VAD.ndim != 3 or z_VAD.shape[0] < 2 or z_VAD.shape[1] < 2:
        raise ValueError(
            f"Embeddings are {list(z_VAD.shape)}, expected [V, A, D] with 2 or more views V and "
            "samples A: alignment compares views, uniformity compares samples."
        )
    z_VAD = F.normalize(z_VAD.float(), dim=-1)
    return {
        "alignment": float(_alignment(z_VAD)),
        "uniformity": float(_uniformity(z_VAD[0], rows)),
        "effective_dimension": float(_effective_dimension(z_VAD)),
    }


@torch.no_grad()
def spread(z_VAD: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far embeddings are spread, and in about how many directions; no host sync.

    Cheap enough for log steps: no eigenvalues. The second figure is the participation ratio (Gao
    et al. 2017, https://doi.org/10.1101/214262), at most the effective dimension.

    Args:
        z_VAD: embeddings [V, A, D] of any floating dtype; they need not be normalised.

    Returns:
        Total variance on the unit sphere, 0 (one point) to 1, and tr(C)^2 / tr(C^2) of the
        covariance C, 1 to D.
    """
    z_ND = F.normalize(z_VAD.float(), dim=-1).flatten(0, 1)
    centred_ND = z_ND - z_ND.mean(dim=0)
    # The smaller of C and the matrix of inner products: both have the same squares' sum.
    N, D = centred_ND.shape
    gram = centred_ND.T @ centred_ND if D < N else centred_ND @ centred_ND.T
    total = centred_ND.square().sum()
    return total / N, total.square() / gram.square().sum().clamp(min=torch.finfo(total.dtype).tiny)


def _alignment(z_VAD: Tensor) -> Tensor:
    # The mean over the V (V - 1) / 2 pairs of |z_u - z_v|^2 is twice the views' variance: no pairs.
    return 2 * z_VAD.double().var(dim=0).sum(dim=-1).mean()


def _uniformity(z_AD: Tensor, rows: int | None) -> Tensor:
    A = len(z_AD)
    total = z_AD.new_zeros((), dtype=torch.float64)
    for start, S_QG in blocks(z_AD, z_AD, rows=rows):
        S_QG.diagonal(start).fill_(-torch.inf)  # a sample and itself: exp makes it 0
        # |a - b|^2 = 2 - 2 ab on the sphere. No term is below exp(-8): nothing underflows.
        total += (4 * S_QG - 4).exp().sum(dtype=torch.float64)
    return (total / (A * (A - 1))).log()


def _effective_dimension(z_VAD: Tensor) -> Tensor:
    N = z_VAD.shape[0] * z_VAD.shape[1]
    mean_D = z_VAD.mean(dim=(0, 1), dtype=torch.float64)
    covariance_DD = mean_D.new_zeros(len(mean_D), len(mean_D))
    for z_AD in z_VAD:  # one view at a time: the copy in float64 is V times smaller
        centred_AD = z_AD.double() - mean_D
        covariance_DD += centred_AD.T @ centred_AD / N
    spread_D = torch.linalg.eigvalsh(covariance_DD).clamp(min=0)
    total = spread_D.sum()
    share_D = spread_D / total
    dimension = torch.special.entr(share_D).sum().exp()
    # Collapsed to one point, the spread is float32's rounding (1e-7 of each z), which fills all D.
    return torch.where(total > 1e-12, dimension, 1)
