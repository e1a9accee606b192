"""An encoder without a projector, as weights that others published: evaluated by its features."""

from __future__ import annotations

from torch import Tensor, nn

from model.encoder import Encoder
from model.method.method import encode


class BareEncoder(nn.Module):
    """Stands where evaluations have a method: its embeddings are the features h.

    Args:
        encoder: the network.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, views_VBCHW: Tensor) -> Tensor:
        """Return the features h [V, B, F] of a view group."""
        return encode(self.encoder, views_VBCHW)

    embed_reference = embed
