"""torchvision's ResNets."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from model.encoder.encoder import Encoder, layers_of


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
        import torchvision.models  # here: it takes two seconds

        build = getattr(torchvision.models, f"resnet{depth}")
        network = build(weights=None, zero_init_residual=zero_init_residual)
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        self.feature_size = network.fc.in_features
        self.image_size = 224 if stem == "large" else None
        network.fc = nn.Identity()
        self.network = network

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.network(images_NCHW)

    def stages(self) -> list[str]:
        """See `Encoder.stages`: strides of 4 to 32 pixels; with the small stem, of 1 to 8."""
        return [f"network.layer{number}" for number in range(1, 5)]

    def feature_maps(self, images_NCHW: Tensor, *, stages: int) -> list[Tensor]:
        """See `Encoder.feature_maps`."""
        network = self.network
        map_NCHW = network.maxpool(network.relu(network.bn1(network.conv1(images_NCHW))))
        found = []
        for name in self.stages()[:stages]:
            map_NCHW = self.get_submodule(name)(map_NCHW)
            found.append(map_NCHW)
        return found

    def layers(self) -> dict[str, int]:
        """See `Encoder.layers`: the stem, then the blocks."""
        return layers_of(self.network, {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)\.(\d+)"})
