"""The DALI graphs: what happens to a sample between its tar and the device.

    tar ─▶ this rank's part ─▶ decode once ─┬▶ V views as frames ─▶ augment ─▶ group 0 ─▶ finish
                                            └▶ V' views as frames ─▶ …      ─▶ group 1 ─▶ …

A sample of a pair set (see `shards.source.pairs`) has two images. Both are decoded, and views are
cut from the image and its partner in turn (see `pipeline.partners`); the rest is the same.

These are descriptions: `Loader` and `Images` run them. `pipeline.finish` then does the flips,
colours, solarisation and normalisation, or nothing with `Tuning.finish="dali"`. All random numbers
are drawn by the CPU, so that the same program runs without a GPU and sees the same views.

DALI runs the operators of the CPU one at a time, a quarter of a millisecond each at a batch of 256,
and a GPU waits for the last of them. So they are few, and their number hardly grows with V (see
docs/pipeline.md): a crop is drawn by the operator that cuts it, and factors are reckoned later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline.augment import Crop, Draw, Policy
from pipeline.augment.augment import next_seed
from pipeline.augment.crop import Boxes, Resampling, cut
from pipeline.dali import DataNode, Pipeline, fn, number_of, types
from pipeline.normalisation import IMAGENET, Normalisation
from pipeline.partners import alternate, shares
from pipeline.read import decode, decode_surroundings, read, shape_of
from pipeline.tuning import Tuning
from shards.layout import ShardSet

GRAPH = 2  # raise it whenever other operators draw: no state of an older graph fits then
MANY_VIEWS = 12  # on a GPU, one operator makes all views of a larger group
FEW_VIEWS = 2  # so few crops leave out enough of an image to decode their surroundings only


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """Views of one size under one policy; multi-crop is two or more groups."""

    policy: Policy
    """How a view is made: one of the papers' (docs/augmentation.md), such as SimCLRViews, or
    Policy with a crop and augmentations."""
    count: int = 4
    """Views of each sample (V)."""
    size: int = 96
    """Height and width of a view, in pixels."""
    resampling: Literal["auto", "warp", "resize", "supersample"] = "auto"
    """resize: filtered against aliasing, one operator a view. warp: bilinear, one operator for all
    views; exact for crops that are scaled up. supersample: warp to twice the size, halved by a
    filter; one operator too. auto chooses by the size of the images, the device and the number of
    views, and says why."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} views; a view group has 1 or more.")
        if self.size < 8:
            raise ValueError(f"size={self.size} pixels; views are 8 pixels or more.")

    def resampling_for(self, shard_set: ShardSet, device: torch.device) -> tuple[Resampling, str]:
        """Return the resampling for these images on this device, and the reason."""
        if self.resampling != "auto":
            return self.resampling, "as set"
        shorter = shard_set.manifest.statistics.median_shorter_side
        if device.type != "cuda":
            # Agrees with warp within a level of 255 where crops are scaled up, and is faster here.
            return "resize", "the fastest on a CPU"
        if shorter <= self.size:
            return "warp", f"exact: crops of {shorter:g} px are scaled up"
        if self.count > MANY_VIEWS:
            return "supersample", f"{self.count} views of {shorter:g} px in one operator"
        return "resize", f"filtered: crops of {shorter:g} px are scaled down"


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How one rank reads a shard set and makes views of it."""

    batch_size: int
    """Samples a batch on this rank."""
    rank: int
    """Whose random numbers are drawn."""
    device: torch.device
    """Where the views are made."""
    seed: int
    """Decides the order of the samples and every random parameter."""
    dtype: torch.dtype
    """Of views that DALI finishes: float16 or float32."""
    shuffle_buffer: int
    """Samples held for shuffling, besides the shuffle of the shards' order."""
    tuning: Tuning
    """How it runs on this machine; every field has a value."""
    normalisation: Normalisation = IMAGENET
    """Of views that DALI finishes."""

    @property
    def gpu(self) -> bool:
        """Whether the views are made on a GPU."""
        return self.device.type == "cuda"


def views_pipeline(
    part: ShardSet,
    groups: Sequence[ViewGroup],
    settings: GraphSettings,
    *,
    checkpoint: bytes | None,
    stage: Literal["read", "decode", "augment"] = "augment",
) -> Pipeline:
    """Build the training graph of one rank.

    It outputs, for each group, [B, V·size, size, 3] uint8 and the units of the views, float32
    [B, V, U] (see `Policy`); with `tuning.finish="dali"` finished views in `dtype` alone. Ids and
    labels follow, int64 [B, 1]. All are on `device`.

    Args:
        part: the samples of this rank (see `pipeline.part`).
        groups: the views of every sample.
        settings: how they are made.
        checkpoint: the state to continue from, by `Pipeline.checkpoint`; None is the beginning.
        stage: how far to go, for a profile: "read" outputs ids and labels alone, "decode" the
            decoded images too.
    """
    gpu, tuning = settings.gpu, settings.tuning
    seed, rank = settings.seed, settings.rank
    sizes = part.manifest.statistics
    images = 2 if part.manifest.partners else 1  # a sample
    # The decoder's cache, if it is used, may hold the whole part. Each image is counted as large as
    # the largest.
    cache_mib = 1 + images * len(part) * sizes.max_width * sizes.max_height * 3 // 2**20
    assert tuning.threads and tuning.prefetch and tuning.minibatch, "a filled Tuning"
    pipeline = Pipeline(
        batch_size=settings.batch_size,
        num_threads=tuning.threads,
        device_id=number_of(settings.device),
        seed=seed,
        prefetch_queue_depth=tuning.prefetch,
        enable_checkpointing=True,
        checkpoint=checkpoint,
    )
    with pipeline:
        stored, (id_B, label_B) = read(
            part,
            images=images,
            name="reader",
            random_shuffle=True,
            # A larger buffer would hold samples of the epochs after it.
            initial_fill=min(settings.shuffle_buffer, len(part)),
            seed=next_seed(np.random.SeedSequence((seed, rank, 0))),
            shuffle_after_epoch=True,  # the order of the tars, too
            shuffle_after_epoch_seed=seed % 2**31,
            pad_last_batch=True,  # `Loader` drops it
        )
        draws = [
            Draw(group.count, (seed, rank, 1 + g), size=group.size)
            for g, group in enumerate(groups)
        ]
        # A single image's crops are the first draws from its group's stream. Of two images, each
        # has a stream for its share of the group's views.
        by_image = [dict(enumerate(draws))]
        if images > 1:
            by_image = [
                {
                    g: Draw(views, (seed, rank, 1 + g, 1 + i), size=groups[g].size)
                    for g, views in share.items()
                }
                for i, share in enumerate(shares([group.count for group in groups], images))
            ]
        resamplings: list[Resampling] = [
            group.resampling_for(part, settings.device)[0] for group in groups
        ]
        sources = [
            _source(image, groups, crops, resamplings, gpu, tuning, cache_mib)
            for image, crops in zip(stored, by_image, strict=True)
            if crops and stage != "read"
        ]
        outputs: list[DataNode] = []
        if stage == "decode":
            outputs += [source.image for source in sources]
        elif stage == "augment":
            outputs += _views(sources, groups, draws, resamplings, settings)
        pipeline.set_outputs(*outputs, *((id_B.gpu(), label_B.gpu()) if gpu else (id_B, label_B)))
    return pipeline


@dataclass(frozen=True)
class _Source:
    """A decoded image, or the part of it that its crops need."""

    image: DataNode
    draws: dict[int, Draw]
    """The random numbers of its crops, {view group: draw}; a group may have no crop of it."""
    boxes: dict[int, Boxes]
    """Those crops that had to be drawn before they are cut, {view group: crops}."""

    def cut(self, group: int, crop: Crop, resampling: Resampling, minibatch: int) -> DataNode:
        """Return a view group's crops of this image; see `pipeline.augment.crop.cut`."""
        draw = self.draws[group]
        if group not in self.boxes:
            return crop.draw_and_cut(self.image, draw, minibatch=minibatch)
        boxes = self.boxes[group]
        return cut(self.image, boxes, draw, resampling=resampling, minibatch=minibatch)


def _source(
    stored: list[DataNode],
    groups: Sequence[ViewGroup],
    draws: dict[int, Draw],
    resamplings: Sequence[Resampling],
    gpu: bool,
    tuning: Tuning,
    cache_mib: int,
) -> _Source:
    """Decode an image, or what its crops need of it; `draws` is {view group: its draw}."""
    views = sum(draw.views for draw in draws.values())
    partly = not gpu and len(stored) == 1 and views <= FEW_VIEWS
    before = {g: draw for g, draw in draws.items() if partly or resamplings[g] != "resize"}
    boxes: dict[int, Boxes] = {}
    if before:
        shape = shape_of(stored)
        boxes = {g: groups[g].policy.crop.draw(shape, draw) for g, draw in before.items()}
        if partly:
            image, boxes = decode_surroundings(stored[0], shape, boxes, draws)
            return _Source(image, draws, boxes)
    return _Source(decode(stored, gpu, tuning, cache_mib=cache_mib), draws, boxes)


def _views(
    sources: Sequence[_Source],
    groups: Sequence[ViewGroup],
    draws: Sequence[Draw],
    resamplings: Sequence[Resampling],
    settings: GraphSettings,
) -> list[DataNode]:
    """Return the outputs of all view groups; see `views_pipeline`."""
    fused, minibatch = settings.tuning.finish == "fused", settings.tuning.minibatch
    assert minibatch is not None
    outputs: list[DataNode] = []
    in_turn = deque(sources)  # a group's first view is cut from the first of them
    for g, (group, draw) in enumerate(zip(groups, draws, strict=True)):
        cuts = [
            source.cut(g, group.policy.crop, resamplings[g], minibatch)
            for source in in_turn
            if g in source.draws
        ]
        views = alternate(cuts, views=group.count, size=group.size)
        views, units = group.policy.augment(views, draw, late=fused)
        # Frames become rows, at no cost.
        views = fn.reshape(views, shape=[group.count * group.size, group.size, 3], layout="HWC")
        if fused:
            outputs += [views, units.gpu() if settings.gpu else units]
        else:
            outputs.append(_normalise(views, settings.dtype, settings.normalisation))
        in_turn.rotate(-group.count)
    return outputs


def scaled_shorter(size: int) -> int:
    """Return the shorter side that an image is scaled to before its centre of `size` is cropped.

    From 128 pixels on it is 8/7 of it: 256 for 224, as is customary.
    """
    return size * 8 // 7 if size >= 128 else size


def images_pipeline(
    part: ShardSet,
    *,
    size: int,
    batch_size: int,
    device: torch.device,
    tuning: Tuning,
    dtype: torch.dtype,
    normalisation: Normalisation,
) -> Pipeline:
    """Build the evaluation graph: centre crops without augmentation, in the order of the shards.

    Images are scaled to a shorter side of `scaled_shorter(size)`, then cropped. It outputs
    [B, size, size, 3], ids and labels [B, 1] and, of a multi-label set, categories [B, K], uint8.
    The last batch is padded with its last sample. For the arguments see `GraphSettings` and
    `Images`.
    """
    gpu = device.type == "cuda"
    assert tuning.threads, "a filled Tuning"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=tuning.threads,
        device_id=number_of(device),
        seed=0,
        prefetch_queue_depth=2,
    )
    with pipeline:
        (stored,), numbers = read(part, categories=True, name="reader", pad_last_batch=True)
        image = fn.resize(
            decode(stored, gpu, tuning),
            resize_shorter=float(scaled_shorter(size)),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
            minibatch_size=256,
        )
        image = fn.crop(image, crop=(size, size))
        outputs = (_normalise(image, dtype, normalisation), *numbers)
        pipeline.set_outputs(*((o.gpu() for o in outputs) if gpu else outputs))
    return pipeline


def _normalise(images: DataNode, dtype: torch.dtype, normalisation: Normalisation) -> DataNode:
    dali_type = {torch.float16: types.FLOAT16, torch.float32: types.FLOAT}[dtype]
    return fn.crop_mirror_normalize(
        images,
        dtype=dali_type,
        output_layout="HWC",
        mean=list(normalisation.mean_255),
        std=list(normalisation.std_255),
    )
