"""Turns DALI's failures into errors that name the file and say what to do."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

from shards.health.verification import explain_failure
from shards.layout import ShardSet


class Unreadable(ValueError):
    """A sample cannot be read or decoded; the text names it and says what to do.

    Args:
        text: for people.
        root: of the shard set that it is in.
    """

    def __init__(self, text: str, *, root: str) -> None:
        super().__init__(text)
        self.root = root


def unreadable(
    shard_set: ShardSet, error: RuntimeError, *, searching: Callable[[], object] = lambda: None
) -> Exception:
    """Turn DALI's failure to read or decode into an error that names the file and the remedy.

    DALI does not say which sample failed. The run has ended anyway, so all tars are compared with
    the manifest. Other failures come back unchanged.
    """
    text = " ".join(str(error).split())
    if "Too many open files" in text:
        return ValueError(
            f"{shard_set.root} has {len(shard_set.tars):,} shards, more than can be open at once "
            "here: raise the limit (ulimit -n, or sysctl vm.max_map_count), or write larger shards "
            "(--samples_per_shard)."
        )
    if "fn.decoders" not in text and "fn.readers" not in text and "peek_image_shape" not in text:
        return error
    searching()
    sys.stderr.write(f"a sample of {shard_set.root} failed; looking for the damage …\n")
    found = explain_failure(shard_set)
    if found is None:  # its bytes are as written: DALI's own words are all that is known
        found = f"a sample of {shard_set.root} cannot be decoded ({text[-200:]})"
    return Unreadable(
        f"{found}. Copy it again, or leave out what is damaged: python -m tools.verify "
        f"{shard_set.tar_folder} --repair true --deep true",
        root=shard_set.root,
    )


def allow_open_files(shards: int) -> None:
    """Raise this process's limit on open files, as far as it may.

    DALI maps tars into memory; beyond half of the mappings that the kernel allows a process, it
    keeps each of them open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + 1024
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
