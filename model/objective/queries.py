"""Objectives that are a mean over queries: loss and gradient in one pass, in O(N · chunk) memory.

Smooth-AP, NT-Xent and their relatives look at the scores of one query at a time, so neither the
N×N scores nor their gradient need to exist at once:

    a chunk of queries: S = z_chunk zᵀ ─▶ loss, dL/dS ─▶ dL/dz += dL/dS z (queries)
                                                       dL/dz += dL/dSᵀ z_chunk (gallery)

The loss is one scalar, so the backward pass merely scales the gradient that the forward pass took
while the chunk was in the cache: [N, D] is all that is stored, and nothing is computed twice.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from .objective import Objective

# Scores in a chunk. An objective holds about three such tensors: on the CPU each core's share of
# them should stay in its cache (2 MiB in float32); a GPU wants few large pieces (64 MiB).
CPU_CHUNK = 1 << 19
GPU_CHUNK = 1 << 24
# With fewer rows a matrix product loses more than the smaller chunk gains (found at N=16384).
MIN_ROWS = 64


class PerQuery(NamedTuple):
    """Losses of a chunk of queries and, when asked for, their derivatives."""

    loss_Q: Tensor
    """Loss of each query [Q]."""
    dS_QG: Tensor | None = None
    """Derivative by every score [Q, G]; zero at the query itself."""
    dS_QK: Tensor | None = None
    """What the positives' scores [Q, K] add to it in their columns."""


class MeanOverQueries(Objective):
    """The mean, over all N = V · A views as queries, of a function of a query's cosine scores.

    It is differentiable once. Scores are to be float32: leave `set_float32_matmul_precision` of
    torch at "highest", because TF32 rounds a cosine to steps of about 0.0005.
    """

    @abstractmethod
    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return the losses of a chunk of queries and, if `grad`, their derivatives.

        Args:
            S_QG: cosines of the queries with all views [Q, G]; -inf with itself, so that a query
                is never in its own gallery. May be overwritten.
            S_QK: the same scores for the positives only [Q, K], K = V - 1.
            positive_QK: the columns of the positives in `S_QG` [Q, K].
            grad: whether the derivatives are wanted.
        """

    def loss(self, z_VAD: Tensor) -> Tensor:
        """Return the mean loss of all queries; z [V, A, D] need not be normalised."""
        one_pass = _OnePass.apply
        if torch.compiler.is_compiling():
            # Compiled, the loop over chunks would be unrolled, anew for every N. To say so only
            # here spares every other process the compiler's import, four seconds.
            one_pass = torch.compiler.disable(one_pass)
        return one_pass(F.normalize(z_VAD, dim=-1), self)  # pyright: ignore[reportCallIssue, reportReturnType]


class _OnePass(Function):
    @staticmethod
    def forward(ctx: Any, z_VAD: Tensor, objective: MeanOverQueries) -> Tensor:
        V, A, _ = z_VAD.shape
        N, grad = V * A, ctx.needs_input_grad[0]
        z_ND = z_VAD.flatten(0, 1)
        # Row v·A + a is view v of sample a: the sample's next view is A rows further on.
        row_N = torch.arange(N, device=z_ND.device)
        positive_NK = (row_N[:, None] + A * row_N[1:V]) % N

        loss = z_ND.new_zeros(())
        dz_ND = torch.zeros_like(z_ND) if grad else z_ND
        rows = max(MIN_ROWS, (GPU_CHUNK if z_ND.is_cuda else CPU_CHUNK) // N)
        for start in range(0, N, rows):
            chunk = slice(start, start + rows)
            z_QD, positive_QK = z_ND[chunk], positive_NK[chunk]
            S_QG = z_QD @ z_ND.T
            S_QG.diagonal(start).fill_(-torch.inf)  # the query itself
            S_QK = S_QG.gather(1, positive_QK)
            loss_Q, dS_QG, dS_QK = objective.per_query(S_QG, S_QK, positive_QK, grad=grad)
            loss += loss_Q.sum()
            if dS_QG is not None and dS_QK is not None:
                dS_QG.scatter_add_(1, positive_QK, dS_QK)
                dz_ND[chunk].addmm_(dS_QG, z_ND)  # as queries
                dz_ND.addmm_(dS_QG.T, z_QD)  # as gallery
        if grad:
            ctx.save_for_backward(dz_ND.div_(N).view_as(z_VAD))
        return loss.div_(N)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # once_differentiable would let this pass, with a wrong result
            raise RuntimeError(
                "found create_graph=True, but objectives over queries are differentiable once: "
                "their gradient is taken in the forward pass. Leave create_graph out."
            )
        (dz_VAD,) = ctx.saved_tensors
        return dz_VAD * grad_outputs[0], None
