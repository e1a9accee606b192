"""A training step as one CUDA graph: whether it is the eager step, and what it takes.

The same batches, by the step as it is written, by it once more, and by the recorded one
(`training.step_capture`), from the same weights: what two eager runs differ by is what kernels
differ by from time to time. Then the step alone, on a batch that lies on the GPU, by how it is run:
as it is written; its encoder compiled, in the compiler's modes; recorded; and both. Launches are
what a graph saves, so what it gains is the host's time: most of a small encoder at small views,
little of a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

import torch

from benchmarks.gpu import material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from benchmarks.gpu.feeding import (
    BARE,
    BF16,
    COMPILED,
    VIT,
    Words,
    cases,
    forget_trials,
    memory,
    words_of,
)
from training.command_line import UNUSED
from training.rounds import bench
from training.settings import parse
from training.step_capture import WARM
from training.throughput import Workload

RECORDED = ["--capture_step", "true"]
METHODS = {
    "JointEmbedding": "adamw",
    "BYOL": "lars",
    "MoCo": "sgd",
    "SwAV": "lars",
    "SimSiam": "sgd",
    "DINO": "adamw",
}
"""Each with an optimizer; all three have a turn."""
WAYS = {
    "as written": [],
    "recorded": RECORDED,
    "compiled": COMPILED,
    "compiled, recorded": [*COMPILED, *RECORDED],
    "reduce-overhead": [*COMPILED, "--compile_mode", "reduce-overhead"],
    "max-autotune": [*COMPILED, "--compile_mode", "max-autotune"],
    "max-autotune, recorded": [*COMPILED, "--compile_mode", "max-autotune", *RECORDED],
}
TAKES = {"as written": 25.0, "recorded": 25.0}
COMPILES, TUNES = 90.0, 240.0  # seconds of the other ways


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    found = [material.make_cifar10(place), material.make_photos(place)]
    for method, optimizer in METHODS.items():
        work = partial(equality, place, method, optimizer)
        name = f"recorded {method}, {optimizer}"
        found.append(BoxedMeasurement(name, work, place.of(20.0, 2.0)))
    crops = '[{"count": 6, "size": 20, "policy": {"class_path": "SimCLRViews"}}]'
    small = [
        *_small(place, "JointEmbedding", "adamw"),
        *("--more_views", crops),
        *place.of(BF16, []),
    ]
    for case, words in {"2 × 32 + 6 × 20 px": small, **cases(place)}.items():
        if case not in ("2 × 32 + 6 × 20 px", "rehearsal", VIT):
            continue
        for way, more in place.of(WAYS, {"recorded": RECORDED}).items():
            work = partial(alone, place, [*words, *more])
            takes = TAKES.get(way, TUNES if way.startswith("max") else COMPILES)
            seconds = place.of(takes, 2.0)
            found.append(BoxedMeasurement(f"{case}, {way}", work, seconds))
    return found


def equality(place: Sizes, method: str, optimizer: str) -> Row:
    """Return how far recorded steps are from eager ones, and eager ones from themselves.

    Args:
        place: where and how large.
        method: see `Config`.
        optimizer: see `Config`.
    """
    words = [*_small(place, method, optimizer), *place.of(BF16, [])]
    steps = place.of(40, WARM + 2)
    losses: list[list[float]] = []
    weights: list[torch.Tensor] = []
    for more in ([], [], RECORDED):
        config = parse([*BARE, *words, *more, "--run", "unused", *UNUSED]).config
        workload = Workload(config)
        torch.manual_seed(0)
        with workload.loader(config.tuning) as loader:
            found = [
                # A copy: a recorded step overwrites what it returned last.
                workload.step(
                    batch.views, id_B=batch.id_B, learning_rate=0.01, progress=(number + 1) / steps
                ).loss.clone()
                for number, batch in enumerate(islice(loader.endless(), steps))
            ]
        losses.append(torch.stack(found).tolist())
        weights.append(torch.cat([p.detach().flatten() for p in workload.step.parameters]))
    return {
        "steps": steps,
        "losses": losses[-1],
        "recorded_differs_by": (weights[2] - weights[0]).abs().max().item(),
        "repeated_differs_by": (weights[1] - weights[0]).abs().max().item(),
        "losses_differ_by": max(abs(a - b) for a, b in zip(losses[2], losses[0], strict=True)),
        "repeated_losses_differ_by": max(
            abs(a - b) for a, b in zip(losses[1], losses[0], strict=True)
        ),
    }


def alone(place: Sizes, words: Words) -> Row:
    """Return the figures of a step on one batch that lies on the device.

    Args:
        place: where and how large.
        words: train.py's.
    """
    settings = parse([*words_of(words), "--run", "unused", *UNUSED])
    seconds, rounds = place.of(3.0, 0.3), place.of(3, 1)
    forget = partial(forget_trials, place.torch_device)
    found = bench(settings, "step", seconds=seconds, rounds=rounds, say=forget)
    return {
        **found["figures"]["step"],
        "batch_size": found["batch_size"],
        **memory(place.torch_device),
    }


def _small(place: Sizes, method: str, optimizer: str) -> Words:
    """Return words of a small encoder, which launches keep waiting, on CIFAR-10."""
    encoder = place.of(["ResNet", "--method.encoder.stem", "small"], ["SmallResNet"])
    queue = {"MoCo": ["--method.queue_size", str(place.of(4096, 32))]}
    return [
        *("--shards", str(material.cifar10(place, "train"))),
        *("--views.count", "2", "--views.size", "32", "--optimizer", optimizer),
        *("--batch_size", str(place.of(256, 8)), "--shuffle_buffer", str(place.of(8192, 16))),
        *("--method", method, "--method.encoder", *encoder, *queue.get(method, [])),
        *place.of([], ["--method.encoder.width", "4", "--method.hidden_size", "32"]),
    ]
