"""Measures the cost of a batch, stage by stage, shortly before training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.dali import Pipeline
from pipeline.loader import Loader, current_stream
from pipeline.unreadable import unreadable


@dataclass(frozen=True)
class Profile:
    """Seconds a batch, with the pipeline alone on its threads at full speed."""

    read: float
    decode: float
    augment: float
    """Crops, blur, and with `Tuning.finish="dali"` colours and normalisation."""
    finish: float
    """Colours, solarisation and normalisation on the training stream."""

    @property
    def seconds(self) -> float:
        """Of all stages: the shortest step that this pipeline can feed."""
        return self.read + self.decode + self.augment + self.finish

    @property
    def largest(self) -> str:
        """The stage that takes the most time."""
        return max(("read", "decode", "augment", "finish"), key=lambda name: getattr(self, name))

    def __str__(self) -> str:
        stages = ("read", "decode", "augment", "finish")
        parts = " + ".join(f"{name} {milliseconds(getattr(self, name) * 1000)}" for name in stages)
        return f"{parts} = {milliseconds(self.seconds * 1000)} ms a batch"


def milliseconds(ms: float) -> str:
    """Return milliseconds as text, with three digits or more, and never as a power of ten."""
    return f"{ms:,.0f}" if ms >= 99.95 else f"{ms:.3g}" if ms >= 0.001 else f"{ms:.3f}"


def profile(loader: Loader, *, seconds: float = 1.5) -> Profile:
    """Measure the stages of a loader's pipeline, each in a separate pipeline.

    The loader itself does not change.

    Args:
        loader: whose settings are measured.
        seconds: how long to measure, besides warming up; long batches take longer.

    Raises:
        ValueError: a sample cannot be read or decoded.
    """
    try:
        return _profile(loader, seconds)
    except RuntimeError as error:
        raise unreadable(loader.shard_set, error, searching=loader.searching) from error


def profile_that_lasts(loader: Loader, *, seconds: float) -> Profile | None:
    """Return `profile`; None without seconds, or with a cache of decoded images.

    That is filled in the first epoch, which is like no other.
    """
    return profile(loader, seconds=seconds) if seconds and loader.tuning.decode != "cache" else None


def _profile(loader: Loader, seconds: float) -> Profile:
    device, timed, outputs = loader.device, {}, []
    for stage in ("read", "decode", "augment"):
        pipeline = loader.stage(stage)
        pipeline.schedule_run()

        def take(pipeline: Pipeline = pipeline) -> list[Any]:
            outputs = pipeline.share_outputs(current_stream(device))
            pipeline.release_outputs()
            pipeline.schedule_run()
            return outputs

        for _ in range(1 + (loader.tuning.prefetch or 0)):
            outputs = take()  # memory is allocated, the queue is full
        per_batch = loader.batch_size_per_rank / len(outputs[-1])
        timed[stage] = per_batch * _time(take, seconds / 4, device)
    tensors = tuple(torch.from_dlpack(output.as_tensor()) for output in outputs)
    loader.finished(tensors)
    finish = per_batch * _time(lambda: loader.finished(tensors), seconds / 4, device)
    return Profile(
        read=timed["read"],
        decode=max(0.0, timed["decode"] - timed["read"]),
        augment=max(0.0, timed["augment"] - timed["decode"]),
        finish=finish,
    )


def _time(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return the seconds a call, over two calls or more."""
    synchronize(device)
    begin, calls = time.perf_counter(), 0
    while calls < 2 or (time.perf_counter() - begin < seconds and calls < 50):
        call()
        calls += 1
    synchronize(device)
    return (time.perf_counter() - begin) / calls


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
