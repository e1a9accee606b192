"""MoCo-v2: each query is told from a long queue of keys, made by a slowly moving twin.

He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
CVPR 2020, https://arxiv.org/abs/1911.05722; Chen, Fan, Girshick, He, "Improved Baselines with
Momentum Contrastive Learning", 2020, https://arxiv.org/abs/2003.04297.

Differs from the authors' code (facebookresearch/moco, a419ef2):
- any number of views is allowed: the first is the key, each other view is a query. With
  two views it is theirs;
- batch norm is synchronised over ranks (`--sync_batch_norm`) where theirs shuffles the keys: both
  keep a key's batch statistics from being its query's. On one rank neither applies, as with theirs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.average import MovingAverage
from model.encoder import Encoder
from model.gather import gather
from model.method.method import Method, Output, encode


class MoCo(Method):
    """Cross-entropy of a query's own key against the queue.

    Args:
        encoder: it is trained, and kept afterwards.
        hidden_size: width of the projector's hidden layer.
        embedding_size: D.
        projector_layers: number of its linear layers.
        norm: batch norm in its hidden layers, which the authors do not have.
        output_norm: batch norm on the embeddings, which the authors do not have.
        temperature: divides the cosines.
        queue_size: keys that are remembered, the newest ones of all ranks; unit vectors at random
            to begin with. A run should see several times as many samples.
        momentum: of the twin's weights.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int = 2048,
        embedding_size: int = 128,
        projector_layers: int = 2,
        norm: bool = False,
        output_norm: bool = False,
        temperature: float = 0.2,
        queue_size: int = 65_536,
        momentum: float = 0.999,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.2.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}, expected 0 or more and below 1, such as 0.999.")
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
            norm=norm,
            output_norm=output_norm,
        )
        self.twin = MovingAverage(self.encoder, self.projector)
        self.temperature, self.momentum = temperature, momentum
        self.queue_LD: Tensor
        self.oldest: Tensor
        self.register_buffer("queue_LD", F.normalize(torch.randn(queue_size, embedding_size)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        # All ranks push the same keys: there is nothing to broadcast in every step.
        self._ddp_params_and_buffers_to_ignore = ["queue_LD", "oldest"]
        self._key_AD: Tensor | None = None

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """See `Method.forward`."""
        del id_B
        key_1BD = encode(self.twin, views[0][:1]).float()
        queries = [views[0][1:], *views[1:]]
        z_VBD = torch.cat([self.embed(group) for group in queries if len(group)]).float()
        with torch.autocast(z_VBD.device.type, enabled=False):
            query_QD = F.normalize(z_VBD, dim=-1)
            key_1BD = F.normalize(key_1BD, dim=-1)
            own_Q1 = (query_QD * key_1BD).sum(-1).flatten()[:, None]
            others_QL = query_QD.flatten(0, 1) @ self.queue_LD.T
            logits = torch.cat([own_Q1, others_QL], dim=1) / self.temperature
            loss = (logits.logsumexp(1) - logits[:, 0]).mean()
        z_VAD = gather(torch.cat([key_1BD, z_VBD.detach()]))
        self._key_AD = z_VAD[0]
        return Output(loss=loss, z_VAD=z_VAD)

    @torch.no_grad()
    def after_step(self, progress: float | Tensor) -> None:
        """Move the twin; push the newest keys in the oldest ones' place."""
        del progress
        self.twin.follow(self.encoder, self.projector, momentum=self.momentum)
        assert self._key_AD is not None, "a step"
        A, L = len(self._key_AD), len(self.queue_LD)
        place_A = (self.oldest + torch.arange(A, device=self.oldest.device)) % L
        self.queue_LD.index_copy_(0, place_A, self._key_AD)
        self.oldest.add_(A).remainder_(L)

    def refuse(self, *, counts: tuple[int, ...], sizes: tuple[int, ...], batch_size: int) -> None:
        """See `Method.refuse`."""
        super().refuse(counts=counts, sizes=sizes, batch_size=batch_size)
        if batch_size > len(self.queue_LD):
            raise ValueError(
                f"queue_size={len(self.queue_LD)} is less than batch_size={batch_size}: every step "
                "pushes a key for each sample. Set --method.queue_size higher."
            )
