"""Joint embedding: one encoder and projector for all views, one objective over all embeddings.

With `SmoothAP` this is the idea of S2R2: every view is a query, the other views of its sample are
to rank above the views of all other samples, and average precision is maximised.

    Varamesh, Diba, Tuytelaars, Van Gool, "Self-Supervised Ranking for Representation Learning",
    2020, https://arxiv.org/abs/2010.07258

S2R2's surrogate of AP, architecture and hyper-parameters were not available to us, and no code of
the authors is known: results are "S2R2-style". With `NTXent` it is SimCLR over many views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..encoder import Encoder
from ..gather import gather
from ..objective import Objective
from ..projector import Projector
from .method import Method, Output, encode


class JointEmbedding(Method):
    """Encode and project every view, gather all ranks' embeddings, apply the objective.

    Args:
        encoder: what is trained and kept.
        objective: what is minimised.
        hidden_size: width of the projector's hidden layers.
        embedding_size: D, size of the embeddings that are ranked.
        projector_layers: number of linear layers.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        objective: Objective,
        hidden_size: int = 512,
        embedding_size: int = 128,
        projector_layers: int = 2,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(
            feature_size=encoder.feature_size,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            layers=projector_layers,
        )
        self.objective = objective

    def forward(self, views: tuple[Tensor, ...]) -> Output:
        """See `Method.forward`."""
        z_VBD = torch.cat([self.embed(views_VBCHW) for views_VBCHW in views])
        z_VAD = gather(z_VBD.float())
        return Output(loss=self.objective(z_VAD), z_VAD=z_VAD.detach())

    def embed(self, views_VBCHW: Tensor) -> Tensor:
        """See `Method.embed`."""
        return encode(lambda images_NCHW: self.projector(self.encoder(images_NCHW)), views_VBCHW)

    def refuse(self, *, counts: tuple[int, ...], sizes: tuple[int, ...], batch_size: int) -> None:
        """See `Method.refuse`."""
        super().refuse(counts=counts, sizes=sizes, batch_size=batch_size)
        if batch_size < 2:
            raise ValueError(
                f"batch_size={batch_size}, but a view is ranked against the views of other "
                "samples: set --batch_size 2 or higher."
            )
        if sum(counts) < 2:
            raise ValueError(
                f"{sum(counts)} view a sample, but ranking needs 2 or more: each view is a "
                "query, and the sample's other views are its positives. Set --views.count 2 or "
                "higher."
            )
