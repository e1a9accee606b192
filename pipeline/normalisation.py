"""The channel statistics that the last pass takes out of the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std, for red, green and blue.

    The encoder says which, not the shard set, so that it can be evaluated on other shards than
    those that it was trained on.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """In 0..1; by default ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """In 0..1; by default ImageNet's."""

    @property
    def mean_255(self) -> tuple[float, ...]:
        """The mean of pixels in 0..255."""
        return tuple(255 * value for value in self.mean)

    @property
    def std_255(self) -> tuple[float, ...]:
        """The standard deviation of pixels in 0..255."""
        return tuple(255 * value for value in self.std)

    def undone(self, images: Tensor) -> Tensor:
        """Return normalised images [..., 3, H, W] as uint8 pixels."""
        given = (self.mean_255, self.std_255)
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in given)
        return (images * std + mean).round().clamp(0, 255).to(torch.uint8)


IMAGENET = Normalisation()
