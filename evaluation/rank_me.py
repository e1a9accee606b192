"""RankMe: in how many directions embeddings lie, without labels and without a test set's help.

Garrido, Balestriero, Najman, LeCun, "RankMe: Assessing the Downstream Performance of Pretrained
Self-Supervised Representations by Their Rank", ICML 2023, https://arxiv.org/abs/2210.02885:

    RankMe(Z) = exp(-Σ_k p_k log p_k)     p_k = σ_k(Z) / Σ_j σ_j(Z) + ε     ε = 1e-7

of the singular values σ of the matrix of embeddings, neither centred nor normalised. The authors
take embeddings z of 25,600 images, and say that it compares runs of one method. Here the rows are
all views of held-out images (the LiDAR paper calls that RankMe with augmentations).
"""

import torch
from torch import Tensor

EPSILON = 1e-7


@torch.no_grad()
def run(z_VAD: Tensor) -> dict[str, float]:
    """Return {"rank_me": 1 to min(V · A, D)} of embeddings or features of any floating dtype.

    Args:
        z_VAD: embeddings [V, A, D] of V views of A samples.
    """
    V, A, D = z_VAD.shape
    if V * A < D:
        z_ND = z_VAD.flatten(0, 1).double()
        gram = z_ND @ z_ND.T
    else:
        gram = z_VAD.new_zeros(D, D, dtype=torch.float64)
        for z_AD in z_VAD:  # one view at a time: the copy in float64 is V times smaller
            wide_AD = z_AD.double()
            gram += wide_AD.T @ wide_AD
    # Squares of the singular values. In float64 their roots have the digits of float32's SVD.
    return {"rank_me": dimension_of(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt())}


def dimension_of(spectrum_K: Tensor) -> float:
    """Return exp(-Σ p log p) with p = spectrum / Σ spectrum + ε; 1 if the spectrum is 0.

    Args:
        spectrum_K: singular values or eigenvalues [K], none negative.
    """
    total = spectrum_K.sum()
    share_K = spectrum_K / total + EPSILON
    return float(torch.where(total > 0, torch.special.entr(share_K).sum().exp(), 1))
