"""Some samples of a shard set, for this process alone: the same tars, by indexes in a folder.

`shards.subset.selection` writes subsets that last and that everybody opens.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import durable
from shards.layout import ShardSet
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
    folder.mkdir(parents=True, exist_ok=True)
    shards, replaced, start = [], dict(shard_set.replaced), 0
    for shard in shard_set.manifest.shards:
        kept = kept_N[start : start + shard.samples]
        start += shard.samples
        if not kept.any():
            continue
        if not kept.all():
            lines = lines_of(shard_set, shard)
            path = folder / f"{shard.name}.idx"
            durable.replace(path, [index_text([lines[i] for i in np.flatnonzero(kept)])])
            replaced[shard.name] = str(path)
            shard = replace(shard, samples=int(kept.sum()))
        shards.append(shard)
    samples = sum(shard.samples for shard in shards)
    manifest = replace(shard_set.manifest, shards=shards, samples=samples)
    return replace(shard_set, manifest=manifest, replaced=replaced)
