"""Joint embedding: one encoder and projector for all views, one objective over all embeddings.

With `SmoothAP` this is the idea of S2R2: every view is a query, the other views of its sample are
to rank above the views of all other samples, and average precision is maximised.

    Varamesh, Diba, Tuytelaars, Van Gool, "Self-Supervised Ranking for Representation Learning",
    2020, https://arxiv.org/abs/2010.07258

S2R2's surrogate of AP, architecture and hyper-parameters were not available to us, and no code of
the authors is known: results are "S2R2-style". With `NTXent` it is SimCLR over many views.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from model.encoder import Encoder
from model.gather import gather, own_samples
from model.method.method import Method, Output, large, large_count
from model.objective import Objective


class JointEmbedding(Method):
    """Encode and project every view, gather all ranks' embeddings, apply the objective.

    Args:
        encoder: it is trained, and kept afterwards.
        objective: the loss of all embeddings.
        hidden_size: width of the projector's hidden layers.
        embedding_size: D, size of the embeddings that are ranked.
        projector_layers: number of linear layers.
        output_norm: batch norm without scale and offset on the embeddings, as in GroCo.
        gallery: the views that a query is compared with. all: every view. large: the large crops of
            multi-crop, which have the first group's size; small crops are queries only.
        views_apart: batch norm sees a view at a time, as in the code of GroCo's and Barlow Twins'
            authors; else the views of a group together, as in SimCLR's.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        objective: Objective,
        hidden_size: int = 512,
        embedding_size: int = 128,
        projector_layers: int = 2,
        output_norm: bool = False,
        gallery: Literal["all", "large"] = "all",
        views_apart: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
            output_norm=output_norm,
        )
        self.objective = objective
        self.gallery = gallery
        self.views_apart = views_apart

    def forward(
        self,
        views: tuple[Tensor, ...],
        id_B: Tensor | None = None,
        gradient_VBD: Tensor | None = None,
    ) -> Output:
        """See `Method.forward` and, for `gradient_VBD`, `training.gradient_cache`."""
        del id_B
        z_VBD = torch.cat([self.embed(views_VBCHW) for views_VBCHW in views]).float()
        if gradient_VBD is not None:
            return Output(loss=(z_VBD * gradient_VBD).sum(), z_VAD=z_VBD.detach())
        return self.compare(z_VBD, large_views=sum(map(len, large(views))))

    def compare(self, z_VBD: Tensor, *, large_views: int) -> Output:
        """Return the objective of this rank's embeddings among those of all ranks.

        Args:
            z_VBD: embeddings of all groups' views, float32.
            large_views: how many of the views, the first ones, are large.
        """
        z_VAD = gather(z_VBD)
        loss = self.objective(
            z_VAD,
            gallery_views=large_views if self.gallery == "large" else None,
            samples=own_samples(z_VBD.shape[1]),
        )
        return Output(loss=loss, z_VAD=z_VAD.detach())

    def refuse(self, *, counts: tuple[int, ...], sizes: tuple[int, ...], batch_size: int) -> None:
        """See `Method.refuse`."""
        super().refuse(counts=counts, sizes=sizes, batch_size=batch_size)
        found = large_count(counts, sizes)
        if self.gallery == "large" and found < 2:
            raise ValueError(
                f"gallery=large, but there is {found} view of the first group's size before others "
                "come: set --views.count 2 or higher, or --method.gallery all."
            )
