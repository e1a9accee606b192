"""Training fed by the pipeline, beside the same step on a batch that lies on the GPU.

Goal: 0.97 of the cached step's speed everywhere, and of ViT-S/16 with two views 5,000 samples/s.
Beside it the same step fed as most code does: a DataLoader decodes and crops, kornia augments on
the GPU (what stable-pretraining published 870.9 samples/s for, ViT-S/16 on one H200).
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks import peers
from benchmarks.gpu import material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from pipeline.profile import synchronize
from training.command_line import UNUSED
from training.rounds import bench
from training.settings import parse
from training.throughput import RATE, Workload

Words = list[str]
BF16 = ["--mixed_precision", "bf16"]
VIT = "ViT-S/16, 2 × 224 px"


def cases(place: Sizes) -> dict[str, Words]:
    """Return train.py's words of each case."""
    raw = ["--shards", str(material.stl10(place, "raw"))]
    photos = ["--shards", str(material.photos(place))]
    if place.rehearsal:
        tiny = ["--views.count", "2", "--views.size", "32", "--batch_size", "8"]
        tiny += ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]
        return {"rehearsal": [*raw, *tiny]}
    resnet50 = ["--method.encoder", "ResNet", "--method.encoder.depth", "50"]
    vit = ["--method.encoder", "VisionTransformer", "--method.encoder.variant", "s_16"]
    large = ["--views.count", "2", "--views.size", "224", "--batch_size", "256"]
    crops = '[{"count": 6, "size": 96, "policy": {"class_path": "SimCLRViews"}}]'
    return {
        VIT: [*photos, *large, *vit, *BF16],
        "ResNet-50, 2 × 224 px": [*photos, *large, *resnet50, *BF16],
        "ResNet-18, 8 × 96 px": [
            *(*raw, "--views.count", "8", "--views.size", "96", "--batch_size", "512"),
            *("--method.encoder", "ResNet", "--method.encoder.depth", "18", *BF16),
        ],
        "ResNet-50, 2 × 224 + 6 × 96 px": [
            *photos,
            *large,
            "--more_views",
            crops,
            *resnet50,
            *BF16,
        ],
    }


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    found = [replace(material.make_photos(place), first=True), material.make_stl10(place, "raw")]
    seconds = place.of(50.0, 20.0)
    kornia = importlib.util.find_spec("kornia") is not None
    for name, words in cases(place).items():
        found.append(BoxedMeasurement(name, partial(fed, place, words), seconds, first=name == VIT))
        if name == VIT:
            compiled = [*words, "--compile", "true"]
            found.append(
                BoxedMeasurement(f"{name}, compiled", partial(fed, place, compiled), 100.0)
            )
        if kornia and (name == VIT or place.rehearsal):
            work = partial(fed_by_kornia, place, words)
            found.append(BoxedMeasurement(f"{name}, kornia", work, seconds))
    if not place.rehearsal:
        for name, words in cases(place).items():
            if str(material.photos(place)) in words:
                cached = [*words, "--tuning.decode", "cache"]
                found.append(
                    BoxedMeasurement(f"{name}, cached images", partial(fed, place, cached), 90.0)
                )
    return found


def words_of(words: Words) -> Words:
    """Return the words of a case, with those that all cases have."""
    return [
        *("--method", "JointEmbedding", "--method.objective", "SmoothAP"),
        *("--warmup_epochs", "0", "--tuned", "none", "--profile_seconds", "0", *words),
    ]


def fed(place: Sizes, words: Words) -> Row:
    """Return the figures of `python -m tools.bench feed`.

    Args:
        place: where and how large.
        words: train.py's, of the case.
    """
    settings = parse([*words_of(words), "--run", "unused", *UNUSED])
    seconds, rounds = place.of(3.0, 0.3), place.of(3, 1)
    found = bench(settings, "feed", seconds=seconds, rounds=rounds)
    kept = ("figures", "ratio", "batch_size", "views", "precision", "memory_gib", "tuning")
    return {name: found[name] for name in kept}


def fed_by_kornia(place: Sizes, words: Words) -> Row:
    """Return samples/s of the same step on views that a DataLoader and kornia make.

    Args:
        place: where and how large.
        words: train.py's, of the case.
    """
    config = parse([*words_of(words), "--run", "unused", *UNUSED]).config
    workload = Workload(config)
    (group,) = config.groups
    # Batches travel through shared memory: on a machine with little of it workers die.
    workers = 16 if shutil.disk_usage("/dev/shm").free > 4 << 30 else 4
    feed = peers.Feed(
        shards=config.shards,
        views=group.count,
        size=group.size,
        batch_size=config.batch_size,
        workers=place.of(workers, 1),
        device=place.device,
    )
    batches = peers.kornia(feed)
    dtype = torch.bfloat16 if workload.device.type == "cuda" else torch.float32

    def turn() -> None:
        views_VBCHW = torch.stack(list(next(batches))).to(dtype)
        workload.step((views_VBCHW,), learning_rate=RATE)

    for _ in range(place.of(2 * feed.workers, 1)):
        turn()
    synchronize(workload.device)
    begin, taken, seconds = time.perf_counter(), 0, place.of(12.0, 0.2)
    while taken < 1 or time.perf_counter() - begin < seconds:
        turn()
        taken += 1
    synchronize(workload.device)
    rate = taken * config.batch_size / (time.perf_counter() - begin)
    return {
        "batch_size": config.batch_size,
        "views": feed.views,
        "workers": feed.workers,
        "images_per_second": round(rate, 1),
    }
