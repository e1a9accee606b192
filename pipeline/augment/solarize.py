"""Solarisation: bright pixels are inverted."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.augment.augment import Augment, Draw, check_probability
from pipeline.dali import DataNode, fn, types


@dataclass(frozen=True, kw_only=True)
class Solarize(Augment):
    """In some views, every value from the threshold on is inverted.

    Args:
        probability: that a view is solarised.
        threshold: the darkest value that is inverted, 0..255.
    """

    probability: float = 0.2
    threshold: int = 128

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        if not 0 <= self.threshold <= 255:
            raise ValueError(f"threshold={self.threshold} is not a pixel value; give 0 to 255.")

    def factors(self, draw: Draw) -> tuple[DataNode, ...]:
        """Return the threshold of each view; 256, which no value reaches, changes nothing.

        Args:
            draw: random numbers, one per view.

        Returns:
            One factor, float32 [V].
        """
        return (256 - (256 - self.threshold) * draw.coin(self.probability),)

    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """See `Augment.apply`."""
        if self.probability == 0:
            return views
        (threshold,) = self.factors(draw)
        threshold = fn.reshape(fn.cast(threshold, dtype=types.INT16), shape=[draw.views, 1, 1, 1])
        if views.device == "gpu":
            threshold = threshold.gpu()
        # x ^ 255 is 255 - x, and stays in uint8.
        return views ^ ((views >= threshold) * types.Constant(255, dtype=types.UINT8))
