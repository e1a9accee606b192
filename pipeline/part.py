"""What one rank reads of a shard set: its own tars, and of two of them a share.

DALI can divide a set among ranks itself, but then each of them holds what it knows of all samples:
475 bytes a sample, 380 GB on a machine with 8 ranks for 10^8 images, after 5 minutes of reading
indexes. So a rank's reader is given the rank's own tars alone, for the whole run. The page cache of
each machine then holds only what its own ranks read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from shards.layout import Shard, ShardSet
from shards.subset.masked import span


def part_size(samples: int, rank: int, world_size: int) -> int:
    """Return how many of a set's samples are one rank's; those of two ranks differ by one."""
    begin, end = _bounds(samples, rank, world_size)
    return end - begin


@contextmanager
def part_of(
    shard_set: ShardSet, rank: int, world_size: int, *, seed: int | None = None
) -> Iterator[ShardSet]:
    """Give the samples that are one rank's; the parts are disjoint and together complete.

    A tar that two ranks share has a temporary index meanwhile: build what reads it within.

    Args:
        shard_set: all samples.
        rank: whose part.
        world_size: number of parts.
        seed: deals the tars out in an order of its own, so that a set whose tars are sorted is
            not divided by what it is sorted by, and one of others' tars, which need not be shuffled
            as ours are, does not begin with it; None is the set's order.

    Raises:
        ValueError: an index is not what was written.
        OSError: it cannot be read.
    """
    if seed is not None and (world_size > 1 or shard_set.manifest.indexed):
        manifest = replace(shard_set.manifest, shards=_dealt(shard_set.manifest.shards, seed))
        shard_set = replace(shard_set, manifest=manifest)
    if world_size == 1:
        yield shard_set
        return
    with samples_between(shard_set, *_bounds(len(shard_set), rank, world_size)) as part:
        yield part


@contextmanager
def samples_between(shard_set: ShardSet, begin: int, end: int) -> Iterator[ShardSet]:
    """Give the samples from `begin` to `end`, in the order of the tars; see `part_of`."""
    with TemporaryDirectory(prefix="viewrank-") as folder:
        yield span(shard_set, begin, end, Path(folder))


def shards_of(shards: Sequence[Shard], rank: int, world_size: int, *, seed: int) -> list[Shard]:
    """Return the tars that begin in one rank's part (see `part_of`); each begins in one."""
    begin, end = _bounds(sum(shard.samples for shard in shards), rank, world_size)
    dealt = _dealt(shards, seed)
    starts = accumulate((shard.samples for shard in dealt), initial=0)
    return [shard for shard, start in zip(dealt, starts, strict=False) if begin <= start < end]


def _dealt(shards: Sequence[Shard], seed: int) -> list[Shard]:
    # RandomState, not default_rng: its stream is promised never to change (NEP 19).
    order = np.random.RandomState([seed % 2**32, seed >> 32]).permutation(len(shards))
    return [shards[i] for i in order]


def _bounds(samples: int, rank: int, world_size: int) -> tuple[int, int]:
    return samples * rank // world_size, samples * (rank + 1) // world_size
