"""Gaussian blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.augment.augment import Augment, Draw, check_interval, check_probability
from pipeline.dali import DataNode, fn, math, types

_FARTHEST = 512  # pixels from the middle of a window; no window is so wide


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
        blurred, sigma = draw.coin(self.probability), draw.uniform(*self.sigma)
        # Computed in the graph: an augmentation does not know the size of its views.
        radius = views.shape()[1] // 20 if self.window is None else self.window // 2
        if views.device == "gpu":
            # A window of one pixel is exactly the identity.
            window = fn.cast(1 + 2 * blurred * radius, dtype=types.INT32)
            return fn.gaussian_blur(
                views, sigma=fn.per_frame(sigma), window_size=fn.per_frame(window)
            )
        # On the CPU two general filters take a quarter of gaussian_blur's time; they round once
        # more, between the two.
        offset_W = fn.slice(
            types.Constant(np.arange(-_FARTHEST, _FARTHEST + 1, dtype=np.float32)),
            _FARTHEST - radius,
            2 * radius + 1,
            axes=[0],
        )
        offset_1W = fn.reshape(offset_W, shape=[1, -1])
        sigma_V1, blurred_V1 = (fn.reshape(x, shape=[-1, 1]) for x in (sigma, blurred))
        bell_VW = math.exp(offset_1W * offset_1W / (-2 * sigma_V1 * sigma_V1))
        bell_VW = bell_VW / fn.reductions.sum(bell_VW, axes=[1], keep_dims=True)
        kernel_VW = blurred_V1 * bell_VW + (1 - blurred_V1) * (offset_1W == 0)
        for shape in ([draw.views, 1, -1], [draw.views, -1, 1]):
            views = fn.filter(views, fn.per_frame(fn.reshape(kernel_VW, shape=shape)))
        return views
