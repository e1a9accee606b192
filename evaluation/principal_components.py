"""Fewer numbers for an image: its principal components, perhaps whitened, as a unit vector.

    h ─▶ unit length ─▶ less the mean ─▶ on the main axes ─▶ (to equal variance) ─▶ unit length

Whitening is `PCAMatrix(…, eigen_power=-0.5)` of faiss, which the challenge's baseline takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.score import exact_float32
from model.gather import gather_rows

_ROWS = 16_384  # that are widened to float64 at once
_LEAST = 1e-10  # of the largest variance: below it there is only rounding


@dataclass(frozen=True)
class Projection:
    """From features to unit vectors.

    Args:
        mean_F: is taken away first; None for neither that nor axes.
        axis_FD: the directions that are kept, with their scales.
    """

    mean_F: Tensor | None = None
    axis_FD: Tensor | None = None

    def __call__(self, h_NF: Tensor) -> Tensor:
        """Return unit vectors [N, D] in float32, also under autocast; h is [N, F]."""
        with exact_float32(h_NF.device):
            x_NF = F.normalize(h_NF.float(), dim=-1)
            if self.mean_F is None or self.axis_FD is None:
                return x_NF
            return F.normalize((x_NF - self.mean_F) @ self.axis_FD, dim=-1)


@torch.no_grad()
def principal_components(own_NF: Tensor, *, dimensions: int, whitening: bool) -> Projection:
    """Fit the axes to the rows of all ranks; every rank calls this and gets the same.

    Time is that of 2 · N · F² operations in float64, memory F² numbers.

    Args:
        own_NF: features of this rank, as the encoder gives them.
        dimensions: D, how many axes are kept; F at most.
        whitening: whether each axis is divided by the standard deviation along it.

    Raises:
        ValueError: there are too few images for so many axes, or features are not finite.
    """
    F_, device = own_NF.shape[1], own_NF.device
    sum_F = torch.zeros(F_, dtype=torch.float64, device=device)
    moment_FF = torch.zeros(F_, F_, dtype=torch.float64, device=device)
    for h_NF in own_NF.split(_ROWS):
        x_NF = F.normalize(h_NF.float(), dim=1).double()
        sum_F += x_NF.sum(0)
        moment_FF.addmm_(x_NF.T, x_NF)
    N = int(gather_rows(torch.tensor([len(own_NF)], device=device)).sum())
    mean_F = gather_rows(sum_F[None]).sum(0) / N
    covariance_FF = gather_rows(moment_FF[None]).sum(0) / N - mean_F[:, None] * mean_F
    if not bool(covariance_FF.isfinite().all()):
        raise ValueError(
            "Features of training images are not finite: training has diverged, or the encoder "
            "overflows in float16."
        )
    D = min(dimensions, F_)
    if N <= D:
        raise ValueError(
            f"{N:,} training images have no {D} principal components. Give more of them, or lower "
            "dimensions."
        )
    variance_F, axis_FF = torch.linalg.eigh(covariance_FF)  # in increasing order
    variance_D, axis_FD = variance_F.flip(0)[:D], axis_FF.flip(1)[:, :D]
    # Which way an axis points is not determined: its largest number is made positive.
    axis_FD = axis_FD * axis_FD.gather(0, axis_FD.abs().argmax(0, keepdim=True)).sign()
    if whitening:
        real_D = variance_D > _LEAST * variance_D[0]
        axis_FD = axis_FD * torch.where(real_D, variance_D.clamp(min=1e-300).rsqrt(), 0)
    return Projection(mean_F.float(), axis_FD.float())
