"""Projectors and predictors: features to the embeddings that a method compares; dropped later."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Projector(nn.Module):
    """A multi-layer perceptron: h [N, F] → z [N, D].

    Args:
        feature_size: F.
        hidden_size: width of the hidden layers.
        embedding_size: D.
        layers: number of linear layers; 2 as in SimCLR, 3 as in SimSiam.
        norm: batch norm before every activation; MoCo-v2 has none.
        output_norm: batch norm without scale and offset after the last layer, as in SimSiam.
        activation: between the layers; DINO's is GELU.
    """

    def __init__(
        self,
        *,
        feature_size: int,
        hidden_size: int,
        embedding_size: int,
        layers: int = 2,
        norm: bool = True,
        output_norm: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}; a projector has 1 or more.")
        sizes = [feature_size, *[hidden_size] * (layers - 1), embedding_size]
        stack: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes[:-1]):
            # A batch norm brings its own bias.
            stack.append(nn.Linear(size_in, size_out, bias=not norm))
            stack += [nn.BatchNorm1d(size_out), activation()] if norm else [activation()]
        stack.append(nn.Linear(sizes[-2], sizes[-1], bias=not output_norm))
        if output_norm:
            stack.append(nn.BatchNorm1d(sizes[-1], affine=False))
        self.network = nn.Sequential(*stack)

    def forward(self, h_NF: Tensor) -> Tensor:
        """Return the embeddings z [N, D]."""
        return self.network(h_NF)
