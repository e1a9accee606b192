"""Random resized crop with horizontal flip: the geometric part of a view."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from pipeline.augment.augment import Draw, check_interval, check_probability
from pipeline.dali import DataNode, fn, types

Resampling = Literal["warp", "resize", "supersample"]


@dataclass(frozen=True)
class Boxes:
    """The V crops of one image, in its pixels, on the CPU; float32 [V] each."""

    top: DataNode
    left: DataNode
    height: DataNode
    width: DataNode
    mirrored: DataNode
    """0 or 1."""

    def moved(self, top: DataNode, left: DataNode) -> Boxes:
        """Return the same crops in the part of the image that begins at `top` and `left`."""
        return replace(self, top=self.top - top, left=self.left - left)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A random part of the image, scaled to the view's size, perhaps mirrored.

    The law is torchvision's RandomResizedCrop: uniform area, log-uniform aspect, ten attempts.

    Args:
        area: smallest and largest part of the image's area that a crop shows.
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

    def draw(self, shape: DataNode, draw: Draw) -> Boxes:
        """Return V random crops.

        Args:
            shape: height and width of the image on the CPU, int64 [2].
            draw: random numbers, one per view.
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
        return Boxes(
            corner_V2[:, 0], corner_V2[:, 1], size_V2[:, 0], size_V2[:, 1], draw.coin(self.flip)
        )


def cut(
    image: DataNode, boxes: Boxes, *, views: int, size: int, resampling: Resampling, minibatch: int
) -> DataNode:
    """Return the crops of one image, each scaled to the size of a view.

    Args:
        image: uint8 [H, W, 3], layout "HWC".
        boxes: where the crops lie.
        views: V, their number.
        size: height and width of a view, in pixels.
        resampling: see `pipeline.graph.ViewGroup`.
        minibatch: images that the GPU resizes in one launch.

    Returns:
        uint8 [V, size, size, 3], layout "FHWC".
    """
    # A flip is free: the crop runs from its right edge to its left one.
    start_x = boxes.left + boxes.mirrored * boxes.width
    end_x = boxes.left + boxes.width - boxes.mirrored * boxes.width
    resize = partial(
        fn.resize,
        size=(size, size),
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        minibatch_size=minibatch,
    )
    if resampling == "resize":
        frames = [
            resize(
                image,
                roi_start=fn.stack(boxes.top[v], start_x[v]),
                roi_end=fn.stack(boxes.top[v] + boxes.height[v], end_x[v]),
            )
            for v in range(views)
        ]
        # `stack` drops the layout.
        return fn.reshape(fn.stack(*frames), layout="FHWC")
    side = size if resampling == "warp" else 2 * size
    matrix = fn.transforms.crop(
        from_start=fn.per_frame(fn.stack(start_x, boxes.top, axis=1)),
        from_end=fn.per_frame(fn.stack(end_x, boxes.top + boxes.height, axis=1)),
        to_start=[0.0, 0.0],
        to_end=[float(side), float(side)],
    )
    frames = fn.warp_affine(
        image,
        matrix,  # positional: only so does DALI turn one image into V frames
        size=(side, side),
        inverse_map=False,
        interp_type=types.INTERP_LINEAR,
    )
    return frames if side == size else resize(frames)
