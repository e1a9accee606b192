"""Labelled images without augmentation, for evaluation: one pass, every sample exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.graph import images_pipeline
from pipeline.loader import current_stream
from pipeline.normalisation import IMAGENET, Normalisation
from pipeline.part import part_of, part_size
from pipeline.tuning import Tuning
from pipeline.unreadable import unreadable
from shards.layout import ShardSet


@dataclass(frozen=True)
class LabelledImages:
    """A batch of evaluation images."""

    image_BCHW: Tensor
    """Normalised centre crops, channels-last in memory."""
    label_B: Tensor
    """Labels, int64; −1 for a sample without one."""
    id_B: Tensor
    """Stable sample ids, int64."""
    category_BK: Tensor | None = None
    """Of a multi-label set what each image shows, uint8, as `shards.layout` says."""


class Images:
    """This rank's part of a shard set, in stored order; every iteration is one pass.

    Args:
        shard_set: where the samples come from.
        size: height and width of the crops, in pixels.
        batch_size: samples a batch on this rank.
        rank: this process.
        world_size: number of processes; their parts are disjoint and together complete.
        device: where the images are decoded and delivered.
        tuning: how it runs on this machine.
        dtype: of the images, float16 or float32.
        normalisation: what the encoder was trained with.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        size: int,
        batch_size: int = 256,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        tuning: Tuning | None = None,
        dtype: torch.dtype = torch.float32,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        self.shard_set = shard_set
        self.size, self.batch_size = size, batch_size
        self.rank, self.world_size = rank, world_size
        self.device = device or torch.device("cpu")
        self.tuning = (tuning or Tuning()).for_one_pass().filled(batch_size=batch_size)
        self.dtype, self.normalisation = dtype, normalisation

    def __len__(self) -> int:
        """Samples in this rank's part."""
        return part_size(len(self.shard_set), self.rank, self.world_size)

    def __iter__(self) -> Iterator[LabelledImages]:
        """Yield this rank's part.

        Raises:
            ValueError: an image cannot be decoded.
        """
        left = len(self)
        if left == 0:
            return
        stream = current_stream(self.device)
        try:
            with part_of(self.shard_set, self.rank, self.world_size) as part:
                pipeline = images_pipeline(
                    part,
                    size=self.size,
                    batch_size=min(self.batch_size, left),
                    device=self.device,
                    tuning=self.tuning,
                    dtype=self.dtype,
                    normalisation=self.normalisation,
                )
                pipeline.build()  # reads the indexes
            pipeline.schedule_run()
            while left > 0:
                outputs = pipeline.share_outputs(stream)
                image_BHWC, id_B1, label_B1, *category_BK = (
                    torch.from_dlpack(o.as_tensor()) for o in outputs
                )
                pipeline.release_outputs()
                pipeline.schedule_run()
                own = min(left, len(image_BHWC))  # the rest repeats the last sample
                left -= own
                yield LabelledImages(
                    image_BCHW=image_BHWC[:own].permute(0, 3, 1, 2),
                    label_B=label_B1[:own, 0],
                    id_B=id_B1[:own, 0],
                    category_BK=category_BK[0][:own] if category_BK else None,
                )
        except (RuntimeError, OSError) as error:
            raise unreadable(self.shard_set, error) from error
