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

from benchmarks.gpu import material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from benchmarks.gpu.jpeg_engine import decoding_engine_use, is_idle
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.tuning import Tuning, default_threads
from shards.layout import open_shards
from training.throughput import (
    Measurement,
    fill_cache,
    measure,
    memory_gib,
    pipeline_turn,
    settle,
)

REPEATS = 3
WARM = 1.0  # seconds before the first of them
BATCHES = 20
"""Batches over which kernel launches are counted."""
ASKED = ((8, 96), (2, 224), (32, 96), (2, 96), (8, 224), (32, 224))
"""Views of an image, and their size in pixels."""
VALUES = 1 << 29
"""In the views of a batch, at most: 1 GiB of bf16."""


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    photos, raw, jpeg, png = (
        material.make_photos(place),
        *(material.make_stl10(place, encoding) for encoding in ("raw", "jpeg:95", "png")),
    )
    of_photos = material.photos(place)
    of_raw, of_jpeg, of_png = (material.stl10(place, e) for e in ("raw", "jpeg:95", "png"))
    no_engine = Tuning(hw_decoder_load=0.0)
    sets: list[tuple[str, BoxedMeasurement, Path, Tuning]] = [
        ("photos, JPEG", photos, of_photos, Tuning()),
        ("96 px, raw", raw, of_raw, Tuning()),
        ("photos, cached", photos, of_photos, Tuning(decode="cache")),
        ("photos, no decoding engine", photos, of_photos, no_engine),
        ("96 px, JPEG", jpeg, of_jpeg, Tuning()),
        ("96 px, PNG", png, of_png, Tuning()),
        ("photos, decoded on the CPU", photos, of_photos, Tuning(decode="cpu")),
        ("96 px, JPEG, cached", jpeg, of_jpeg, Tuning(decode="cache")),
    ]
    found: dict[str, BoxedMeasurement] = {}
    for (V, size), (name, made, root, tuning) in product(place.of(ASKED, ((2, 32),)), sets):
        if place.rehearsal and tuning.decode == "cache":
            continue  # the cache is the GPU's
        if tuning == no_engine and is_idle(place.out):
            continue  # the default has none either
        found.setdefault(made.name, made)
        work = partial(throughput, place, root, tuning, V=V, size=size)
        seconds = place.of(13.0 + 10.0 * (tuning.decode == "cache"), 1.0)
        asked = f"{name}: {V} × {size} px"
        found[asked] = BoxedMeasurement(asked, work, seconds)
    return list(found.values())


def throughput(place: Sizes, root: Path, tuning: Tuning, *, V: int, size: int) -> Row:
    """Return views/s of a loader, and what a batch takes of the device.

    Args:
        place: where and how large.
        root: the shard set.
        tuning: how it is decoded.
        V: views of an image.
        size: of a view, in pixels.
    """
    device = place.torch_device
    shard_set = open_shards(str(root))
    fits = VALUES // (V * 3 * size * size)
    batch_size = place.of(max(16, min(512, 2 ** (fits.bit_length() - 1))), 8)
    loader = Loader(
        shard_set,
        [ViewGroup(policy=SimCLRViews(), count=V, size=size)],
        batch_size_per_rank=batch_size,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        shuffle_buffer=place.of(8192, 16),
        tuning=tuning,
    )
    with loader:
        runs, engine = alone(loader, seconds=place.of(2.0, 0.1), repeats=place.of(REPEATS, 1))
        ms = sorted(1000 * run.seconds_a_batch for run in runs)
        launches = count_launches(loader, runs[-1]) if device.type == "cuda" else None
    middle = ms[len(ms) // 2]
    return {
        "batch_size": batch_size,
        "views": V,
        "size": size,
        "threads": default_threads(),
        "repeats": len(runs),
        "ms_a_batch": round(middle, 3),
        "least": round(ms[0], 3),
        "most": round(ms[-1], 3),
        "images_per_second": round(1000 * batch_size / middle, 1),
        "views_per_second": round(1000 * batch_size * V / middle, 1),
        "kernel_launches_a_batch": launches,
        "decoding_engine_use": engine,
        "memory_gib": memory_gib(device),
    }


def alone(
    loader: Loader, *, seconds: float, repeats: int
) -> tuple[list[Measurement], float | None]:
    """Return measurements of a loader without a step, and the decoding engine's use during them.

    One more, which is short, is made before them and not counted: it builds the graph, fills the
    shuffle buffer and compiles, so that all it times are batches that lie ready by then.

    Args:
        loader: whose batches.
        seconds: of each measurement, warming up included.
        repeats: measurements.
    """
    fill_cache(loader)
    turn = pipeline_turn(loader)
    measure(turn, min(WARM, seconds), loader.device, loader=loader)
    runs = [measure(turn, seconds, loader.device, loader=loader) for _ in range(repeats)]
    # At once: the use is that of the last moments, and the loader rests when its queue is full.
    return runs, decoding_engine_use() if loader.device.type == "cuda" else None


def count_launches(loader: Loader, pace: Measurement) -> float:
    """Return the kernels that a batch launches on the GPU, DALI's own included.

    Args:
        loader: whose batches.
        pace: how long they take: the queue of batches is to be full at both ends.
    """
    batches = loader.endless()
    next(batches)
    settle(loader, pace)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(BATCHES):
            next(batches)
        settle(loader, pace)
    on_device = [event for event in profiler.events() or () if "CUDA" in str(event.device_type)]
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    return len(kernels) / BATCHES
