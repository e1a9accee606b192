"""Colour jitter and grayscale, in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.augment.augment import PixelAugment, check_probability
from pipeline.dali import DataNode, fn, types

LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B: ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Color(PixelAugment):
    """Brightness, contrast, saturation and hue change together; some views lose their colour.

    It is one linear map of RGB and one rounding. torchvision's ColorJitter makes four passes in a
    random order; except for clamping, the first three commute. docs/augmentation.md has the
    measured differences.

    Args:
        jitter: probability that a view's colours change.
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: as for brightness.
        saturation: as for brightness.
        hue: the shift is uniform in [-hue, hue], in turns (0.5 gives any hue).
        grayscale: probability that a view becomes gray, whatever its jitter.
        pivot: the level that contrast keeps: the "mean" luma of the view, as in torchvision, or
            mid-"gray", 128, as in DALI's colour operator.
        hue_space: "yiq" rotates the colours linearly; "hsv" is torchvision's shift of the angle
            in the colour hexagon, a further, non-linear pass.
    """

    units: ClassVar[int] = 6

    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale: float = 0.2
    pivot: Literal["mean", "gray"] = "mean"
    hue_space: Literal["yiq", "hsv"] = "yiq"

    def __post_init__(self) -> None:
        check_probability("jitter", self.jitter)
        check_probability("grayscale", self.grayscale)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; 0 switches it off.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue} is outside 0..0.5; 0.5 is a rotation to any hue.")

    def factors(self, units: Sequence[Any]) -> tuple[Any, ...]:
        """Return brightness, contrast, saturation (0 is gray) and hue in turns."""
        jittered, colorful, *units = units
        jittered = jittered < self.jitter

        def factor(strength: float, unit: Any) -> Any:
            low, high = max(0.0, 1 - strength), 1 + strength
            return 1 + jittered * (low - 1 + (high - low) * unit)

        brightness = factor(self.brightness, units[0])
        contrast = factor(self.contrast, units[1])
        # Saturation 0 is the luma of torchvision's grayscale to 0.02/255.
        saturation = factor(self.saturation, units[2]) * (colorful >= self.grayscale)
        return brightness, contrast, saturation, jittered * (self.hue * (2 * units[3] - 1))

    def change(self, views: DataNode, factors: Sequence[DataNode]) -> DataNode:
        """See `PixelAugment.change`.

        Raises:
            ValueError: DALI's colour operator has no hue in HSV.
        """
        if self.hue and self.hue_space != "yiq":
            raise ValueError(
                f"DALI's colour operator does not have hue_space={self.hue_space}; set it to yiq, "
                "or let the last pass do it: --tuning.finish fused, with no augmentation after "
                "Color but Blur and then Solarize."
            )
        brightness, contrast, saturation, hue = factors
        if self.contrast and self.pivot == "mean":
            views = self._about_mean(views, brightness * contrast, brightness * (1 - contrast))
            brightness = contrast = 0 * hue + 1
        return fn.color_twist(
            views,
            brightness=fn.per_frame(brightness),
            contrast=fn.per_frame(contrast),
            saturation=fn.per_frame(saturation),
            hue=fn.per_frame(360 * hue),
        )

    def _about_mean(self, views: DataNode, scale: DataNode, lift: DataNode) -> DataNode:
        """Return `views · scale + mean luma · lift`, by a separate pass over the pixels."""
        mean = fn.reductions.mean(views, axes=[1, 2], keep_dims=True)
        weights = types.Constant(np.array(LUMA, dtype=np.float32).reshape(1, 1, 1, 3))
        scale, lift = (fn.reshape(x, shape=[-1, 1, 1, 1]) for x in (scale, lift))
        if views.device == "gpu":
            weights, scale, lift = weights.gpu(), scale.gpu(), lift.gpu()
        luma = fn.reductions.sum(mean * weights, axes=[3], keep_dims=True)
        return fn.reshape(fn.cast(views * scale + luma * lift, dtype=types.UINT8), layout="FHWC")
