"""The projector: features to the embeddings that the objective sees; dropped after training."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Projector(nn.Module):
    """A multi-layer perceptron with batch norm and ReLU between its layers: h [N, F] → z [N, D].

    Args:
        feature_size: F.
        hidden_size: width of the hidden layers.
        embedding_size: D.
        layers: number of linear layers; 2 as in SimCLR, 3 as in SimSiam.
    """

    def __init__(
        self, *, feature_size: int, hidden_size: int, embedding_size: int, layers: int = 2
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}; a projector has 1 or more.")
        sizes = [feature_size, *[hidden_size] * (layers - 1), embedding_size]
        stack: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes[:-1]):
            # The batch norm brings its own bias.
            stack += [nn.Linear(size_in, size_out, bias=False), nn.BatchNorm1d(size_out), nn.ReLU()]
        stack.append(nn.Linear(sizes[-2], sizes[-1]))
        self.network = nn.Sequential(*stack)

    def forward(self, h_NF: Tensor) -> Tensor:
        """Return the embeddings z [N, D]."""
        return self.network(h_NF)
