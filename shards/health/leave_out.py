"""Samples that training cannot read: name them, and leave them out of the index.

    tars, as they are ─▶ find_bad ─▶ {shard: {key: why}} ─▶ leave_out ─▶ a set without them,
                                                            with indexes in the run's folder

The shard set itself does not change: its disk may be read-only, and other runs may be reading it.
`shards.health.repair` repairs the set itself.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from shards.health.verification import CheckSeen
from shards.layout import ShardSet
from shards.shard_index import lines_of
from shards.subset.masked import masked
from shards.tar import key_of

Bad = Mapping[str, Mapping[str, str]]
"""{shard: {key: why}}."""


def find_bad(
    shard_set: ShardSet,
    *,
    known: Bad | None = None,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, str]]:
    """Return the samples that training cannot use, by shard and key, with the reason.

    Shards that differ from what was written are decoded; where that finds no sample, all are.

    Args:
        shard_set: the set.
        known: such samples that are known already; the others are searched for.
        progress: called before each sample, and each file that is read at once.

    Raises:
        Unreachable: the place of the set does not answer.
    """
    check, shards = CheckSeen(shard_set, progress), shard_set.manifest.shards
    changed = {shard.name for shard in shards if check(shard, deep=False)}
    known, found = known or {}, dict[str, dict[str, str]]()
    for of_changed in (True, False):
        for shard in (each for each in shards if (each.name in changed) == of_changed):
            for problem in check(shard, deep=True):
                if problem.key and problem.key not in known.get(shard.name, {}):
                    found.setdefault(shard.name, {})[problem.key] = problem.what
        if found:
            break
    return found


def leave_out(shard_set: ShardSet, bad: Bad, folder: Path) -> ShardSet:
    """Return a shard set without some of its samples.

    Args:
        shard_set: stays as it is.
        bad: the samples to leave out.
        folder: where new indexes of their shards are written; no other process may use it.

    Raises:
        ValueError: no sample would be left, or an index is not what was written.
    """
    kept_N, start = np.ones(len(shard_set), dtype=bool), 0
    for shard in shard_set.manifest.shards:
        if keys := bad.get(shard.name, {}):
            good = [key_of(line) not in keys for line in lines_of(shard_set, shard)]
            kept_N[start : start + shard.samples] = good
        start += shard.samples
    if not kept_N.any():
        raise ValueError(f"no sample of {shard_set.root} can be read; copy it again.")
    return masked(shard_set, kept_N, folder)
