"""Turns DALI's failures into errors that name the file and say what to do."""

from __future__ import annotations

import errno
import resource
import sys
import time
from collections.abc import Callable, Iterator

from shards.health.verification import explain_failure
from shards.layout import MANIFEST, ShardSet
from shards.outage import Unreachable
from shards.storage import is_remote


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
    shard_set: ShardSet, error: Exception, *, searching: Callable[[], object] = lambda: None
) -> Exception:
    """Turn DALI's failure to read or decode into an error that names the file and the remedy.

    DALI does not say which sample failed. If the place answers, all tars are compared with the
    manifest: the run has ended anyway. Other failures come back unchanged.
    """
    text = " ".join(str(error).split())
    if "Too many open files" in text:
        return ValueError(
            f"{shard_set.root} has {len(shard_set.tars):,} shards, more than can be open at once "
            "here: raise the limit (ulimit -n, or sysctl vm.max_map_count), or write larger shards "
            "(--samples_per_shard)."
        )
    operators = ("fn.decoders", "fn.readers", "peek_image_shape")
    if not isinstance(error, OSError) and not any(name in text for name in operators):
        return error
    gone = _absence(shard_set)
    if gone is not None or isinstance(error, OSError):  # else its message has all there is to say
        return gone or error
    sys.stderr.write(f"a sample of {shard_set.root} failed; looking for the damage …\n")
    found = explain_failure(shard_set, progress=searching)
    if found is None:  # its bytes are as written: DALI's own words are all that is known
        found = f"a sample of {shard_set.root} cannot be decoded ({text[-200:]})"
    remedy = (
        "Copy it again, or leave out what is damaged: python -m tools.verify "
        f"{shard_set.tar_folder} --repair true --deep true"
    )
    if shard_set.manifest.indexed:
        remedy = shard_set.remedy("")
    return Unreadable(f"{found}. {remedy}", root=shard_set.root)


def comes_back(
    shard_set: ShardSet,
    error: Exception,
    pauses: Iterator[float],
    *,
    waiting: Callable[[str], object] = lambda _: None,
) -> bool:
    """Wait for the place of a shard set, where DALI could not read; return whether to try again.

    A store may have lost one request only, so it is asked again in any case. On a disk nothing is
    asked again while the folder is there: then its files are the reason.

    Args:
        shard_set: that is read.
        error: DALI's, or that of reading an index.
        pauses: seconds before each look; what is left of `PAUSES`.
        waiting: told what is waited for.

    Raises:
        Unreachable: the pauses have been used up, and the place does not answer.
    """
    if "fn.readers" not in str(error) and not isinstance(error, OSError):
        return False
    waiting(shard_set.root)
    gone = _absence(shard_set)
    if gone is None and not is_remote(shard_set.root):
        return False
    for pause in pauses:
        why = gone or f"{shard_set.root} failed"
        sys.stderr.write(f"warning: {why}; it is read again in {pause:g} s\n")
        time.sleep(pause)
        gone = _absence(shard_set)
        if gone is None:
            return True
    if gone is not None:
        raise gone
    return False


def _absence(shard_set: ShardSet) -> Unreachable | None:
    """Return why a set that was open cannot be read any more, if its place is the reason."""
    try:
        for folder in dict.fromkeys((shard_set.folder, shard_set.tar_folder)):
            if not folder.exists():
                text = "is not there any more. Is its disk mounted?"
                return Unreachable(errno.ENOENT, text, folder.location)
        shard_set.folder.read(MANIFEST, 0, 1)
    except Unreachable as error:
        return error
    except OSError as error:
        text = f"cannot be read any more: {error.strerror or error}"
        return Unreachable(error.errno, text, shard_set.root)
    return None


def allow_open_files(shards: int) -> None:
    """Raise this process's limit on open files, as far as it may.

    DALI maps tars into memory; beyond half of the mappings that the kernel allows a process, it
    keeps each of them open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + 1024
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
