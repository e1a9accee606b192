"""Reads the components of samples from their tars and decodes images, whole or in part."""

from __future__ import annotations

import re
from functools import reduce
from typing import Any

import numpy as np

from pipeline.augment.augment import Draw
from pipeline.augment.crop import Boxes
from pipeline.dali import DataNode, fn, math, types
from pipeline.tuning import Tuning
from shards.layout import CATEGORIES, PARTNER, ShardSet
from shards.named_numbers import DIGITS
from shards.shard_index import check_indexes

_STORES = ("", "file", "s3")


def read(
    shard_set: ShardSet, *, images: int = 1, categories: bool = False, **settings: Any
) -> tuple[list[list[DataNode]], list[DataNode]]:
    """Return the stored components of each image (see `decode`), and id and label, on the CPU.

    In a pair set the second image is the partner; with `images=1` it is not read. With `categories`
    those of a multi-label set follow the label.

    Raises:
        ValueError: DALI cannot open the path or does not read the set's store, or an index is not
            what was written, or does not fit its tar.
    """
    if not _is_utf_8(shard_set.root):
        raise ValueError(
            f"{shard_set.root!r} is not UTF-8, and DALI opens no such path. Rename the folder, or "
            "give a link to it whose path is."
        )
    store, _, _ = shard_set.root.rpartition("://")
    if store not in _STORES:
        raise ValueError(
            f"{shard_set.root} is in a store that DALI does not read; expected a local folder or "
            "s3://. Copy the shard set to one of them."
        )
    check_indexes(shard_set)  # a wrong number in one would end the process
    raw = shard_set.manifest.raw
    image = ["rgb", "shape.i64"] if raw else [";".join(shard_set.manifest.extensions)]
    each, types_of_each = len(image), [types.UINT8, *[types.INT64] * (len(image) - 1)]
    if images > 1:  # a subset's partners may have extensions that its images do not have
        partner = image if raw else ["jpg;png"]
        image += [re.sub(r"(^|;)", rf"\1{PARTNER}", extensions) for extensions in partner]
    numbers = [] if shard_set.manifest.indexed else ["id.i64", "y.i64"]
    labels = [CATEGORIES] if categories and shard_set.manifest.categories else []
    outputs = fn.readers.webdataset(
        # By default DALI takes 1 MiB for each component of each sample in the shuffle buffer, 24
        # GiB for 8,192 samples of 3, and frees it once they are mapped. A limit on address space
        # refuses that; without one, tensors spread over it and memory in use grows for hours.
        tensor_init_bytes=1,
        paths=shard_set.tars,
        index_paths=shard_set.indexes,
        ext=[*image, *numbers, *labels],
        dtypes=[
            *types_of_each * images,
            *[types.INT64] * len(numbers),
            *[types.UINT8] * len(labels),
        ],
        missing_component_behavior="error",
        **settings,
    )
    if shard_set.manifest.indexed:
        return [[outputs]], [*_numbers_of(outputs)]
    parts = [[*outputs[i * each : (i + 1) * each]] for i in range(images)]
    return parts, [*outputs[images * each :]]


def _numbers_of(image: DataNode) -> tuple[DataNode, DataNode]:
    """Return the id and the label that an image's name in the index ends with.

    DALI has no numbers from text: each digit is multiplied by its power of ten. A power is two
    factors, as DALI takes no constants of more than 32 bits.
    """
    name = fn.get_property(image, key="source_info")  # tar:offset:name
    digits = fn.reshape(name[-2 * DIGITS :], shape=[2, DIGITS])
    zeros, places = np.full((2, DIGITS), ord("0")), np.tile(np.arange(DIGITS)[::-1], (2, 1))
    zeros[1, -1] += 1  # labels have 1 added
    lower, upper = (
        types.Constant(10**exponents, dtype=types.INT64)
        for exponents in (np.minimum(places, 9), np.maximum(places - 9, 0))
    )
    terms = (digits - types.Constant(zeros, dtype=types.INT32)) * lower * upper
    number_2 = fn.reductions.sum(terms, axes=[1])
    return number_2[0:1], number_2[1:2]


def _is_utf_8(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


def shape_of(stored: list[DataNode]) -> DataNode:
    """Return height and width of an image, int64 [2], on the CPU, before it is decoded."""
    return (stored[1] if len(stored) == 2 else fn.peek_image_shape(stored[0]))[:2]


def decode(stored: list[DataNode], gpu: bool, tuning: Tuning, *, cache_mib: int = 0) -> DataNode:
    """Return the image, uint8 [H, W, 3], on the device; `stored` is from `read`."""
    if len(stored) == 2:  # bare pixels, and their shape
        pixels, shape = stored
        image = fn.reshape(pixels, shape=shape, layout="HWC")
        return image.gpu() if gpu else image
    if not gpu or tuning.decode == "cpu":
        image = fn.decoders.image(stored[0], device="cpu", output_type=types.RGB)
        return image.gpu() if gpu else image
    cache: dict[str, Any] = {}
    if tuning.decode == "cache":
        cache = {"cache_size": cache_mib, "cache_type": "threshold", "cache_threshold": 0}
    return fn.decoders.image(
        stored[0],
        device="mixed",
        output_type=types.RGB,
        hw_decoder_load=tuning.hw_decoder_load,
        # As the CPU's decoder always does; without it GPU and CPU pixels differ.
        jpeg_fancy_upsampling=True,
        **cache,
    )


def decode_surroundings(
    encoded: DataNode, shape: DataNode, boxes: dict[int, Boxes], draws: dict[int, Draw]
) -> tuple[DataNode, dict[int, Boxes]]:
    """Return the smallest part of an image that all crops need, and the crops' boxes in it.

    Both `boxes` and `draws` are by view group.

    It is bit for bit the part of the whole image. It includes the pixels beyond a crop's edges that
    the filter for scaling down reads: only the rounding of coordinates changes the crops.
    """
    firsts, lasts = [], []
    for group, box in boxes.items():
        reach_V2 = 1 + box.size / float(draws[group].size)
        firsts.append(fn.reductions.min(box.begin - reach_V2, axes=[0]))
        lasts.append(fn.reductions.max(box.begin + box.size + reach_V2, axes=[0]))
    first_2 = math.max(math.floor(reduce(math.min, firsts)), 0.0)
    last_2 = math.min(math.ceil(reduce(math.max, lasts)), shape)
    image = fn.decoders.image_slice(
        encoded,
        first_2,
        last_2 - first_2,
        axis_names="HW",
        normalized_anchor=False,
        normalized_shape=False,
        device="cpu",
        output_type=types.RGB,
    )
    return image, {
        group: Boxes(box.begin - first_2, fn.cast(box.size, dtype=types.FLOAT))
        for group, box in boxes.items()
    }
