"""Gaussian blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.augment.augment import Augment, Draw, check_interval, check_probability
from pipeline.dali import DataNode, fn, math, types

_NO_SPREAD = 1e-3  # pixels: so narrow a bell is one pixel, exactly


@dataclass(frozen=True, kw_only=True)
class Blur(Augment):
    """Some views are blurred, with a random standard deviation.

    Args:
        probability: that a view is blurred.
        sigma: smallest and largest standard deviation, in pixels of the view.
        window: width of the filter, in pixels, odd; by default a tenth of the view's size, made
            odd, as in SimCLR and BYOL: 23 for 224 px, 9 for 96.
    """

    probability: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    window: int | None = None

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        check_interval("sigma", self.sigma, above=0)
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(
                f"window={self.window} is not odd and positive; try {max(1, self.window) | 1}."
            )

    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """See `Augment.apply`."""
        if self.probability == 0:
            return views
        radius = draw.size // 20 if self.window is None else self.window // 2
        # A window of one pixel is exactly the identity.
        window = draw.choice(self.probability, chosen=1 + 2 * radius, otherwise=1)
        sigma = draw.uniform(*self.sigma)
        if views.device == "gpu":
            return fn.gaussian_blur(
                views, sigma=fn.per_frame(sigma), window_size=fn.per_frame(window)
            )
        # On the CPU two general filters take a quarter of gaussian_blur's time; they round once
        # more, between the two.
        offset_1W = np.arange(-radius, radius + 1, dtype=np.float32)[None]
        spread_V1 = fn.reshape(math.max(sigma * (window > 1), _NO_SPREAD), shape=[-1, 1])
        bell_VW = math.exp(types.Constant(-offset_1W * offset_1W / 2) / (spread_V1 * spread_V1))
        kernel_VW = bell_VW / fn.reductions.sum(bell_VW, axes=[1], keep_dims=True)
        for shape in ([draw.views, 1, -1], [draw.views, -1, 1]):
            views = fn.filter(views, fn.per_frame(fn.reshape(kernel_VW, shape=shape)))
        return views
