"""Speed of the pipeline, of the training step and of both together: for `bench` and `tune`."""

from __future__ import annotations

import math
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.control_groups import cores
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.profile import synchronize
from pipeline.tuning import Tuning, float_type
from shards.layout import open_shards
from training.config import Config
from training.device_use import utilization
from training.processes import use_threads
from training.step import Step
from training.surroundings import surroundings

GIB = 2**30
PACKAGES = ("torch", "torchvision", "accelerate")
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # one of them is installed
LEAST = 2  # batches that are always timed
AHEAD = 8  # turns that the host may be ahead of the device
RATE = 0.0  # learning rate: the same work as with any other, but the weights do not change


@dataclass(frozen=True)
class Measurement:
    """How long some consecutive batches took."""

    batches: int
    seconds: float
    waited: float
    """Seconds of waiting for data; see `Loader.wait_seconds`."""
    host: float
    """Seconds that this process spent inside the loader."""
    utilization: float | None = None
    """Share of the last second in which the GPU computed; None if that is unknown."""

    @property
    def seconds_a_batch(self) -> float:
        """Mean duration of a batch."""
        return self.seconds / self.batches


class Workload:
    """A recipe on this machine, in one process; makes its loaders and its training step.

    Args:
        config: the recipe.

    Raises:
        ValueError: several processes were launched, or the shard set cannot be opened.
    """

    def __init__(self, config: Config) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but this tool measures one process; start "
                "it with python, without accelerate launch."
            )
        self.config = config
        self.shard_set = open_shards(config.shards)
        self.precision = config.precision()
        # As in train.py.
        self._accelerator = Accelerator(
            cpu=config.device == "cpu", mixed_precision=self.precision, dynamo_backend="no"
        )
        self.device: torch.device = self._accelerator.device
        if self.device.type == "cpu":
            use_threads()
        self.views = sum(group.count for group in config.groups)

    def loader(
        self,
        tuning: Tuning,
        *,
        groups: Sequence[ViewGroup] | None = None,
        shuffle_buffer: int | None = None,
    ) -> Loader:
        """Return a loader like that of training.

        Args:
            tuning: how it runs.
            groups: view groups instead of the recipe's.
            shuffle_buffer: its size instead of the recipe's.
        """
        config = self.config
        return Loader(
            self.shard_set,
            groups or config.groups,
            batch_size_per_rank=config.batch_size,
            device=self.device,
            seed=config.seed,
            dtype=float_type(self.device, config.autocast()),
            shuffle_buffer=shuffle_buffer or config.shuffle_buffer,
            tuning=tuning,
            normalisation=config.normalisation,
        )

    @cached_property
    def step(self) -> Step:
        """The training step, made at its first use."""
        return Step(self.config, self._accelerator)


def measure(
    turn: Callable[[], object],
    seconds: float,
    device: torch.device,
    *,
    loader: Loader | None = None,
) -> Measurement:
    """Time turns, after warming up; wait for the device only at the end.

    Args:
        turn: called for each batch: `pipeline_turn`, `step_turn` or `feed_turn`.
        seconds: how long, including warming up; at least two batches are timed.
        device: where the work is done.
        loader: the loader that the turns take batches from.
    """
    begin, warm = time.perf_counter(), 0
    behind: deque[torch.cuda.Event] = deque()

    def take() -> None:
        turn()
        if device.type == "cuda":  # a recorded step costs the host so little that it would run away
            behind.append(torch.cuda.Event())
            behind[-1].record()
            if len(behind) > AHEAD:
                behind.popleft().synchronize()

    # Batches that are in the queue already would seem to take no time.
    wanted = 1 + ((loader.tuning.prefetch or 0) if loader else 1)
    while warm == 0 or (warm < wanted and time.perf_counter() - begin < seconds / 2):
        take()
        warm += 1
    synchronize(device)

    waited, host = _clocks(loader)
    start, batches = time.perf_counter(), 0
    while batches < LEAST or time.perf_counter() - begin < seconds:
        take()
        batches += 1
    synchronize(device)
    elapsed = time.perf_counter() - start
    used = utilization(device).get("gpu_utilization")
    waited_now, host_now = _clocks(loader)
    return Measurement(batches, elapsed, waited_now - waited, host_now - host, used)


def pipeline_turn(loader: Loader) -> Callable[[], object]:
    """Return a function that takes a batch and drops it."""
    batches = loader.endless()
    return lambda: next(batches)


def step_turn(step: Step, views: tuple[Tensor, ...]) -> Callable[[], object]:
    """Return a function that trains on the same batch each time."""
    return lambda: step(views, learning_rate=RATE)


def feed_turn(loader: Loader, step: Step) -> Callable[[], object]:
    """Return a function that trains on the next batch."""
    batches = loader.endless()

    def turn() -> None:
        with record_function("loader"):
            batch = next(batches)
        with record_function("step"):
            step(batch.views, learning_rate=RATE)

    return turn


def cached(loader: Loader) -> tuple[Tensor, ...]:
    """Return copies of the next batch's views, on the device and in the same memory layout."""
    return tuple(views.clone() for views in next(loader.endless()).views)


def fill_cache(loader: Loader, seconds: float = math.inf) -> bool:
    """Read one epoch if decoded images are cached; return False if the time was too short."""
    if loader.tuning.decode != "cache" or loader.device.type != "cuda":
        return True
    deadline = time.perf_counter() + seconds
    for _ in loader:
        synchronize(loader.device)  # else the host would run ahead of the device
        if time.perf_counter() > deadline:
            return False
    return True


def settle(loader: Loader, last: Measurement) -> None:
    """Wait until the loader has filled its queue, so that the next measurement has all cores."""
    time.sleep(((loader.tuning.prefetch or 0) + 1) * last.seconds_a_batch)
    synchronize(loader.device)


def write_trace(
    turn: Callable[[], object], path: Path, device: torch.device, *, batches: int = 5
) -> None:
    """Write a trace of some turns, for https://ui.perfetto.dev or chrome://tracing.

    Args:
        turn: called for each batch; it has warmed up.
        path: JSON to write.
        device: where the work is done.
        batches: number of turns.
    """
    turn()
    synchronize(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:
        # The profiler reports a missing GPU as an error.
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with profile(activities=activities) as profiler:
        for _ in range(batches):
            turn()
        synchronize(device)
    profiler.export_chrome_trace(str(path))


def memory_gib(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process on the host, and the memory in use on the GPU.

    The latter is close to its peak: neither DALI nor PyTorch gives memory back by itself. It
    includes what other processes use of that GPU.
    """
    most = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        most["gpu"] = round((total - free) / GIB, 3)
    return most


def drift(times: Iterable[float]) -> float:
    """Return by what part the same work took longer at its slowest than at its fastest.

    No difference between two kinds of work is known that is not larger than this.

    Args:
        times: of the same work, in several rounds; of one round, nothing is known.
    """
    times = list(times)
    return max(times) / min(times) - 1 if len(times) > 1 else math.inf


def machine(device: torch.device) -> dict[str, Any]:
    """Return what measurements depend on: hardware, versions, commit."""
    found = surroundings(*PACKAGES, *DALI)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {**found, "cores": cores(), "gpu": gpu, "cuda": torch.version.cuda}


def _clocks(loader: Loader | None) -> tuple[float, float]:
    return (loader.wait_seconds(), loader.host_seconds()) if loader else (0.0, 0.0)
