"""The interface of every image encoder, which is what training leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Images to features: [N, C, H, W] → h [N, F].

    If all its weights lie in `network`, they are published without that prefix: a class that holds
    another library's network there gives them that library's names.
    """

    feature_size: int
    """F."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, in 0..1; the pipeline subtracts it. By default ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of red, green and blue, in 0..1; the pipeline divides by it."""
    image_size: int | None = None
    """Height and width of the images that published weights are for; None: there are none."""

    def describe(self) -> str:
        """Return which network it is, for the header of a run."""
        return type(self).__name__

    @abstractmethod
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the features h [N, F] of normalised images [N, 3, H, W]."""

    def refuse(self, size: int, *, group: int = 0) -> None:
        """Refuse images of a height and width, in pixels, that it cannot take.

        Args:
            size: of the views of a group.
            group: which one: 0 is `views`, those after it are the items of `more_views`.

        Raises:
            ValueError: it cannot; the message says what it takes instead.
        """

    def adapt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return weights that others published, under this network's names and in its shapes.

        Args:
            tensors: by the names of their publisher, without a common prefix.
        """
        return tensors

    def layers(self) -> dict[str, int]:
        """Return {parameter: its layer's number, from the images on}: what layer decay goes by.

        By default all are one layer.
        """
        return {name: 0 for name, _ in self.named_parameters()}

    def stages(self) -> list[str]:
        """Return the names of the modules that end its stages, each half as fine as that before it.

        The finest first; none if it has no such maps, as a ViT, whose blocks are all as fine.
        """
        return []

    def feature_maps(self, images_NCHW: Tensor, *, stages: int) -> list[Tensor]:  # noqa: ARG002
        """Return the maps [N, C, H, W] of its first stages, the finest first.

        Args:
            images_NCHW: normalised images [N, 3, H, W].
            stages: how many of `stages` to compute.
        """
        raise ValueError(f"{self.describe()} has no maps of several sizes.")

    def undecayed(self) -> set[str]:
        """Return the parameters besides norms and biases that get no weight decay."""
        return set()


def layers_of(network: nn.Module, matcher: object) -> dict[str, int]:
    """Return {parameter of an encoder's `network`: its layer}.

    Args:
        network: whose parameters they are.
        matcher: regular expressions of their names, as a network's `group_matcher` in timm.
    """
    from timm.models import group_parameters

    found: Any = group_parameters(network, matcher, reverse=True)
    return {f"network.{name}": layer for name, layer in found.items()}
