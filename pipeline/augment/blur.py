"""Gaussian blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..dali import DataNode, fn, math, types
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
        blurred, sigma = draw.coin(self.probability), draw.uniform(*self.sigma)
        if views.device == "gpu":
            # A window of one pixel is exactly the identity.
            window = fn.cast(1 + blurred * (self.window - 1), dtype=types.INT32)
            return fn.gaussian_blur(
                views, sigma=fn.per_frame(sigma), window_size=fn.per_frame(window)
            )
        # On the CPU two general filters take a quarter of gaussian_blur's time, and round once more
        # in between.
        offset = np.arange(self.window, dtype=np.float32) - self.window // 2
        sigma_V1 = fn.reshape(sigma, shape=[draw.views, 1])
        bell_VW = math.exp(types.Constant(-(offset[None] ** 2) / 2) / (sigma_V1 * sigma_V1))
        bell_VW = bell_VW / fn.reductions.sum(bell_VW, axes=[1], keep_dims=True)
        still_VW = types.Constant((offset[None] == 0).astype(np.float32))
        blurred_V1 = fn.reshape(blurred, shape=[draw.views, 1])
        kernel_VW = blurred_V1 * bell_VW + (1 - blurred_V1) * still_VW
        for shape in ([draw.views, 1, self.window], [draw.views, self.window, 1]):
            views = fn.filter(views, fn.per_frame(fn.reshape(kernel_VW, shape=shape)))
        return views
