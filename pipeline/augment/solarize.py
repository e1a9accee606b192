"""Solarisation: bright pixels are inverted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.augment.augment import PixelAugment, check_probability
from pipeline.dali import DataNode, fn, types


@dataclass(frozen=True, kw_only=True)
class Solarize(PixelAugment):
    """In some views, every value from the threshold on is inverted.

    Args:
        probability: that a view is solarised.
        threshold: the darkest value that is inverted, 0..255.
    """

    units: ClassVar[int] = 1

    probability: float = 0.2
    threshold: int = 128

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        if not 0 <= self.threshold <= 255:
            raise ValueError(f"threshold={self.threshold} is not a pixel value; give 0 to 255.")

    def factors(self, units: Sequence[Any]) -> tuple[Any, ...]:
        """Return the threshold of each view; 256, which no value reaches, changes nothing."""
        (solarized,) = units
        return (256 - (256.0 - self.threshold) * (solarized < self.probability),)

    def change(self, views: DataNode, factors: Sequence[DataNode]) -> DataNode:
        """See `PixelAugment.change`."""
        if self.probability == 0:
            return views
        threshold = fn.reshape(fn.cast(factors[0], dtype=types.INT16), shape=[-1, 1, 1, 1])
        if views.device == "gpu":
            threshold = threshold.gpu()
        # x ^ 255 is 255 - x, and stays in uint8.
        return views ^ ((views >= threshold) * types.Constant(255, dtype=types.UINT8))
