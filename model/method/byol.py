"""BYOL: each view predicts the embedding of the other by a slowly moving twin of the network.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
https://arxiv.org/abs/2006.07733

Differs from the paper: any number of views is allowed. Every view predicts every other large
view, and the loss is twice the mean over these pairs; with two views that is the paper's, the sum
of both directions. (lightly's is a quarter of it: half the sum of negative cosines.) As in the
authors' code, batch norm sees a view at a time, in the whole network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.average import MovingAverage, rising
from model.encoder import Encoder
from model.gather import gather
from model.method.method import Method, Output, encode_apart, large
from model.method.view_prediction import agreement, spread
from model.projector import Projector


class BYOL(Method):
    """Twice the mean squared distance of unit predictions and targets: 4 - 4 · their mean cosine.

    Args:
        encoder: it is trained, and kept afterwards.
        hidden_size: width of the hidden layer of projector and predictor.
        embedding_size: D.
        projector_layers: number of the projector's linear layers.
        momentum: of the twin's weights at the start; it grows to 1 along a cosine. 0.996 is the
            paper's for 1,000 epochs, 0.99 its choice for 300 and fewer.
    """

    views_apart = True

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int = 4096,
        embedding_size: int = 256,
        projector_layers: int = 2,
        momentum: float = 0.996,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}, expected 0 or more and below 1, such as 0.99.")
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
        )
        self.predictor = Projector(
            feature_size=embedding_size, hidden_size=hidden_size, embedding_size=embedding_size
        )
        self.target = MovingAverage(self.encoder, self.projector)
        self.momentum = momentum

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """See `Method.forward`."""
        del id_B
        t_TBD = torch.cat([encode_apart(self.target, group) for group in large(views)])
        z_VBD = torch.cat([self.embed(views_VBCHW) for views_VBCHW in views])
        p_VBD = encode_apart(self.predictor, z_VBD)
        loss = 2 * (2 - 2 * agreement(p_VBD, t_TBD))  # both directions are added
        z_VAD = gather(z_VBD.detach().float())
        return Output(loss=loss, z_VAD=z_VAD, metrics={"spread": spread(z_VBD)})

    def after_step(self, progress: float | Tensor) -> None:
        """Move the twin."""
        momentum = rising(self.momentum, progress)
        self.target.follow(self.encoder, self.projector, momentum=momentum)
