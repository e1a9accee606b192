"""LARS, which gives each layer a rate of its own.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
https://arxiv.org/abs/1708.03888, algorithm 1, with the norms' epsilon of timm's `Lars`, whose
updates tests hold it to. Unlike timm's it works on all parameters of a group by few kernels, adapts
with and without weight decay, and skips a step that `training.guard` finds bad, as PyTorch's fused
optimizers do, without a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_TRUST = 0.001  # the paper's η
_EPSILON = 1e-8


class LARS(Optimizer):
    """Momentum, at a rate that is proportional to a layer's weights and not to its gradient.

        g ← g + decay · w,    b ← momentum · b + local · g,    w ← w - rate · b,
        local = 0.001 |w| / (|g| + decay |w|),    1 where a norm is 0

    Args:
        groups: of parameters. `adapts: false` in one keeps `local` at 1: for norms and biases.
        lr: the rate.
        momentum: of the buffer b.
        weight_decay: part of the gradient.
    """

    found_inf: Tensor | None = None
    """1 if the next step is to change nothing, else 0; on the device, so that nobody waits."""
    _step_supports_amp_scaling = True  # else the scaler asks the device whether to call it

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapts": True}
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: None = None
    ) -> None:
        """Update the weights and their buffers.

        Args:
            closure: for the signature of optimizers; there must be none.
        """
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(group, weights)

    def _step(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        scale: Tensor | None = getattr(self, "grad_scale", None)  # the scaler's, which deletes it
        if scale is not None:
            _all.mul_(gradients, 1 / scale)
        skipped = torch.zeros((), device=weights[0].device)
        if self.found_inf is not None:
            skipped = self.found_inf
            bad = skipped != 0
            for gradient in gradients:  # what is not finite would stay so times 0
                gradient.masked_fill_(bad, 0.0)
        taken, decay = 1 - skipped, group["weight_decay"]
        changes = _all.add(gradients, weights, alpha=decay)
        if group["adapts"]:
            w, g = (torch.stack(_all.norm(tensors)) for tensors in (weights, gradients))
            local = torch.where((w > 0) & (g > 0), _TRUST * w / (g + decay * w + _EPSILON), 1.0)
            _all.mul_(changes, list((taken * local).unbind()))
        else:
            _all.mul_(changes, taken)
        _all.mul_(buffers, skipped + taken * group["momentum"])
        _all.add_(buffers, changes)
        _all.add_(weights, _all.mul(buffers, -group["lr"] * taken))


class _All:
    """PyTorch's operators on lists of tensors, one kernel for all where there is one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, f"_foreach_{name}")


_all = _All()
