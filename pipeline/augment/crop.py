"""Random resized crop with horizontal flip: the geometric part of a view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..dali import DataNode, fn, types
from .augment import Draw, check_interval, check_probability

Resampling = Literal["warp", "resize"]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A random part of the image, scaled to the view's size, perhaps mirrored.

    The law is torchvision's RandomResizedCrop: uniform area, log-uniform aspect, ten attempts.

    Args:
        area: smallest and largest part of the image's area.
        aspect: smallest and largest ratio of width to height.
        flip: probability of a horizontal flip.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        check_interval("area", self.area, above=0)
        check_interval("aspect", self.aspect, above=0)
        check_probability("flip", self.flip)
        if self.area[1] > 1:
            raise ValueError(f"area=[{self.area[0]}, {self.area[1]}] exceeds the image; 1 is all.")

    def apply(
        self, image: DataNode, shape: DataNode, draw: Draw, *, size: int, resampling: Resampling
    ) -> DataNode:
        """Return V views of one decoded image.

        Args:
            image: uint8 [H, W, 3], layout "HWC".
            shape: height and width of `image` on the CPU, int64 [2].
            draw: random numbers, one per view.
            size: height and width of a view, in pixels.
            resampling: "warp" samples bilinearly in one operator for all views, exact when the crop
                is scaled up; "resize" filters against aliasing, one operator a view, and is what
                scaling down needs.

        Returns:
            uint8 [V, size, size, 3], layout "FHWC".
        """
        corners, sizes = zip(
            *(
                fn.random_crop_generator(
                    shape,
                    random_area=list(self.area),
                    random_aspect_ratio=list(self.aspect),
                    seed=draw.seed(),
                )
                for _ in range(draw.views)
            ),
            strict=True,
        )
        corner_V2 = fn.cast(fn.stack(*corners), dtype=types.FLOAT)  # y, x
        size_V2 = fn.cast(fn.stack(*sizes), dtype=types.FLOAT)  # height, width
        top, left, height, width = corner_V2[:, 0], corner_V2[:, 1], size_V2[:, 0], size_V2[:, 1]
        # A flip is free: the crop runs from its right edge to its left one.
        flip = draw.coin(self.flip)
        start_x, end_x = left + flip * width, left + width - flip * width
        if resampling == "warp":
            matrix = fn.transforms.crop(
                from_start=fn.per_frame(fn.stack(start_x, top, axis=1)),
                from_end=fn.per_frame(fn.stack(end_x, top + height, axis=1)),
                to_start=[0.0, 0.0],
                to_end=[float(size), float(size)],
            )
            return fn.warp_affine(
                image,
                matrix,  # by place: only there does it turn one image into V frames
                size=(size, size),
                inverse_map=False,
                interp_type=types.INTERP_LINEAR,
            )
        views = [
            fn.resize(
                image,
                size=(size, size),
                roi_start=fn.stack(top[v], start_x[v]),
                roi_end=fn.stack(top[v] + height[v], end_x[v]),
                interp_type=types.INTERP_LINEAR,
                antialias=True,
                # The default of 32 images splits a batch into many launches.
                minibatch_size=256,
            )
            for v in range(draw.views)
        ]
        # `stack` drops the layout.
        return fn.reshape(fn.stack(*views), layout="FHWC")
