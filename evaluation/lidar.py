"""LiDAR: in how many directions images differ by more than their own views do; without labels.

Thilak, Huang, Saremi, Dinh, Goh, Nakkiran, Susskind, Littwin, "LiDAR: Sensing Linear Probing
Performance in Joint Embedding SSL Architectures", ICLR 2024, https://arxiv.org/abs/2312.04000.
Each image is a class, its views are the class's members:

    Σ_b = mean over images of (μ_i - μ)(μ_i - μ)ᵀ           μ_i: mean of an image's views
    Σ_w = mean over views of (z_ij - μ_i)(z_ij - μ_i)ᵀ + δ I
    LiDAR = exp(-Σ_k p_k log p_k)     p_k = λ_k / Σ_j λ_j + ε     λ: of Σ_w^-1/2 Σ_b Σ_w^-1/2

The authors take 1,000 images with 50 views; here they are the views that evaluations make anyway,
so compare it at equal numbers of views and images alone. Their code was not found, and they name
no δ: 1e-4 is that of Skean et al., "Layer by Layer", ICML 2025 (https://arxiv.org/abs/2502.02013).
"""

import torch
from torch import Tensor

from evaluation.rank_me import dimension_of


@torch.no_grad()
def run(z_VAD: Tensor, *, delta: float = 1e-4) -> dict[str, float]:
    """Return {"lidar": 1 to min(A - 1, D)} of embeddings or features of any floating dtype.

    Args:
        z_VAD: embeddings [V, A, D] of V views of A samples.
        delta: δ above; it matters where embeddings hardly differ between views.

    Raises:
        ValueError: there are fewer than 2 views or 2 samples.
    """
    if z_VAD.ndim != 3 or z_VAD.shape[0] < 2 or z_VAD.shape[1] < 2:
        raise ValueError(
            f"Embeddings are {list(z_VAD.shape)}, expected [V, A, D] with 2 or more views V and "
            "samples A: LiDAR compares the spread between samples with that between views."
        )
    V, A, D = z_VAD.shape
    mean_AD = z_VAD.mean(dim=0, dtype=torch.float64)
    within_DD = delta * torch.eye(D, dtype=torch.float64, device=z_VAD.device)
    for z_AD in z_VAD:  # one view at a time: the copy in float64 is V times smaller
        apart_AD = z_AD.double() - mean_AD
        within_DD += apart_AD.T @ apart_AD / (V * A)
    between_AD = (mean_AD - mean_AD.mean(dim=0)) / A**0.5
    # With Σ_w = L Lᵀ the eigenvalues are those of L⁻¹ Σ_b L⁻ᵀ too: a triangle, and no root.
    L_DD = torch.linalg.cholesky(within_DD)
    white_DA = torch.linalg.solve_triangular(L_DD, between_AD.T, upper=False)
    gram = white_DA @ white_DA.T if D <= A else white_DA.T @ white_DA
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)
    spectrum_D = torch.cat([spectrum, spectrum.new_zeros(D - len(spectrum))])
    return {"lidar": dimension_of(spectrum_D)}
