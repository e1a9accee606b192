"""Features in two dimensions: PCA, which is linear, and UMAP, which keeps neighbours together.

McInnes, Healy, Melville, "UMAP: Uniform Manifold Approximation and Projection for Dimension
Reduction", 2018, https://arxiv.org/abs/1802.03426.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

FEWEST = 8  # images of which a map says anything
_NEIGHBOURS = 15  # UMAP's own default


def pca(h_NF: Tensor) -> tuple[NDArray[np.float32], list[float]]:
    """Return the two main components of normalised features, and their shares of the variance.

    Args:
        h_NF: features.

    Returns:
        Places [N, 2], of which the signs are such that the largest is positive; and two shares.
    """
    x_NF = F.normalize(h_NF.double(), dim=1)
    x_NF = x_NF - x_NF.mean(dim=0)
    U, S, _ = torch.linalg.svd(x_NF, full_matrices=False)
    places = U[:, :2] * S[:2]
    largest = places.gather(0, places.abs().argmax(dim=0, keepdim=True))
    shares = S[:2].square() / S.square().sum().clamp(min=1e-30)
    return (places * torch.where(largest < 0, -1, 1)).float().numpy(), shares.tolist()


def umap(h_NF: Tensor) -> NDArray[np.float32]:
    """Return UMAP's places [N, 2] by cosine, the same each time."""
    from umap import UMAP  # compiles for seconds

    reducer = UMAP(
        n_neighbors=min(_NEIGHBOURS, len(h_NF) - 1), metric="cosine", random_state=0, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on graphs in pieces, which a map shows anyway
        return np.asarray(reducer.fit_transform(h_NF.float().numpy()), dtype=np.float32)
