"""Training fed by the pipeline, beside the same step on a batch that lies on the GPU.

Goal: 0.97 of the cached step's speed everywhere, and of ViT-S/16 with two views 5,000 samples/s.
The compiled one comes first, since no other can reach it (reckoned, not measured: eager steps allow
some 3,400, compiled ones 4,500 to 5,500). It is fed again with other loads of the decoding engine,
if that decodes at all, and fewer threads; and, with views that DALI finishes, from batches that are
copied at once, so that DALI has its memory back while the step runs. How long the host is inside
the loader, and whose memory is in use, stand beside all of them. `host_side` and `captured` have
the same cases without the step, and without the feed. Beside it the same step fed as most code
does: a DataLoader decodes and crops, kornia augments on the GPU (what stable-pretraining published
870.9 samples/s for, ViT-S/16 on one H200).
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from benchmarks import peers
from benchmarks.gpu import material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from benchmarks.gpu.jpeg_engine import is_idle
from pipeline.loader import Batch
from pipeline.profile import synchronize
from pipeline.tuning import Tuning, default_threads
from training.command_line import UNUSED
from training.rounds import bench
from training.settings import parse
from training.throughput import GIB, RATE, Workload, measure

Words = list[str]
BARE = ["--warmup_epochs", "0", "--tuned", "none", "--profile_seconds", "0"]
BF16 = ["--mixed_precision", "bf16"]
VIT = "ViT-S/16, 2 × 224 px"
COMPILED = ["--compile", "true"]
LOADS = (0.65, 0.8, 0.9)
"""Shares of the JPEGs that the decoding engine takes."""
THREADS = (4, 8, 16)
"""Of the pipeline; the default is all cores."""


def cases(place: Sizes) -> dict[str, Words]:
    """Return train.py's words of each case."""
    raw = ["--shards", str(material.stl10(place, "raw"))]
    photos = ["--shards", str(material.photos(place))]
    if place.rehearsal:
        tiny = ["--views.count", "2", "--views.size", "32", "--batch_size", "8"]
        tiny += ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]
        return {"rehearsal": [*raw, *tiny]}
    resnet50 = ["--method.encoder", "ResNet", "--method.encoder.depth", "50"]
    vit = ["--method.encoder", "Timm", "--method.encoder.name", "vit_small_patch16_224"]
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
    seconds, best = place.of(50.0, 20.0), place.of(VIT, "rehearsal")
    vit = cases(place)[best]
    compiled = [*vit, *place.of(COMPILED, [])]
    if not place.rehearsal:
        work = partial(fed, place, compiled)
        found.append(BoxedMeasurement(f"{VIT}, compiled", work, 100.0, first=True))
    found.append(BoxedMeasurement(best, partial(fed, place, vit), seconds))
    if importlib.util.find_spec("kornia") is not None:
        work = partial(fed_by_kornia, place, vit)
        found.append(BoxedMeasurement(f"{best}, kornia", work, seconds))
    for how, more in settings_to_try(place).items():
        work = partial(fed, place, [*compiled, *more])
        # The compiler finds it on the disk.
        found.append(BoxedMeasurement(f"{VIT}, compiled, {how}", work, 60.0))
    for copied in (False, True):
        name = f"finish dali, {'copied at once' if copied else 'held until the next'}"
        work = partial(fed_from_batches, place, compiled, copied=copied)
        found.append(BoxedMeasurement(name, work, place.of(35.0, 2.0)))
    for name, words in cases(place).items():
        if name != best:
            found.append(BoxedMeasurement(name, partial(fed, place, words), seconds))
    if not place.rehearsal:
        for name, words in cases(place).items():
            if str(material.photos(place)) in words:
                cached = [*words, "--tuning.decode", "cache"]
                found.append(
                    BoxedMeasurement(f"{name}, cached images", partial(fed, place, cached), 90.0)
                )
    return found


def settings_to_try(place: Sizes) -> dict[str, Words]:
    """Return what may keep a step from being fed, by name: all but the defaults."""
    if place.rehearsal:
        return {}
    found = {
        f"{load:g} of the decoding engine": ["--tuning.hw_decoder_load", str(load)]
        for load in loads(place)[1:]
    }
    for threads in THREADS:
        if threads != default_threads():
            found[f"{threads} threads"] = ["--tuning.threads", str(threads)]
    return found


def loads(place: Sizes) -> Sequence[float]:
    """Return the shares of the JPEGs to ask the decoding engine for, the default first.

    That one alone, if the engine was found to decode nothing: all others would be the same.
    """
    default = Tuning().filled(batch_size=1).hw_decoder_load
    assert default is not None, "a filled Tuning"
    others = () if is_idle(place.out) else LOADS
    return [default, *(load for load in others if load != default)]


def words_of(words: Words) -> Words:
    """Return the words of a case, with those that all cases have."""
    return [
        *("--method", "JointEmbedding", "--method.objective", "SmoothAP"),
        *(*BARE, *words),
    ]


def fed(place: Sizes, words: Words) -> Row:
    """Return the figures of `python -m tools.bench feed`.

    Args:
        place: where and how large.
        words: train.py's, of the case.
    """
    settings = parse([*words_of(words), "--run", "unused", *UNUSED])
    seconds, rounds = place.of(3.0, 0.3), place.of(3, 1)
    forget = partial(forget_trials, place.torch_device)
    found = bench(settings, "feed", seconds=seconds, rounds=rounds, say=forget)
    kept = ("figures", "ratio", "batch_size", "views", "precision", "memory_gib", "tuning")
    return {**{name: found[name] for name in kept}, **memory(place.torch_device)}


def fed_from_batches(place: Sizes, words: Words, *, copied: bool) -> Row:
    """Return how long the host is inside the loader, and the memory, by what becomes of a batch.

    DALI finishes the views: what the fused pass makes is PyTorch's memory, whatever becomes of it.

    Args:
        place: where and how large.
        words: train.py's, of the case.
        copied: into PyTorch's memory, and then let go, before the step begins; or held, as in
            train.py's loop, until the next one is there.
    """
    workload = Workload(parse([*words_of(words), "--run", "unused", *UNUSED]).config)
    with workload.loader(Tuning(finish="dali")) as loader:
        batches = loader.endless()
        batch: Batch | None = None

        def turn() -> None:
            nonlocal batch
            batch = next(batches)
            views: tuple[torch.Tensor, ...] = batch.views
            if copied:
                views, batch = tuple(each.clone() for each in views), None
            workload.step(views, learning_rate=RATE)

        device = workload.device
        measure(turn, place.of(2.0, 0.1), device, loader=loader)
        forget_peak(device)
        found = [
            measure(turn, place.of(3.0, 0.2), device, loader=loader) for _ in range(place.of(3, 1))
        ]
        batch = None
        return {
            "copied": copied,
            "ms_a_batch": median(1000 * each.seconds_a_batch for each in found),
            "host_ms_a_batch": median(1000 * each.host / each.batches for each in found),
            "data_wait": median(each.waited / each.seconds for each in found),
            **memory(device),
        }


def forget_trials(device: torch.device, number: int, _: str) -> None:
    """Let the peak of PyTorch's memory begin anew, for `bench` to call before a measurement.

    The round before the first tries kernels, whose workspaces no later step needs.

    Args:
        device: whose memory.
        number: of the round; those after the first leave the peak as it is.
    """
    if number <= 1:
        forget_peak(device)


def forget_peak(device: torch.device) -> None:
    """Let the peak of PyTorch's memory begin anew, with what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory(device: torch.device) -> Row:
    """Return GiB of the GPU: PyTorch's at most, and what others hold, DALI above all.

    PyTorch's is of the rounds that are measured: see `forget_trials`.
    The others' is what is in use but not PyTorch's: DALI, kernels, libraries and the CUDA context,
    of which an idle process has some 0.5.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "torch_peak_gib": round(torch.cuda.max_memory_allocated(device) / GIB, 2),
        "torch_reserved_gib": round(torch.cuda.max_memory_reserved(device) / GIB, 2),
        "others_gib": round((total - free - torch.cuda.memory_reserved(device)) / GIB, 2),
    }


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
