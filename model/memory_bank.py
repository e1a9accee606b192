"""A memory of embeddings that do not train, and what queries need to know of it.

A contrastive loss looks at a memory only through the log of the sum of exponentials of its scores.
That sum, and with it the gradient, is taken in one pass over chunks of the memory:

    S = z kᵀ / τ of a chunk ─▶ Σ exp(S), Σ exp(S) k     (both relative to the largest score so far)

    log-sum-exp = log Σ exp(S)        its derivative by z = Σ exp(S) k / (τ Σ exp(S))

so that nothing of size queries × keys exists, neither forward nor backward.

A `Memory` is made anew; a `KeyRing` lasts, and new keys take the place of the oldest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
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
        filled: how many of the N rows hold a key, a scalar on their device; None if all do.
    """

    key_ND: Tensor
    id_N: Tensor
    filled: Tensor | None = None

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
        return apply(z_QD, self.key_ND, id_Q, self.id_N, self.filled, temperature, rows)


class KeyRing(nn.Module):
    """The newest N keys, the same on all ranks; in the state, so that a run goes on with them.

    What is large here, `training.guard` does not copy in every step: after a step that must change
    nothing it has the overwritten rows put back. Nor need it be broadcast.

    Args:
        size: N.
        embedding_size: D.
        dtype: of the keys.
    """

    def __init__(self, size: int, embedding_size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.key_ND: Tensor
        self.id_N: Tensor
        self.pushed: Tensor
        # Zeros, not what is in memory: checkpoints hold rows that are not filled yet, too.
        self.register_buffer("key_ND", torch.zeros(size, embedding_size, dtype=dtype))
        self.register_buffer("id_N", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self._overwritten: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def large(self) -> tuple[Tensor, Tensor]:
        """The buffers that are too large to be copied in every step."""
        return self.key_ND, self.id_N

    @torch.no_grad()
    def push(self, key_MD: Tensor, id_M: Tensor, *, undoable: bool = False) -> None:
        """Put keys in the place of the oldest ones.

        Args:
            key_MD: keys [M, D] of all ranks, no more than there is room for.
            id_M: ids of their samples [M].
            undoable: whether `put_back` may be asked to undo this.
        """
        M, N = len(key_MD), len(self.key_ND)
        assert M <= N, "refused before"
        place_M = (self.pushed + torch.arange(M, device=key_MD.device)) % N
        if undoable:
            self._overwritten = place_M, self.key_ND[place_M], self.id_N[place_M]
        self.key_ND.index_copy_(0, place_M, key_MD.to(self.key_ND.dtype))
        self.id_N.index_copy_(0, place_M, id_M)
        self.pushed += M

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Undo the last step's push if `bad`, which is known on the device alone.

        But for the number that was pushed: the guard puts that back like any other small buffer.
        """
        if self._overwritten is not None:
            place_M, key_MD, id_M = self._overwritten
            self.key_ND.index_copy_(0, place_M, torch.where(bad, key_MD, self.key_ND[place_M]))
            self.id_N.index_copy_(0, place_M, torch.where(bad, id_M, self.id_N[place_M]))
            self._overwritten = None

    def memory(self) -> Memory:
        """Return the keys as queries see them."""
        filled = self.pushed.clamp(max=len(self.key_ND))
        # A CPU never waits for itself, and need not score empty rows.
        rows = len(self.key_ND) if self.key_ND.is_cuda else max(1, int(filled))
        return Memory(self.key_ND[:rows], self.id_N[:rows], filled)


def rings(module: nn.Module) -> Iterator[KeyRing]:
    """Yield all rings of a network."""
    return (part for part in module.modules() if isinstance(part, KeyRing))


class _LogSumExp(Function):
    @staticmethod
    @torch.no_grad()
    def forward(
        ctx: Any,
        z_QD: Tensor,
        key_ND: Tensor,
        id_Q: Tensor,
        id_N: Tensor,
        filled: Tensor | None,
        temperature: float,
        rows: int,
    ) -> Tensor:
        lowest = torch.finfo(z_QD.dtype).min
        top_Q = z_QD.new_full((len(z_QD),), lowest)
        sum_Q = torch.zeros_like(top_Q)
        mean_QD = torch.zeros_like(z_QD)
        row_N = torch.arange(len(key_ND), device=z_QD.device)
        with torch.autocast(z_QD.device.type, enabled=False):
            chunks = zip(key_ND.split(rows), id_N.split(rows), row_N.split(rows), strict=True)
            for k_ND, id_K, row_K in chunks:
                k_KD = k_ND.to(z_QD.dtype)
                S_QK = (z_QD @ k_KD.T).div_(temperature)
                left_out_QK = id_Q[:, None] == id_K
                if filled is not None:
                    left_out_QK |= row_K >= filled
                S_QK.masked_fill_(left_out_QK, -torch.inf)
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
        return grad_outputs[0][:, None] * mean_QD, *[None] * 6
