"""Batch norm over the batches of all ranks, without a wait for the device.

Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", ICML 2015, https://arxiv.org/abs/1502.03167. `torch.nn.SyncBatchNorm` lets ranks
hold batches of different sizes, an empty one too: in every layer the host waits for the counts to
leave the empty ones out, 53 times in a forward pass of ResNet-50. Here **all ranks hold equally
many rows**, as `pipeline.Loader` gives them, so nobody asks; or, if they are said to be uneven, the
counts stay on the device, and **no rank is without rows**.

A GPU runs PyTorch's own kernels; what they compute is written out beside them, for the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import Function, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Batch norm of rows [N, C] or images [N, C, H, W]; in training over the rows of all ranks.

    The result, the running statistics and all gradients are those of one process with the batches
    of all ranks, if gradients are averaged over ranks and losses are means.
    """

    uneven = False
    """Whether ranks may hold differently many rows."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised rows, of the type and in the memory format of `input`."""
        y = self._normalised(input)
        for part in self.children():  # what timm's has inside it
            y = part(y)
        return y

    def _normalised(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        assert self.num_batches_tracked is not None and self.momentum is not None
        tracked = self.track_running_stats  # gradient caching's second passage leaves them alone
        if tracked:
            self.num_batches_tracked.add_(1)
        synchronised: Any = _Normalise.apply
        if torch.compiler.is_compiling():
            # As in `model.gather`; and PyTorch 2.11's compiler fails on this function.
            synchronised = torch.compiler.disable(synchronised)
        return synchronised(
            input,
            self.weight,
            self.bias,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.momentum,
            self.eps,
            self.uneven,
        )


def synchronise(module: nn.Module, *, uneven: bool = False) -> nn.Module:
    """Return the module with every batch norm replaced by one over all ranks.

    Weights and statistics are the same tensors as before, under the same names.

    Args:
        module: what they are in.
        uneven: whether ranks may hold differently many rows.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        if not module.track_running_stats or module.momentum is None:
            raise ValueError(
                f"{module} has no running statistics or no momentum, and is not one that is "
                "synchronised; set --sync_batch_norm false."
            )
        replaced = SyncBatchNorm(module.num_features, eps=module.eps, momentum=module.momentum)
        if type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            inside = dict(module.named_children())
            if list(inside) != ["drop", "act"]:
                raise ValueError(
                    f"{type(module).__name__} is a batch norm that is not known here, and not one "
                    "that is synchronised; set --sync_batch_norm false."
                )
            replaced.drop, replaced.act = inside.values()  # of timm's, which does these after it
        replaced.affine, replaced.uneven = module.affine, uneven
        replaced._parameters, replaced._buffers = module._parameters, module._buffers
        return replaced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, uneven=uneven))
    return module


class _Normalise(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        running_mean_C: Tensor | None,
        running_var_C: Tensor | None,
        momentum: float,
        eps: float,
        uneven: bool,
    ) -> Tensor:
        mean_C, inverse_C = statistics(x, eps)
        rows, own = x.numel() // x.shape[1], [mean_C, inverse_C]
        if uneven:
            own.append(torch.full_like(mean_C, rows))
        own_KC = torch.stack(own)
        gathered = own_KC.new_empty(len(own) * dist.get_world_size(), own_KC.shape[1])
        dist.all_gather_into_tensor(gathered, own_KC)
        all_RKC = gathered.unflatten(0, (-1, len(own)))
        count_R = all_RKC[:, 2, 0] if uneven else own_KC.new_full((len(all_RKC),), rows)
        mean_C, inverse_C = combined(
            x, all_RKC[:, :2], count_R, running_mean_C, running_var_C, momentum, eps, uneven=uneven
        )
        ctx.save_for_backward(x, weight_C, mean_C, inverse_C, count_R)
        ctx.has_bias = bias_C is not None
        return normalised(x, weight_C, bias_C, mean_C, inverse_C, eps)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, inverse_C, count_R = ctx.saved_tensors
        dy = dy.contiguous(memory_format=memory_format(x))
        sums_2C, dweight_C, dbias_C = gradient_sums(dy, x, weight_C, mean_C, inverse_C)
        dist.all_reduce(sums_2C)
        dx = input_gradient(dy, x, weight_C, mean_C, inverse_C, sums_2C, count_R)
        weight = dweight_C if weight_C is not None else None
        return dx, weight, dbias_C if ctx.has_bias else None, None, None, None, None, None


# ── the arithmetic, on a GPU by PyTorch's kernels, and written out ────────────────────────────────


# The memory forecast follows a step by shapes alone. PyTorch knows none for these kernels: it would
# run them on zeros, on the device.


def _only_shapes(x: Tensor) -> bool:
    return x.is_cuda and isinstance(x, FakeTensor)


def _like_statistics(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return this rank's mean and 1 / √(variance + eps), float32 [C] each."""
    if _only_shapes(x):
        return _like_statistics(x), _like_statistics(x)
    if x.is_cuda:
        return torch.batch_norm_stats(x, eps)
    var_C, mean_C = torch.var_mean(_wide(x), dim=_rows(x), correction=0)
    return mean_C, (var_C + eps).rsqrt()


def combined(
    x: Tensor,
    all_R2C: Tensor,
    count_R: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    momentum: float,
    eps: float,
    *,
    uneven: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the statistics over all ranks, and move the running ones, if any, towards them."""
    mean_RC, inverse_RC = all_R2C.unbind(1)
    if _only_shapes(x):
        return _like_statistics(x), _like_statistics(x)
    if x.is_cuda:
        # The input only says of which type the counts are: without running statistics its own.
        return torch.batch_norm_gather_stats_with_counts(
            mean_RC, mean_RC, inverse_RC, running_mean_C, running_var_C, momentum, eps, count_R
        )
    weight_R1 = (count_R / count_R.sum() * len(count_R))[:, None] if uneven else 1
    mean_C = (weight_R1 * mean_RC).mean(0)
    var_C = (weight_R1 * (inverse_RC**-2 - eps + (mean_RC - mean_C) ** 2)).mean(0)
    if running_mean_C is not None and running_var_C is not None:
        count = count_R.sum()
        running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
        running_var_C.lerp_((var_C * count / (count - 1)).to(running_var_C.dtype), momentum)
    return mean_C, (var_C + eps).rsqrt()


def normalised(
    x: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    mean_C: Tensor,
    inverse_C: Tensor,
    eps: float,
) -> Tensor:
    """Return (x - mean) · inverse · weight + bias."""
    if _only_shapes(x):
        return torch.empty_like(x)
    if x.is_cuda:
        return torch.batch_norm_elemt(x, weight_C, bias_C, mean_C, inverse_C, eps)
    scale_C = inverse_C if weight_C is None else inverse_C * weight_C
    shift_C = -mean_C * scale_C if bias_C is None else bias_C - mean_C * scale_C
    return (_wide(x) * _along(scale_C, x) + _along(shift_C, x)).to(x.dtype)


def gradient_sums(
    dy: Tensor, x: Tensor, weight_C: Tensor | None, mean_C: Tensor, inverse_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this rank's Σ dy and Σ dy (x - mean) [2, C], and the gradients of weight and bias."""
    if _only_shapes(x):
        both_2C = torch.stack([_like_statistics(x)] * 2)
        return both_2C, _like_statistics(x), _like_statistics(x)
    if x.is_cuda:
        sum_C, product_C, dweight_C, dbias_C = torch.batch_norm_backward_reduce(
            dy, x, mean_C, inverse_C, weight_C, True, True, True
        )
        return torch.stack([sum_C, product_C]), dweight_C, dbias_C
    wide = _wide(dy)
    sum_C = wide.sum(_rows(x))
    product_C = (wide * (_wide(x) - _along(mean_C, x))).sum(_rows(x))
    return torch.stack([sum_C, product_C]), product_C * inverse_C, sum_C


def input_gradient(
    dy: Tensor,
    x: Tensor,
    weight_C: Tensor | None,
    mean_C: Tensor,
    inverse_C: Tensor,
    sums_2C: Tensor,
    count_R: Tensor,
) -> Tensor:
    """Return dx = weight · inverse · (dy - mean(dy) - (x - mean) inverse² mean(dy (x - mean)))."""
    sum_C, product_C = sums_2C.unbind(0)
    if _only_shapes(x):
        return torch.empty_like(x)
    if x.is_cuda:
        return torch.batch_norm_backward_elemt(
            dy, x, mean_C, inverse_C, weight_C, sum_C, product_C, count_R.to(torch.int32)
        )
    count = count_R.sum()
    slope_C = inverse_C**2 * product_C / count
    off_mean = _wide(x) - _along(mean_C, x)
    dx = _wide(dy) - _along(sum_C / count, x) - off_mean * _along(slope_C, x)
    scale_C = inverse_C if weight_C is None else inverse_C * weight_C
    return (dx * _along(scale_C, x)).to(x.dtype)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the format of `x`, channels-last or not."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _rows(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _along(value_C: Tensor, x: Tensor) -> Tensor:
    return value_C.view(-1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
