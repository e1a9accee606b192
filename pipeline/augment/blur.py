"""Gaussian blur."""

from __future__ import annotations

from dataclasses import dataclass

from ..dali import DataNode, fn, types
from .augment import Augment, Draw, check_interval, check_probability


@dataclass(frozen=True, kw_only=True)
class Blur(Augment):
    """Some views are blurred, with a random standard deviation.

    Args:
        probability: of a view being blurred.
        sigma: smallest and largest standard deviation, in pixels of the view.
        window: width of the filter, in pixels, odd; SimCLR uses a tenth of the view's size.
    """

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    window: int = 9

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        check_interval("sigma", self.sigma, above=0)
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(
                f"window={self.window} is not odd and positive; try {self.window | 1}."
            )

    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """See `Augment.apply`."""
        if self.probability == 0:
            return views
        # A window of one pixel is exactly the identity.
        window = 1 + draw.coin(self.probability) * (self.window - 1)
        return fn.gaussian_blur(
            views,
            sigma=fn.per_frame(draw.uniform(*self.sigma)),
            window_size=fn.per_frame(fn.cast(window, dtype=types.INT32)),
        )
