"""Image encoders, which are kept after training: torchvision's backbones without classifiers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor, nn

_HEADS = {"ti": 3, "s": 6}  # of the transformers that torchvision does not have by name


def _models() -> Any:
    """Return torchvision.models, imported only when a network is built: it takes two seconds."""
    import torchvision.models

    return torchvision.models


class Encoder(nn.Module, ABC):
    """Images to features: [N, C, H, W] → h [N, F]."""

    feature_size: int
    """F."""

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


class ResNet(Encoder):
    """torchvision's ResNet.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385.

    Args:
        depth: number of layers.
        stem: large is the 7×7 convolution with stride 2 and max-pooling; small, a 3×3 convolution
            without either, is customary for images of 32 to 64 pixels.
        zero_init_residual: start every residual branch at zero.
    """

    def __init__(
        self,
        *,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        stem: Literal["large", "small"] = "large",
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        build = getattr(_models(), f"resnet{depth}")
        network = build(weights=None, zero_init_residual=zero_init_residual)
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        self.feature_size = network.fc.in_features
        network.fc = nn.Identity()
        self.network = network

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.network(images_NCHW)


class SmallResNet(Encoder):
    """A ResNet for CPUs and tests: one basic block a stage, 1.2 million parameters at width 32.

    It starts from PyTorch's default weights. They are smaller than He's, and since batch norm hides
    their size, the first steps turn them further: 250 steps of NT-Xent on the generated sample
    images gave 61 % k-NN with them, 39 % with He's, 20 % with residual branches begun at zero.

    Args:
        width: channels of the first stage; the next three have 2, 4 and 8 times as many.
        stem_stride: of the first convolution; 2 suits images of 48 pixels and more.
    """

    def __init__(self, *, width: int = 32, stem_stride: Literal[1, 2] = 1) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} channels; give 1 or more.")
        block = _models().resnet.BasicBlock
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, kernel_size=3, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
        for stage in range(4):
            stride = 1 if stage == 0 else 2
            out = width * 2**stage
            shortcut = None
            if out != channels:
                shortcut = nn.Sequential(_Pointwise(channels, out, stride), nn.BatchNorm2d(out))
            layers.append(block(channels, out, stride=stride, downsample=shortcut))
            channels = out
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_size = channels

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.network(images_NCHW)


class _Pointwise(nn.Conv2d):
    """A convolution of single pixels with a stride, which takes these pixels out before.

    PyTorch's own, seen in 2.15 on a Xeon, writes beyond its memory in the backward pass of 2 to 8
    channels, channels-last: heap corruption, and runs that end by SIGSEGV.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(channels, out, kernel_size=1, bias=False)
        self.every = stride

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of every so many pixels' channels with the weights."""
        return super().forward(input[:, :, :: self.every, :: self.every])


class VisionTransformer(Encoder):
    """torchvision's Vision Transformer; the feature is the class token.

    Dosovitskiy et al., "An Image is Worth 16×16 Words", ICLR 2021,
    https://arxiv.org/abs/2010.11929.

    Args:
        variant: size and patch, in pixels; ti and s as in Touvron et al., "Training data-efficient
            image transformers", ICML 2021, https://arxiv.org/abs/2012.12877.
        image_size: height and width of the views; all view groups must have it.
    """

    def __init__(
        self,
        *,
        variant: Literal["ti_16", "s_16", "b_16", "b_32", "l_16", "l_32"] = "b_16",
        image_size: int = 224,
    ) -> None:
        super().__init__()
        name, _, digits = variant.partition("_")
        patch = int(digits)
        if image_size % patch:
            raise ValueError(
                f"image_size={image_size} is not divisible by the {patch}-pixel patches of "
                f"vit_{variant}; try {round(image_size / patch) * patch}."
            )
        network: Any
        if name in _HEADS:
            width = 64 * _HEADS[name]
            network = _models().VisionTransformer(
                image_size=image_size,
                patch_size=patch,
                num_layers=12,
                num_heads=_HEADS[name],
                hidden_dim=width,
                mlp_dim=4 * width,
            )
        else:
            build = getattr(_models(), f"vit_{variant}")
            network = build(weights=None, image_size=image_size)
        self.image_size = image_size
        self.feature_size = network.hidden_dim
        network.heads = nn.Identity()
        self.network = network

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.network(images_NCHW)

    def refuse(self, size: int, *, group: int = 0) -> None:
        """See `Encoder.refuse`."""
        if size == self.image_size:
            return
        found = f"VisionTransformer(image_size={self.image_size}) was given views of {size} pixels"
        if group == 0:
            raise ValueError(
                f"{found}; set both to one size: --views.size {self.image_size}, or "
                f"--method.encoder.image_size {size}."
            )
        raise ValueError(
            f"{found}, by item {group} of more_views. It takes one size: give that item size: "
            f"{self.image_size}, or leave it out (--more_views '[]'); ResNet and SmallResNet take "
            "several sizes."
        )
