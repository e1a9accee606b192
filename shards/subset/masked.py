"""Some samples of a shard set, for this process alone: the same tars, by indexes in a folder.

`shards.subset.selection` writes subsets that last and that everybody opens.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import durable
from shards.layout import Shard, ShardSet, open_shards
from shards.shard_index import lines_of
from shards.tar import index_text


def masked(shard_set: ShardSet, kept_N: NDArray[np.bool_], folder: Path) -> ShardSet:
    """Return a shard set of some samples of another.

    Tables are not written: who asks for rows asks the whole set.

    Args:
        shard_set: stays as it is.
        kept_N: whether a sample stays, in the order of the tars; one or more does.
        folder: where indexes of the shards are written that lose samples; no other process may use
            it.

    Raises:
        ValueError: an index is not what was written.
    """
    assert kept_N.shape == (len(shard_set),) and kept_N.any()
    chosen, start = [], 0
    for shard in shard_set.manifest.shards:
        chosen.append(np.flatnonzero(kept_N[start : start + shard.samples]))
        start += shard.samples
    return _of(shard_set, chosen, folder)


def whole_of(shard_set: ShardSet) -> ShardSet:
    """Return the set that a process has left samples out of, with all of them."""
    return open_shards(shard_set.root) if shard_set.replaced else shard_set


def span(shard_set: ShardSet, begin: int, end: int, folder: Path) -> ShardSet:
    """Return the samples from `begin` to `end` of a shard set, in the order of its tars.

    Only the indexes of the first and last of their tars are read, whatever the set's size.

    Args:
        shard_set: stays as it is.
        begin: the first sample.
        end: the one after the last; one or more lie between.
        folder: see `masked`.

    Raises:
        ValueError: an index is not what was written.
        OSError: it cannot be read.
    """
    assert 0 <= begin < end <= len(shard_set)
    chosen, start = [], 0
    for shard in shard_set.manifest.shards:
        bounds = (min(max(place - start, 0), shard.samples) for place in (begin, end))
        chosen.append(range(*bounds))
        start += shard.samples
    return _of(shard_set, chosen, folder)


def _of(shard_set: ShardSet, chosen: Sequence[Sequence[int]], folder: Path) -> ShardSet:
    """Return the chosen samples of each shard."""
    shards: list[Shard] = []
    replaced = dict(shard_set.replaced)
    for shard, of_shard in zip(shard_set.manifest.shards, chosen, strict=True):
        if len(of_shard) == 0:
            continue
        if len(of_shard) < shard.samples:
            lines = lines_of(shard_set, shard)
            path = folder / f"{shard.name}.idx"
            folder.mkdir(parents=True, exist_ok=True)
            durable.replace(path, [index_text([lines[i] for i in of_shard])])
            replaced[shard.name] = str(path)
            shard = replace(shard, samples=len(of_shard))
        shards.append(shard)
    samples = sum(shard.samples for shard in shards)
    manifest = replace(shard_set.manifest, shards=shards, samples=samples)
    return replace(shard_set, manifest=manifest, replaced=replaced)
