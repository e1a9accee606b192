"""Random resized crop with horizontal flip: the geometric part of a view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.augment.augment import Draw, check_interval, check_probability
from pipeline.dali import DataNode, fn, types

Resampling = Literal["warp", "resize", "supersample"]


@dataclass(frozen=True)
class Boxes:
    """The V crops of one image, in its pixels, on the CPU; int32 or float32 [V, 2] each."""

    begin: DataNode
    """Top and left edge."""
    size: DataNode
    """Height and width."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A random part of the image, scaled to the view's size, perhaps mirrored.

    The law is torchvision's RandomResizedCrop: uniform area, log-uniform aspect, ten attempts.

    Args:
        area: smallest and largest part of the image's area that a crop shows.
        aspect: smallest and largest ratio of width to height.
        flip: probability of a horizontal flip. Nothing else that is done to a view depends on left
            and right, so the last pass does it.
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
                fn.random_crop_generator(shape, **self._law(), seed=draw.seed())
                for _ in range(draw.views)
            ),
            strict=True,
        )
        return Boxes(fn.stack(*corners), fn.stack(*sizes))

    def draw_and_cut(self, image: DataNode, draw: Draw, *, minibatch: int) -> DataNode:
        """Return what `cut` makes with resampling "resize" of `self.draw(…, draw)`.

        The crops are drawn where they are cut, by the same generator: no operator of the CPU is
        needed for them. See `cut` for the arguments.
        """
        return _frames(
            fn.random_resized_crop(
                image, **self._law(), seed=draw.seed(), **_filtered(draw.size, minibatch)
            )
            for _ in range(draw.views)
        )

    def _law(self) -> dict[str, Any]:
        return {"random_area": list(self.area), "random_aspect_ratio": list(self.aspect)}


def cut(
    image: DataNode, boxes: Boxes, draw: Draw, *, resampling: Resampling, minibatch: int
) -> DataNode:
    """Return the crops of one image, each scaled to the size of a view; none is mirrored yet.

    Args:
        image: uint8 [H, W, 3], layout "HWC".
        boxes: where the crops lie.
        draw: how many there are, and their size as views.
        resampling: see `pipeline.graph.ViewGroup`.
        minibatch: images that the GPU resizes in one launch.

    Returns:
        uint8 [V, size, size, 3], layout "FHWC".
    """
    filtered = _filtered(draw.size, minibatch)
    if resampling == "resize":
        begin_V2 = fn.cast(boxes.begin, dtype=types.FLOAT)
        end_V2 = begin_V2 + boxes.size
        return _frames(
            fn.resize(image, roi_start=begin_V2[v], roi_end=end_V2[v], **filtered)
            for v in range(draw.views)
        )
    side = draw.size if resampling == "warp" else 2 * draw.size
    # From a view to its image, x = left + width / side · x', and so for y. `transforms.crop` would
    # give it in 2 µs a view, 16 ms for 32 views of 256 images.
    to_matrix_64 = np.zeros((6, 4))
    to_matrix_64[[0, 4], [3, 2]] = 1 / side  # width and height of the box: top, left, height, width
    to_matrix_64[[2, 5], [1, 0]] = 1
    box_V4 = fn.cat(boxes.begin, boxes.size, axis=1)
    matrix_V6 = fn.coord_transform(box_V4, M=to_matrix_64.ravel().tolist())
    frames = fn.warp_affine(
        image,
        # Positional: only so does DALI turn one image into V frames.
        fn.per_frame(fn.reshape(matrix_V6, shape=[-1, 2, 3])),
        size=(side, side),
        inverse_map=True,
        interp_type=types.INTERP_LINEAR,
    )
    return frames if resampling == "warp" else fn.resize(frames, **filtered)


def mirror(views: DataNode, mirrored: DataNode) -> DataNode:
    """Return the views, some of them with left and right exchanged, by passes within DALI.

    Args:
        views: uint8 [V, H, W, 3], layout "FHWC".
        mirrored: whether a view is; bool [V], on the CPU.
    """
    mask = fn.reshape(fn.cast(mirrored, dtype=types.UINT8) * 255, shape=[-1, 1, 1, 1])
    if views.device == "gpu":
        mask = mask.gpu()
    # `flip` takes one answer for all frames; x ^ ((x ^ y) & 255) is y.
    return views ^ ((views ^ fn.flip(views, horizontal=1)) & fn.cast(mask, dtype=types.UINT8))


def _filtered(size: int, minibatch: int) -> dict[str, Any]:
    """Return how an operator scales to the size of a view, filtered against aliasing."""
    return {
        "size": (size, size),
        "interp_type": types.INTERP_LINEAR,
        "antialias": True,
        "minibatch_size": minibatch,
    }


def _frames(views: Iterable[DataNode]) -> DataNode:
    return fn.reshape(fn.stack(*views), layout="FHWC")  # `stack` drops the layout
