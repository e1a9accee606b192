"""Samples that a run goes on without, with `--max_bad_samples`.

    RUN/quarantine.json      {shard: {key: why}}: which, the same for all ranks
    RUN/quarantine/rank-0/   indexes without them

A rank that meets such a sample writes it down and ends; started again, by itself, by the launcher
or by a person, all ranks leave it out and go on from the last checkpoint; the epoch begins again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from shards import durable
from shards.health.leave_out import find_bad, leave_out
from shards.layout import ShardSet

NAME = "quarantine.json"


def read(run: Path) -> dict[str, dict[str, str]]:
    """Return {shard: {key: why}} of the samples that the run leaves out.

    Raises:
        ValueError: the file is damaged.
    """
    path = run / NAME
    try:
        found = json.loads(durable.read(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not what was written ({error}); remove it.") from None
    if not isinstance(found, dict) or not all(isinstance(keys, dict) for keys in found.values()):
        raise ValueError(f"{path} is not what was written; remove it.")
    return found


def without(run: Path, shard_set: ShardSet, *, rank: int) -> tuple[ShardSet, int]:
    """Return a shard set without what is in quarantine, and how many samples that are."""
    bad = read(run)
    if not bad:
        return shard_set, 0
    left = leave_out(shard_set, bad, run / "quarantine" / f"rank-{rank}")
    return left, len(shard_set) - len(left)


def extend(
    run: Path, shard_set: ShardSet, *, limit: int, progress: Callable[[], object] = lambda: None
) -> list[str]:
    """Look for samples that cannot be read, and put them in quarantine if that is allowed.

    Args:
        run: the run's folder.
        shard_set: that training has stopped at.
        limit: how many samples of it may be in quarantine, the present ones included.
        progress: called as the search gets on.

    Returns:
        The samples found, for people; an empty list if they are too many, or none was found that
        is not in quarantine.
    """
    bad = read(run)
    new = find_bad(shard_set, known=bad, progress=progress)
    if not new or sum(map(len, (*bad.values(), *new.values()))) > limit:
        return []
    for shard, keys in new.items():
        bad.setdefault(shard, {}).update(keys)
    durable.replace_json(run / NAME, bad)
    return [
        f"{shard}.tar, sample {key} {why}"
        for shard, keys in new.items()
        for key, why in keys.items()
    ]
