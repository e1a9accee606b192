"""SimSiam: each view predicts the other, and nothing but a stopped gradient prevents collapse.

Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021,
https://arxiv.org/abs/2011.10566

Differs from the authors' code (facebookresearch/simsiam, a7bc177): any number of views is allowed.
Every view predicts every other large view, and the loss is the mean over these pairs;
with two views it is theirs. As there, batch norm sees a view at a time, in the whole network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.encoder import Encoder
from model.gather import gather
from model.method.method import Method, Output, encode_apart, large
from model.method.view_prediction import agreement, spread
from model.projector import Projector


class SimSiam(Method):
    """Minus the mean cosine between a view's prediction and another view's embedding, held fixed.

    Args:
        encoder: it is trained, and kept afterwards.
        hidden_size: width of the projector's hidden layers.
        embedding_size: D.
        projector_layers: number of its linear layers; the authors use 2 for CIFAR-10.
        predictor_size: width of the predictor's hidden layer.
        fixed_predictor_rate: leave the predictor's learning rate at its peak, as the authors do.
    """

    views_apart = True

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int = 2048,
        embedding_size: int = 2048,
        projector_layers: int = 3,
        predictor_size: int = 512,
        fixed_predictor_rate: bool = True,
    ) -> None:
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
            output_norm=True,
        )
        self.predictor = Projector(
            feature_size=embedding_size, hidden_size=predictor_size, embedding_size=embedding_size
        )
        self.fixed_predictor_rate = fixed_predictor_rate

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """See `Method.forward`."""
        del id_B
        z_VBD = torch.cat([self.embed(views_VBCHW) for views_VBCHW in views])
        p_VBD = encode_apart(self.predictor, z_VBD)
        loss = -agreement(p_VBD, z_VBD[: sum(map(len, large(views)))].detach())
        z_VAD = gather(z_VBD.detach().float())
        return Output(loss=loss, z_VAD=z_VAD, metrics={"spread": spread(z_VBD)})

    def fixed_rate(self) -> list[torch.nn.Module]:
        """See `Method.fixed_rate`."""
        return [self.predictor] if self.fixed_predictor_rate else []
