"""A narrow ResNet, for CPUs and tests."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from model.encoder.encoder import Encoder, layers_of


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
        from torchvision.models.resnet import BasicBlock  # here: it takes two seconds

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
            layers.append(BasicBlock(channels, out, stride=stride, downsample=shortcut))
            channels = out
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_size = channels

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.network(images_NCHW)

    def stages(self) -> list[str]:
        """See `Encoder.stages`: strides of 1 to 8 pixels, twice that with `stem_stride` 2."""
        return [f"network.{number}" for number in range(3, 7)]

    def feature_maps(self, images_NCHW: Tensor, *, stages: int) -> list[Tensor]:
        """See `Encoder.feature_maps`."""
        map_NCHW = self.network[:3](images_NCHW)
        found = []
        for name in self.stages()[:stages]:
            map_NCHW = self.get_submodule(name)(map_NCHW)
            found.append(map_NCHW)
        return found

    def layers(self) -> dict[str, int]:
        """See `Encoder.layers`: the stem, then the blocks."""
        return layers_of(self.network, {"stem": r"^[0-2]\.", "blocks": r"^(\d+)\."})


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
