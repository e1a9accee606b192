"""Moving averages of networks: the slowly moving twins that MoCo and BYOL learn from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Copies of networks, one applied after the other, whose weights follow the originals'.

        weights ← momentum · weights + (1 - momentum) · original weights

    It has no gradients, and is not an argument of the optimizer. Its batch norms see batches of
    their own, in training mode, and keep running statistics of their own, as in the authors' code
    of both.

    Args:
        networks: they are copied, in the order of application.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.Sequential(*(copy.deepcopy(network) for network in networks))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the last copy's output [N, D], without gradient."""
        return self.networks(images_NCHW)

    @torch.no_grad()
    def follow(self, *networks: nn.Module, momentum: float | Tensor) -> None:
        """Move towards the originals, given in the same order; no wait for the device.

        A momentum on the device costs a kernel for each weight, one on the host a few for all.
        """
        weights = list(self.networks.parameters())
        originals = [parameter for network in networks for parameter in network.parameters()]
        lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        share = 1 - momentum
        if isinstance(share, Tensor):
            share = [share.to(weight.dtype) for weight in weights]
        lerp(weights, originals, share)
