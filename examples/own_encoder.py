"""An encoder of one's own: a few strided convolutions.

    VIEWRANK_MODULES=examples/own_encoder.py python train.py --config recipes/sample_s2r2.yaml \
        --method.encoder own_encoder.Strided --method.encoder.width 64

The run's encoder.safetensors has its weights under its own names; whoever loads it names this file
in VIEWRANK_MODULES, too. If all weights lie in an attribute `network`, they lose that prefix, so
that a library's network there is read by that library.
"""

from itertools import pairwise

from torch import Tensor, nn

from model.encoder import Encoder


class Strided(Encoder):
    """Four convolutions, each of which halves the image; features are means over its last map.

    Args:
        width: size of the features.
    """

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        sizes = [3, width // 4, width // 2, width]
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            convolution = nn.Conv2d(size_in, size_out, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(size_out), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.feature_size = width
        # `mean` and `std` of the pixels are ImageNet's, unless the class says otherwise.

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the features h [N, F] of normalised images [N, 3, H, W]."""
        return self.last(self.stem(images_NCHW)).mean((2, 3))
