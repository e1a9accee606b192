"""Moving averages of networks: the slowly moving twins that MoCo, BYOL and DINO learn from."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class MovingAverage(nn.Module):
    """Copies of networks, one applied after the other, whose weights follow the originals'.

    It has no gradients, and is not an argument of the optimizer. Its batch norms see batches of
    their own, in training mode, and keep running statistics of their own, as in the authors' code
    of both. What drops activations at random in the originals does not in the copies.

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

    def follow(self, *networks: nn.Module, momentum: float | Tensor) -> None:
        """Move towards the originals, given in the same order; see `follow`."""
        follow(self.networks, networks, momentum=momentum)

    def train(self, mode: bool = True) -> MovingAverage:
        """Set the mode of the batch norms; all else is in eval mode."""
        super().train(mode)
        drop_nothing(self)
        return self


@torch.no_grad()
def follow(
    averages: Iterable[nn.Module], originals: Iterable[nn.Module], *, momentum: float | Tensor
) -> None:
    """Move the weights of averages towards their originals'; no wait for the device.

        weights ← momentum · weights + (1 - momentum) · original weights

    A momentum on the device costs a kernel for each weight, one on the host a few for all.
    """
    weights = [parameter for network in averages for parameter in network.parameters()]
    following = [parameter for network in originals for parameter in network.parameters()]
    lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
    share = 1 - momentum
    if isinstance(share, Tensor):
        share = [share.to(weight.dtype) for weight in weights]
    lerp(weights, following, share)


def rising(momentum: float, progress: float | Tensor) -> float | Tensor:
    """Return a momentum that grows to 1 along a cosine, as BYOL's and DINO's.

    Args:
        momentum: at the start.
        progress: which part of the run is done, 0 to 1.
    """
    angle = pi * progress
    cosine = angle.cos() if isinstance(angle, Tensor) else cos(angle)
    return 1 - (1 - momentum) * (cosine + 1) / 2


def drop_nothing(network: nn.Module) -> None:
    """Take all but batch norms out of training mode: no dropout, no dropped paths.

    A target is not to depend on what was left out of it; DINO's teacher is built without them.
    """
    for part in network.modules():
        if not isinstance(part, _BatchNorm):
            part.training = False
