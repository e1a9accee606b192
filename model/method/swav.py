"""SwAV: each view predicts to which prototypes its sample's large views were assigned.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, https://arxiv.org/abs/2006.09882

Differs from the authors' code (facebookresearch/swav, 06b1b7c):
- every rank runs the Sinkhorn iterations on all ranks' scores, so that they need no collective of
  their own and equal one process exactly;
- the queue is of all ranks' embeddings, not one queue a rank; it is filled from the start, and used
  once it is full and `queue_start` steps have passed;
- view groups of one size pass the encoder each by itself, theirs together;
- frozen prototypes are put back after the optimizer, theirs get no gradient: after many gradients
  of zero, Adam's first steps would be several times too long. But so its moments begin at once,
  and clipping counts these gradients, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder
from model.gather import gather, own_samples
from model.method.method import Method, Output, embed_together, large_count


class SwAV(Method):
    """Cross-entropy between one view's code and another view's softmax over prototypes.

    The first views, the large crops, are assigned; each code is predicted from all other views of
    the sample.

    Args:
        encoder: it is trained, and kept afterwards.
        hidden_size: width of the projector's hidden layer.
        embedding_size: D.
        projector_layers: number of its linear layers.
        output_norm: batch norm on the embeddings, which the authors do not have.
        prototypes: P, unit vectors that are learned.
        assigned_views: T, how many views are assigned; the authors' two, whatever their number.
        temperature: of the softmax.
        epsilon: of the Sinkhorn iterations; lower makes codes sharper.
        iterations: of Sinkhorn and Knopp.
        queue_size: earlier embeddings of each large view that are assigned along, so that small
            batches fill the prototypes evenly; 0 is none.
        queue_start: steps before the queue is used.
        freeze_prototypes: steps in which the prototypes are not moved.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int = 2048,
        embedding_size: int = 128,
        projector_layers: int = 2,
        output_norm: bool = False,
        prototypes: int = 3000,
        assigned_views: int = 2,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        queue_start: int = 0,
        freeze_prototypes: int = 300,
    ) -> None:
        for name, value in (("temperature", temperature), ("epsilon", epsilon)):
            if value <= 0:
                raise ValueError(f"{name}={value}, expected a number above 0, such as 0.1.")
        for name, value in (
            ("prototypes", prototypes),
            ("assigned_views", assigned_views),
            ("iterations", iterations),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}, expected 1 or more.")
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
            output_norm=output_norm,
        )
        self.prototype_PD = nn.Parameter(F.normalize(torch.randn(prototypes, embedding_size)))
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start, self.freeze_prototypes = queue_start, freeze_prototypes
        self.queue_TLD: Tensor
        self.steps: Tensor
        self.pushed: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))  # into the queue
        self.register_buffer("queue_TLD", torch.zeros(assigned_views, queue_size, embedding_size))
        # All ranks push the same embeddings: there is nothing to broadcast in every step.
        self._ddp_params_and_buffers_to_ignore = ["queue_TLD", "steps", "pushed"]
        self._target_TAD: Tensor | None = None
        self._before_PD: Tensor | None = None

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """See `Method.forward`."""
        del id_B
        z_VBD = embed_together(self.encoder, self.projector, views)
        with torch.autocast(z_VBD.device.type, enabled=False):
            z_VBD = F.normalize(z_VBD.float(), dim=-1)
            z_VAD = gather(z_VBD.detach())
            code_TBP = self._codes(z_VAD)[:, own_samples(z_VBD.shape[1])]
            loss = swapped_prediction(z_VBD @ self.prototype_PD.T / self.temperature, code_TBP)
        self._before_PD = self.prototype_PD.detach().clone()
        share_P = code_TBP.mean((0, 1))
        return Output(
            loss=loss,
            z_VAD=z_VAD,
            # Prototypes in use on this rank: P if all are used equally, 1 if collapsed.
            metrics={"prototypes_used": torch.special.entr(share_P).sum().exp()},
        )

    @torch.no_grad()
    def _codes(self, z_VAD: Tensor) -> Tensor:
        """Return the assignments [T, A, P] of the first views of all ranks."""
        T, L, _ = self.queue_TLD.shape
        A = z_VAD.shape[1]
        self._target_TAD = z_VAD[:T]
        full = (self.steps >= self.queue_start) & (self.pushed >= L)
        counted_N = torch.cat([full.expand(L), full.new_ones(A)])
        z_TND = torch.cat([self.queue_TLD, self._target_TAD], dim=1)
        codes = [
            sinkhorn(
                z_ND @ self.prototype_PD.T / self.epsilon, counted_N, iterations=self.iterations
            )
            for z_ND in z_TND  # one view at a time: each has as many rows as the authors' batch
        ]
        return torch.stack(codes)[:, L:]

    @torch.no_grad()
    def after_step(self, progress: float | Tensor) -> None:
        """Put frozen prototypes back, others to unit length; push the newest embeddings."""
        del progress
        assert self._target_TAD is not None and self._before_PD is not None, "a step"
        # By a mask, so that the host need not know the step.
        frozen = self.steps < self.freeze_prototypes
        moved_PD = F.normalize(self.prototype_PD, dim=-1)
        self.prototype_PD.copy_(torch.where(frozen, self._before_PD, moved_PD))
        L = self.queue_TLD.shape[1]
        self.queue_TLD.copy_(torch.cat([self._target_TAD, self.queue_TLD], dim=1)[:, :L])
        self.steps += 1
        self.pushed += self._target_TAD.shape[1]

    def refuse(self, *, counts: tuple[int, ...], sizes: tuple[int, ...], batch_size: int) -> None:
        """See `Method.refuse`."""
        super().refuse(counts=counts, sizes=sizes, batch_size=batch_size)
        T = len(self.queue_TLD)
        found = large_count(counts, sizes)
        if found < T:
            raise ValueError(
                f"assigned_views={T}, but {found} views have the first group's size before others "
                f"come: codes are found for large views. Set --views.count {T} or "
                f"--method.assigned_views {found}."
            )


def swapped_prediction(logit_VBP: Tensor, code_TBP: Tensor) -> Tensor:
    """Return the mean cross-entropy of each code and the prediction from every other view.

    Args:
        logit_VBP: scores of all views divided by the temperature [V, B, P].
        code_TBP: assignments of the first T views [T, B, P], each summing to 1.
    """
    V, T = len(logit_VBP), len(code_TBP)
    # A sum of codes is a target: V cross-entropies instead of V · T.
    others_VBP = code_TBP.sum(0) - F.pad(code_TBP, (0, 0, 0, 0, 0, V - T))
    return -(others_VBP * logit_VBP.log_softmax(-1)).sum((0, 2)).mean() / (V * T - T)


@torch.no_grad()
def sinkhorn(logit_NP: Tensor, counted_N: Tensor, *, iterations: int) -> Tensor:
    """Return soft assignments [N, P] that use all prototypes equally; each row sums to 1.

    Sinkhorn and Knopp's iterations; Cuturi, "Sinkhorn Distances", NeurIPS 2013.

    Args:
        logit_NP: scores divided by epsilon [N, P].
        counted_N: rows that take part; the others come out as zeros.
        iterations: 1 or more.
    """
    tiny = torch.finfo(logit_NP.dtype).tiny
    code_NP = (logit_NP - logit_NP.amax()).exp() * counted_N[:, None]
    for _ in range(iterations):
        code_NP /= code_NP.sum(0).clamp_min(tiny)
        code_NP /= code_NP.sum(1, keepdim=True).clamp_min(tiny)
    return code_NP
