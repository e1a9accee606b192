"""All ranks' rows in one tensor: with exact gradients for training, without any for evaluation.

Contract: *each rank may compute any loss whose mean over ranks is the global loss*, because
distributed data parallel averages the ranks' gradients. So each rank may compute the whole loss,
or only the mean over its own queries.

The backward pass adds up what every rank's loss says about this rank's rows. The common idiom, a
gather without gradient with the own rows put back, leaves the other ranks' say out, which divides
the gradient by the number of ranks. Of `model`, only this file and `sync_batch_norm` know of ranks.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


def gather(z_VBD: Tensor) -> Tensor:
    """Return the embeddings of all ranks [V, A, D], A = world_size · B, in the order of ranks.

    Args:
        z_VBD: this rank's embeddings [V, B, D]. Every rank must hold as many samples as the
            others: to check it here would cost a wait for the device. Half precision is widened
            to float32, so that the sum of gradients over ranks is not rounded.
    """
    if _world_size() == 1:
        return z_VBD
    wide_VBD = z_VBD if z_VBD.dtype == torch.float64 else z_VBD.float()
    gather_exactly = _Gather.apply
    if torch.compiler.is_compiling():
        # A collective waits for all ranks, whatever each has compiled.
        gather_exactly = torch.compiler.disable(gather_exactly)
    return gather_exactly(wide_VBD)  # pyright: ignore[reportArgumentType, reportReturnType]


def own_samples(B: int) -> slice:
    """Return where this rank's B samples stand among those of all ranks."""
    rank = dist.get_rank() if _world_size() > 1 else 0
    return slice(rank * B, (rank + 1) * B)


@torch.no_grad()
def gather_rows(x_N: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of ranks, without gradient.

    Args:
        x_N: rows [N, ...] of any number type, such as features, labels or ids. Ranks may hold
            different numbers of rows, none included; the other axes and the type must agree.
    """
    world_size = _world_size()
    if world_size == 1:
        return x_N.detach()
    size = torch.tensor([len(x_N)], device=x_N.device)
    sizes = size.new_empty(world_size)
    dist.all_gather_into_tensor(sizes, size)
    rows = sizes.tolist()  # waits for the device: evaluation only

    padded = x_N.new_zeros(max(rows), *x_N.shape[1:])
    padded[: len(x_N)] = x_N
    gathered = x_N.new_empty(world_size * max(rows), *x_N.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    parts = gathered.unflatten(0, (world_size, max(rows)))
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their means over all ranks; the host does not wait for the device.

    They travel as one tensor, so they are summed in the same order in every step. Distributed data
    parallel changes its buckets after its first step, and with them the order, so with three ranks
    or more a continued training would differ by rounding. It hides the way behind the backward
    pass, which this does not.

    Args:
        parameters: the same on every rank, and with the same ones without a gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if (world_size := _world_size()) == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def gather_equal_rows(x_B: Tensor) -> Tensor:
    """Return the rows of all ranks, which hold equally many, without gradient and without a wait.

    Args:
        x_B: rows [B, ...] of any number type.
    """
    world_size = _world_size()
    if world_size == 1:
        return x_B.detach()
    gathered = x_B.new_empty(world_size * len(x_B), *x_B.shape[1:])
    dist.all_gather_into_tensor(gathered, x_B.contiguous())
    return gathered


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, z_VBD: Tensor) -> Tensor:
        V, B, D = z_VBD.shape
        ctx.world_size = dist.get_world_size()
        gathered = z_VBD.new_empty(ctx.world_size * V, B, D)  # ranks, one after the other
        dist.all_gather_into_tensor(gathered, z_VBD.contiguous())
        return gathered.unflatten(0, (ctx.world_size, V)).transpose(0, 1).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dz_VAD: Tensor
    ) -> Tensor:
        total_VAD = dz_VAD.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_VAD)  # a sum: every rank's loss depends on every rank's rows
        return total_VAD.unflatten(1, (ctx.world_size, -1))[:, dist.get_rank()]
