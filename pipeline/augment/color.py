"""Colour jitter and grayscale, in one pass over the pixels."""

from __future__ import annotations

from dataclasses import dataclass

from ..dali import DataNode, fn
from .augment import Augment, Draw, check_probability


@dataclass(frozen=True, kw_only=True)
class Color(Augment):
    """Brightness, contrast, saturation and hue change together; some views lose their colour.

    One linear map of RGB and one rounding. Differs from torchvision's ColorJitter: contrast turns
    about mid-grey instead of the image's mean, hue rotates in YIQ instead of HSV, and the order of
    the four is fixed (without clamping they commute).

    Args:
        jitter: probability that a view's colours change.
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: the rotation is uniform in [-hue, hue], in turns (0.5 is all the way round).
        grayscale: probability that a view becomes gray, whatever its jitter.
    """

    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale: float = 0.2

    def __post_init__(self) -> None:
        check_probability("jitter", self.jitter)
        check_probability("grayscale", self.grayscale)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; 0 switches it off.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue} is outside 0..0.5; 0.5 is a rotation to any hue.")

    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """See `Augment.apply`."""
        jitter = draw.coin(self.jitter)
        colorful = 1 - draw.coin(self.grayscale)

        def factor(strength: float) -> DataNode:
            return 1 + jitter * (draw.uniform(max(0.0, 1 - strength), 1 + strength) - 1)

        return fn.color_twist(
            views,
            brightness=fn.per_frame(factor(self.brightness)),
            contrast=fn.per_frame(factor(self.contrast)),
            # Saturation 0 is the luma of torchvision's grayscale to 0.02/255.
            saturation=fn.per_frame(factor(self.saturation) * colorful),
            hue=fn.per_frame(jitter * draw.uniform(-360 * self.hue, 360 * self.hue)),
        )
