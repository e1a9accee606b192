"""Shard sets that several parts are tested with; and cores of its own for each test process."""

import os
import signal
from collections.abc import Callable

# A shell that runs the suite in the background lets it, and all that it starts, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported, which counts them: threads of two test processes, and of the programs
# that they start, on the same cores wait for each other many times longer than they work.
if worker := os.environ.get("PYTEST_XDIST_WORKER", "")[2:]:
    cores = sorted(os.sched_getaffinity(0))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker) :: workers] or cores)

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from shards.layout import ShardSet
from shards.source.source import Sample, Source
from shards.writing.prepare import Preparation
from shards.writing.write import write

MakeShardSet = Callable[..., ShardSet]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; PyTorch finds none"))


class Pictures(Source):
    """Smooth random pictures, lossless; sample i has id i and label i mod 10."""

    name = "pictures"
    split = "all"

    def __init__(self, samples: int, *, height: int = 32, width: int = 32) -> None:
        self.samples, self.height, self.width = samples, height, width
        self.classes = [f"class {label}" for label in range(10)]

    def __len__(self) -> int:
        return self.samples

    def pixels(self, index: int) -> NDArray[np.uint8]:
        coarse = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        size = (self.width, self.height)
        return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            key=f"{index:06d}",
            image=self.pixels(index),
            label=index % 10,
            id=index,
            metadata={},
        )


@pytest.fixture(scope="session")
def make_shard_set(tmp_path_factory: pytest.TempPathFactory) -> MakeShardSet:
    """A function that writes a set of `Pictures` once a session, and returns it."""
    made: dict[tuple[int, int, int, int, str], ShardSet] = {}

    def make(
        samples: int,
        *,
        samples_per_shard: int = 8,
        height: int = 32,
        width: int = 32,
        encoding: str = "png",
    ) -> ShardSet:
        what = (samples, samples_per_shard, height, width, encoding)
        if what not in made:
            out = tmp_path_factory.mktemp("pictures") / "shards"
            source = Pictures(samples, height=height, width=width)
            made[what] = write(
                source,
                out,
                samples_per_shard=samples_per_shard,
                preparation=Preparation(encoding=encoding),
            )
        return made[what]

    return make
