"""The parts of detectors that torchvision does not have, or has otherwise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.detection.detection_set import STRIDE
from model.encoder import Encoder
from pipeline.normalisation import Normalisation


class SeededSampler:
    """Samples anchors or proposals of an image, a share of them positive, from a seed of its own.

    Stands where torchvision has `BalancedPositiveNegativeSampler`, which draws from one stream for
    all images. That would make an image's samples depend on those before it, and so on the ranks.

    Args:
        size: how many are sampled of an image, if there are enough.
        positive: share of positive ones among them, at most.
        salt: tells samplers with the same seeds apart.
    """

    def __init__(self, size: int, positive: float, *, salt: int) -> None:
        self._size, self._positive, self._salt = size, int(size * positive), salt
        self.seeds: list[int] = []
        """Of the images of the next call."""
        self.count: Any = torch.zeros(())
        """How many samples the last call took of all images."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks [N] of the positive and of the negative samples of each image.

        Args:
            labels: of each image's candidates [N]: positive, 0 for background, -1 for neither.
        """
        positive, negative = [], []
        for label_N, seed in zip(labels, self.seeds, strict=True):
            generator = torch.Generator(label_N.device).manual_seed(2 * seed + self._salt)
            key_N = torch.rand(len(label_N), generator=generator, device=label_N.device)
            positive.append(self._lowest(key_N, label_N >= 1, self._positive))
            left = self._size - positive[-1].sum()
            negative.append(self._lowest(key_N, label_N == 0, left))
        self.count = sum(p.sum() + n.sum() for p, n in zip(positive, negative, strict=True))
        return positive, negative

    def _lowest(self, key_N: Tensor, among_N: Tensor, number: Tensor | int) -> Tensor:
        """Return a mask of those, among some, with the lowest keys; `number` of them at most."""
        masked_N = key_N.masked_fill(~among_N, 2.0)
        place_K = masked_N.topk(min(self._size, len(key_N)), largest=False).indices
        chosen_N = torch.zeros_like(among_N)
        chosen_N[place_K] = torch.arange(len(place_K), device=key_N.device) < number
        return chosen_N & among_N


class Prepared(nn.Module):
    """Stands where torchvision has `GeneralizedRCNNTransform`, which resizes and pads.

    The data set has done both here, so that neither depends on the rank.
    """

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        for name in ("mean", "std"):
            value_C11 = 255 * torch.tensor(getattr(normalisation, name)).view(3, 1, 1)
            self.register_buffer(name, value_C11, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.padded: tuple[int, int] = (0, 0)
        """Height and width of the last batch."""

    def forward(self, images_BCHW: Tensor, targets: list[dict[str, Any]] | None = None) -> Any:
        """Return normalised images, 0 where they are padded, and the targets."""
        from torchvision.models.detection.image_list import ImageList

        B, _, H, W = images_BCHW.shape
        sizes = [tuple(each["size"]) for each in targets] if targets else [(H, W)] * B
        x_BCHW = (images_BCHW.to(self.mean.dtype) - self.mean) / self.std
        for x_CHW, (height, width) in zip(x_BCHW, sizes, strict=True):
            x_CHW[:, height:] = 0
            x_CHW[:, :, width:] = 0
        x_BCHW = F.pad(x_BCHW, (0, -W % STRIDE, 0, -H % STRIDE))
        self.padded = (x_BCHW.shape[2], x_BCHW.shape[3])
        return ImageList(x_BCHW.contiguous(memory_format=torch.channels_last), sizes), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        """Return what was found, in pixels of the resized images."""
        return result


class PooledRegions(nn.Module):
    """Pools regions of maps, whose strides are those of the padded images.

    torchvision's alone takes the images without padding for what the maps are of, and rounds the
    ratio to a power of two: wrong where a third of a batch is padding.
    """

    def __init__(self, pool: nn.Module, prepared: Prepared) -> None:
        super().__init__()
        self._pool = pool
        self._padded = lambda: prepared.padded

    def forward(
        self, features: dict[str, Tensor], regions: list[Tensor], image_shapes: list[Any]
    ) -> Tensor:
        """Return the maps of R regions [R, C, H, W]."""
        return self._pool(features, regions, [self._padded()] * len(image_shapes))


class InPrecision(nn.Module):
    """Runs a module under autocast and returns float32, in which boxes are computed.

    In bfloat16 a side of 500 pixels is known to 2.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module, self._dtype = module, dtype

    def forward(self, *inputs: Any) -> Any:
        """Return what the module does, its half-precision tensors as float32."""
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, self._dtype, enabled=self._dtype is not None):
            return _in_float32(self.module(*inputs))


def _in_float32(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x if x.dtype == torch.float64 else x.float()
    if isinstance(x, dict):
        return OrderedDict((name, _in_float32(each)) for name, each in x.items())
    return type(x)(_in_float32(each) for each in x)


class Pyramid(nn.Module):
    """Maps of an encoder's stages, joined by a feature pyramid, and one or two levels above it."""

    def __init__(
        self,
        encoder: Encoder,
        sizes: list[int],
        first: int,
        channels: int,
        kind: str,
        norm_layer: Callable[..., nn.Module] | None,
    ) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

        above = LastLevelMaxPool() if kind == "fpn" else LastLevelP6P7(channels, channels)
        self.encoder, self._first, self._stages = encoder, first, len(sizes)
        self.pyramid = FeaturePyramidNetwork(sizes[first:], channels, above, norm_layer)
        self.out_channels = channels
        self.levels = len(sizes) - first

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the maps by level, the finest first."""
        maps = self.encoder.feature_maps(images_BCHW, stages=self._stages)[self._first :]
        return self.pyramid(OrderedDict((str(level), each) for level, each in enumerate(maps)))


class ThirdStage(nn.Module):
    """The map of an encoder's third stage."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.encoder, self.out_channels = encoder, channels

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return it [B, C, H, W]."""
        return self.encoder.feature_maps(images_BCHW, stages=3)[-1]
