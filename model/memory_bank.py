"""A memory of embeddings that do not train, and what queries need to know of it.

A contrastive loss looks at a memory only through the log of the sum of exponentials of its scores.
That sum, and with it the gradient, is taken in one pass over chunks of the memory:

    S = z kᵀ / τ of a chunk ─▶ Σ exp(S), Σ exp(S) k     (both relative to the largest score so far)

    log-sum-exp = log Σ exp(S)        its derivative by z = Σ exp(S) k / (τ Σ exp(S))

so that nothing of size queries × keys exists, neither forward nor backward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

# Numbers in a chunk, of its scores and of its keys in float32: 1 MiB and, on a GPU, 64 MiB.
CPU_CHUNK = 1 << 18
GPU_CHUNK = 1 << 24


@dataclass(frozen=True)
class Memory:
    """Embeddings of N views, the same on all ranks.

    Args:
        key_ND: embeddings [N, D] of unit length, of any floating type; scores are float32, or
            float64 for queries in float64.
        id_N: ids of their samples [N].
    """

    key_ND: Tensor
    id_N: Tensor

    def logsumexp(
        self, z_QD: Tensor, id_Q: Tensor, *, temperature: float, rows: int | None = None
    ) -> Tensor:
        """Return the log of Σ exp(score / temperature) over all keys of *other* samples, [Q].

        It is -inf for a query that the memory holds no other sample for. Differentiable once, and
        by z only. Takes 4 · Q · N · D operations and, beside chunks, 2 · Q · D numbers.

        Args:
            z_QD: queries [Q, D], float32 or float64.
            id_Q: ids of their samples [Q].
            temperature: divides the scores.
            rows: keys in a chunk; changes memory, speed and rounding only.
        """
        if rows is None:
            chunk = GPU_CHUNK if z_QD.is_cuda else CPU_CHUNK
            rows = max(256, chunk // max(z_QD.shape))
        apply: Any = _LogSumExp.apply
        if torch.compiler.is_compiling():
            apply = torch.compiler.disable(apply)  # it would unroll the loop over chunks
        return apply(z_QD, self.key_ND, id_Q, self.id_N, temperature, rows)


class _LogSumExp(Function):
    @staticmethod
    @torch.no_grad()
    def forward(
        ctx: Any,
        z_QD: Tensor,
        key_ND: Tensor,
        id_Q: Tensor,
        id_N: Tensor,
        temperature: float,
        rows: int,
    ) -> Tensor:
        lowest = torch.finfo(z_QD.dtype).min
        top_Q = z_QD.new_full((len(z_QD),), lowest)
        sum_Q = torch.zeros_like(top_Q)
        mean_QD = torch.zeros_like(z_QD)
        with torch.autocast(z_QD.device.type, enabled=False):
            for k_ND, id_K in zip(key_ND.split(rows), id_N.split(rows), strict=True):
                k_KD = k_ND.to(z_QD.dtype)
                S_QK = (z_QD @ k_KD.T).div_(temperature)
                S_QK.masked_fill_(id_Q[:, None] == id_K, -torch.inf)
                # Never -inf, also where all is masked: its difference to itself would be nan.
                above_Q = torch.maximum(top_Q, S_QK.amax(dim=1))
                weight_QK = S_QK.sub_(above_Q[:, None]).exp_()
                shrink_Q = (top_Q - above_Q).exp()
                sum_Q = sum_Q * shrink_Q + weight_QK.sum(dim=1)
                mean_QD.mul_(shrink_Q[:, None]).addmm_(weight_QK, k_KD)
                top_Q = above_Q
        mean_QD /= (sum_Q * temperature).clamp(min=torch.finfo(z_QD.dtype).tiny)[:, None]
        ctx.save_for_backward(mean_QD)
        return top_Q + sum_Q.log()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable would let this pass, with a wrong result
            raise RuntimeError(
                "found create_graph=True, but this log-sum-exp is differentiable once: its "
                "gradient is taken in the forward pass. Leave create_graph out."
            )
        (mean_QD,) = ctx.saved_tensors
        return grad_outputs[0][:, None] * mean_QD, None, None, None, None, None
