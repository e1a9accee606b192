"""The DALI graphs: what happens to a sample between its tar and the device.

    tar ─▶ this rank's part ─▶ decode once ─┬▶ V views as frames ─▶ augment ─▶ normalise ─▶ group 0
                                            └▶ V' views as frames ─▶ …                   ─▶ group 1

A description only: `Loader` and `Images` run it. All random numbers are drawn on the CPU, so that
the same program runs without a GPU and sees the same views.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shards.layout import ShardSet

from .augment import Draw, Policy
from .augment.crop import Resampling
from .dali import DataNode, Pipeline, fn, types

# ImageNet's channel statistics in 0..255. One normalisation for all sets, so that an encoder can be
# evaluated on shards other than those it was trained on.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

DTYPES = {torch.float16: types.FLOAT16, torch.float32: types.FLOAT}


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """Views of one size under one policy; multi-crop is two or more groups."""

    policy: Policy
    """How a view is made: SimCLR, MoCoV2, SwAV, GroCo, or Policy with a crop and augmentations."""
    count: int = 4
    """Views of each sample (V)."""
    size: int = 96
    """Height and width of a view, in pixels."""
    resampling: Literal["auto", "warp", "resize"] = "auto"
    """warp: bilinear, one operator for all views, exact for crops that are scaled up. resize:
    filtered against aliasing, one operator a view. auto: warp where the median image is no larger
    than a view, else resize."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} views; a view group has 1 or more.")
        if self.size < 8:
            raise ValueError(f"size={self.size} pixels; views are 8 pixels or more.")

    def resampling_for(self, shard_set: ShardSet) -> Resampling:
        """Return the resampling that "auto" stands for on these images."""
        if self.resampling != "auto":
            return self.resampling
        shorter = shard_set.manifest.statistics.median_shorter_side
        return "warp" if shorter <= self.size else "resize"


def default_threads(ranks_per_node: int = 1) -> int:
    """Return how many CPU threads a rank gets: its share of the cores that it may use."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, ranks_per_node))


def views_pipeline(
    shard_set: ShardSet,
    groups: Sequence[ViewGroup],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    threads: int,
    seed: int,
    dtype: torch.dtype,
    shuffle_buffer: int,
    prefetch: int,
    checkpoint: bytes | None,
) -> Pipeline:
    """Build the training graph of one rank.

    Outputs, for each group, [B, V·size, size, 3] normalised in `dtype`; then ids and labels int64
    [B, 1]; all on `device`.

    Args:
        shard_set: where the samples come from.
        groups: the views of every sample.
        batch_size: samples a batch on this rank.
        rank: whose part of the shard set is read.
        world_size: number of parts.
        device: where the views are made; decoding on a GPU uses its JPEG engine.
        threads: CPU threads.
        seed: of the order of the samples and of every random parameter.
        dtype: float16 or float32.
        shuffle_buffer: samples held for shuffling, on top of the shuffle of the shards' order.
        prefetch: batches made ahead.
        checkpoint: where to go on, from `Pipeline.checkpoint`.
    """
    gpu = device.type == "cuda"
    part = -(-len(shard_set) // world_size)
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device.index if gpu else None,
        seed=seed,
        prefetch_queue_depth=prefetch,
        enable_checkpointing=True,
        checkpoint=checkpoint,
    )
    with pipeline:
        stored, id_B, label_B = _read(
            shard_set,
            name="reader",
            random_shuffle=True,
            # A buffer larger than the part would hold samples of the epochs after it.
            initial_fill=min(shuffle_buffer, part),
            seed=Draw(1, (seed, rank, 0)).seed(),
            # The shards' order changes every epoch, alike on all ranks: parts stay disjoint.
            shuffle_after_epoch=True,
            shuffle_after_epoch_seed=seed % 2**31,
            shard_id=rank,
            num_shards=world_size,
            # An epoch ends with a batch, the same on every rank; `Loader` drops the padded one.
            pad_last_batch=True,
        )
        image, shape = _decode(stored, gpu)
        outputs: list[DataNode] = []
        for index, group in enumerate(groups):
            views = group.policy.apply(
                image,
                shape,
                Draw(group.count, (seed, rank, 1 + index)),
                size=group.size,
                resampling=group.resampling_for(shard_set),
            )
            # Frames become rows, at no cost, because the next operator takes one image a sample.
            views = fn.reshape(views, shape=[group.count * group.size, group.size, 3], layout="HWC")
            outputs.append(_normalise(views, dtype))
        pipeline.set_outputs(*outputs, *((id_B.gpu(), label_B.gpu()) if gpu else (id_B, label_B)))
    return pipeline


def images_pipeline(
    shard_set: ShardSet,
    *,
    size: int,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    threads: int,
    dtype: torch.dtype,
) -> Pipeline:
    """Build the evaluation graph: centre crops without augmentation, in the order of the shards.

    Images are scaled to a shorter side of `size` (8/7 of it from 128 pixels on: 256 for 224, as is
    customary), then cropped. Outputs [B, size, size, 3], ids and labels [B, 1]; the last batch is
    padded by repeating its last sample. For arguments see `views_pipeline`.
    """
    gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device.index if gpu else None,
        seed=0,
        prefetch_queue_depth=2,
    )
    with pipeline:
        stored, id_B, label_B = _read(
            shard_set,
            name="reader",
            shard_id=rank,
            num_shards=world_size,
            stick_to_shard=True,
            pad_last_batch=True,
        )
        image = fn.resize(
            _decode(stored, gpu)[0],
            resize_shorter=float(size * 8 // 7 if size >= 128 else size),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
            minibatch_size=256,
        )
        image = fn.crop(image, crop=(size, size))
        outputs = (_normalise(image, dtype), id_B, label_B)
        pipeline.set_outputs(*((o.gpu() for o in outputs) if gpu else outputs))
    return pipeline


def _read(shard_set: ShardSet, **settings: Any) -> tuple[list[DataNode], DataNode, DataNode]:
    """Return what is stored of each image (see `_decode`), the id and the label."""
    raw = shard_set.manifest.raw
    image = ["rgb", "shape.i64"] if raw else [";".join(shard_set.manifest.extensions)]
    outputs = fn.readers.webdataset(
        paths=shard_set.tars,
        index_paths=shard_set.indexes,
        ext=[*image, "id.i64", "y.i64"],
        dtypes=[types.UINT8, *[types.INT64] * (len(image) + 1)],
        missing_component_behavior="error",
        **settings,
    )
    return list(outputs[:-2]), outputs[-2], outputs[-1]


def _decode(stored: list[DataNode], gpu: bool) -> tuple[DataNode, DataNode]:
    """Return the image [H, W, 3] on the device, and (H, W) on the CPU."""
    if len(stored) == 2:  # bare pixels, and their shape
        pixels, shape = stored
        image = fn.reshape(pixels, shape=shape, layout="HWC")
        return (image.gpu() if gpu else image), shape[:2]
    (encoded,) = stored
    image = fn.decoders.image(
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        # What the CPU decoders do always: without it GPU and CPU pixels differ.
        jpeg_fancy_upsampling=True,
    )
    return image, fn.peek_image_shape(encoded)[:2]


def _normalise(images: DataNode, dtype: torch.dtype) -> DataNode:
    return fn.crop_mirror_normalize(
        images, dtype=DTYPES[dtype], output_layout="HWC", mean=list(MEAN), std=list(STD)
    )
