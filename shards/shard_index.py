"""A shard's index as it may be handed to DALI, which believes every number in it.

A wrong offset or size makes DALI read memory that is not the tar's: it ends the process, or worse.
So an index is compared with its hash in the manifest, and its numbers with the size of its tar: the
hash finds damage, and the numbers a manifest that was sealed anew.
"""

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import durable
from shards.as_written import checked, read_as_written
from shards.layout import CATEGORIES, INDEX_VERSION, Shard, ShardSet
from shards.named_numbers import DIGITS
from shards.tar import index_lines

_BLOCK = 512  # bytes; a file in a tar begins at a multiple of it
_THREADS = 16  # in a store, each index is a request
# Extension, offset, size and name. Fifteen digits: the sum of two such numbers fits 64 bits. What
# is no single number, no three, or no byte for each category, does not fit the others of a batch.
_COMPONENT = (
    rb"(?!(?:id|y)\.i64 [0-9]+ (?!8 ))(?!(?:partner\.)?shape\.i64 [0-9]+ (?!24 ))"
    rb"(?!%b [0-9]+ (?!%d ))[!-~]+ [0-9]{1,15} [0-9]{1,15} [!-~]+"
)
# Of an indexed set the first component is the image, whose name ends with its id and label.
_NUMBERED = rb"(?:jpg|png) [0-9]{1,15} [0-9]{1,15} [!-~]+\.[0-9]{%d}" % (2 * DIGITS)


@functools.cache
def _index_of(indexed: bool, categories: int) -> re.Pattern[bytes]:
    head = re.escape(INDEX_VERSION.encode())
    component = _COMPONENT % (re.escape(CATEGORIES.encode()), categories)
    first = _NUMBERED if indexed else component
    return re.compile(rb"%b [0-9]{1,15}\n(?:%b(?: %b)*+\n)*+" % (head, first, component))


def lines_of(shard_set: ShardSet, shard: Shard) -> list[str]:
    """Return the lines of one shard's index, a line a sample, once they are checked.

    Raises:
        ValueError: the index differs from the one that was written, or does not fit its tar.
        OSError: it cannot be read.
    """
    return index_lines(_read(shard_set, shard))


def check_indexes(shard_set: ShardSet) -> None:
    """Check all indexes of a shard set; 1.5 seconds for a million samples, DALI's reading takes 2.

    Raises:
        ValueError: an index differs from the one that was written, or does not fit its tar.
        OSError: it cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(lambda shard: _read(shard_set, shard), shard_set.manifest.shards):
            pass


def check_index(text: bytes, shard: Shard, *, indexed: bool = False, categories: int = 0) -> None:
    """Check that an index lists a shard's samples, inside of its tar.

    Args:
        text: of the index.
        shard: what the manifest says of it.
        indexed: whether the set is an indexed one.
        categories: number of the set's categories.

    Raises:
        ValueError: it does not; the message does not name the file.
    """
    if not _index_of(indexed, categories).fullmatch(text):
        what = "in its names" if indexed else "of 8 bytes, and shapes of 24"
        what += f", and categories of {categories:,}" if categories else ""
        raise ValueError(
            f"is no index of DALI's version {INDEX_VERSION} with ids and labels {what}"
        )
    head, _, _ = text.partition(b"\n")
    said, lines = int(head.rpartition(b" ")[2]), text.count(b"\n") - 1
    if not said == lines == shard.samples:
        raise ValueError(
            f"says that it has {said:,} samples and lists {lines:,}; the manifest says "
            f"{shard.samples:,}"
        )
    # What divides words: a space or the end of a line. Each component is four words.
    letters = np.frombuffer(text, np.uint8)[len(head) + 1 :]
    ends = np.flatnonzero(letters <= ord(" "))
    offset_C = _numbers(letters, ends[0::4] + 1, ends[1::4])
    size_C = _numbers(letters, ends[1::4] + 1, ends[2::4])
    wrong = np.flatnonzero((offset_C % _BLOCK != 0) | (offset_C + size_C > shard.tar.bytes))
    if len(wrong):
        raise ValueError(
            f"points to {size_C[wrong[0]]:,} bytes at {offset_C[wrong[0]]:,} of a tar that has "
            f"{shard.tar.bytes:,}; a file lies inside, at a multiple of {_BLOCK}"
        )


def _numbers(
    letters: NDArray[np.uint8], begin_C: NDArray[np.int64], end_C: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the decimal numbers from `begin_C` to `end_C`, all of them at once."""
    value_C = np.zeros(len(begin_C), np.int64)
    for place in range(int((end_C - begin_C).max(initial=0))):
        at_C = begin_C + place
        digit_C = letters[np.minimum(at_C, end_C)] - ord("0")
        value_C = np.where(at_C < end_C, 10 * value_C + digit_C, value_C)
    return value_C


def _read(shard_set: ShardSet, shard: Shard) -> bytes:
    if shard.name in shard_set.replaced:  # by this process, a moment ago: no manifest has its hash
        path = shard_set.replaced[shard.name]
        text = durable.read(Path(path))
    else:
        path = shard_set.folder.path(f"{shard.name}.idx")
        text = read_as_written(shard_set, f"{shard.name}.idx", shard.index)
    indexed, categories = shard_set.manifest.indexed, len(shard_set.manifest.categories)
    checked(
        shard_set, path, lambda: check_index(text, shard, indexed=indexed, categories=categories)
    )
    return text
