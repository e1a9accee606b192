"""The loader alone: views a second by encoding, number of views and their size.

Every batch is made and dropped. Kernel launches are counted by the profiler over a few batches;
device memory is what the whole process holds, next to its most, since DALI gives nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.augment import SimCLR
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.profile import synchronize
from pipeline.tuning import Tuning, default_threads
from shards.layout import open_shards
from tools.measure import endless, fill_cache, measure, memory_gib, pipeline_turn

from . import material
from .box import Measurement, Place, Row

REPEATS = 3
BATCHES = 5
"""Batches over which kernel launches are counted."""
VIEWS, SIZES = (2, 8, 32), (96, 224)
# The largest batch whose views are some 400 million values: 0.8 GB of bf16.
VALUES = 1 << 27


def measurements(place: Place) -> Sequence[Measurement]:
    """Return all of them, the most telling first."""
    yard = [material.make_photos(place)]
    yard += [material.make_stl10(place, encoding) for encoding in ("raw", "jpeg:95", "png")]
    photos = material.photos(place)
    sets = {
        "photos, JPEG": (photos, Tuning()),
        "96 px, raw": (material.stl10(place, "raw"), Tuning()),
        "96 px, JPEG": (material.stl10(place, "jpeg:95"), Tuning()),
        "96 px, PNG": (material.stl10(place, "png"), Tuning()),
        "photos, cached": (photos, Tuning(decode="cache")),
        "96 px, JPEG, cached": (material.stl10(place, "jpeg:95"), Tuning(decode="cache")),
        "photos, no decoding engine": (photos, Tuning(hw_decoder_load=0.0)),
        "photos, decoded on the CPU": (photos, Tuning(decode="cpu")),
    }
    views, sizes = place.of(VIEWS, (2,)), place.of(SIZES, (32,))
    found = []
    for (name, (root, tuning)), V, size in product(sets.items(), views, sizes):
        if place.rehearsal and tuning.decode == "cache":
            continue  # the cache is the GPU's
        work = partial(throughput, place, root, tuning, V=V, size=size)
        seconds = place.of(12.0 + 10.0 * (tuning.decode == "cache"), 1.0)
        found.append(Measurement(f"{name}: {V} × {size} px", work, seconds))
    return [*yard, *found]


def throughput(place: Place, root: Path, tuning: Tuning, *, V: int, size: int) -> Row:
    """Return views/s of a loader, and what a batch takes of the device.

    Args:
        place: where and how large.
        root: the shard set.
        tuning: how it is decoded.
        V: views of an image.
        size: of a view, in pixels.
    """
    device = torch.device(place.device, 0) if place.device == "cuda" else torch.device("cpu")
    shard_set = open_shards(str(root))
    fits = VALUES // (V * 3 * size * size)
    batch_size = place.of(max(16, min(512, 2 ** (fits.bit_length() - 1))), 8)
    loader = Loader(
        shard_set,
        [ViewGroup(policy=SimCLR(), count=V, size=size)],
        batch_size_per_rank=batch_size,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        shuffle_buffer=place.of(8192, 16),
        tuning=tuning,
    )
    with loader:
        fill_cache(loader)
        turn = pipeline_turn(loader)
        seconds = place.of(2.0, 0.1)
        runs = [measure(turn, seconds, device, loader=loader) for _ in range(place.of(REPEATS, 1))]
        ms = sorted(1000 * run.seconds_a_batch for run in runs)
        launches = count_launches(loader) if device.type == "cuda" else None
    middle = ms[len(ms) // 2]
    return {
        "batch_size": batch_size,
        "views": V,
        "size": size,
        "threads": default_threads(),
        "ms_a_batch": round(middle, 3),
        "least": round(ms[0], 3),
        "most": round(ms[-1], 3),
        "images_per_second": round(1000 * batch_size / middle, 1),
        "views_per_second": round(1000 * batch_size * V / middle, 1),
        "kernel_launches_a_batch": launches,
        "memory_gib": memory_gib(device),
    }


def count_launches(loader: Loader) -> float:
    """Return the kernels that a batch launches on the GPU, DALI's own included."""
    batches = endless(loader)
    next(batches)
    synchronize(loader.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(BATCHES):
            next(batches)
        synchronize(loader.device)
    on_device = [event for event in profiler.events() or () if "CUDA" in str(event.device_type)]
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    return len(kernels) / BATCHES
